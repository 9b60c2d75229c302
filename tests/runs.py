"""Small real runs through the command line, for the tests that need one."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.listeners import Listener

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "cluster" / "recipes" / "identity.toml"
SMALL = (
    "run.steps=2", "run.probe_every=0", "run.checkpoint_every=0", "probe.require=0.0", "probe.samples=1",
    "probe.max_tokens=2", "rollout.prompts_per_step=2", "rollout.samples_per_prompt=4",
    "rollout.max_response_tokens=12", "student.window=160", "teacher.window=160", "learner.micro_batch_tokens=256",
    "student.start_deadline_s=900", "teacher.start_deadline_s=900", "learner.start_deadline_s=900",
)  # fmt: skip
TWO_RANKS = ("learner.num_ranks=2", "learner.zero_stage=3")
AVERAGED = ("export.choose=average", "export.average=2")
ONE_ENGINE = ("learner.lora_rank=8", "student.dtype=float32")  # LoRA: it is student and teacher
# The run of a sweep, which several tests look at.
ADAPTER = (*ONE_ENGINE, *TWO_RANKS, *AVERAGED, "learner.lr=1e-2", "evidence.region=all", "run.checkpoint_every=1")
# The run that several tests look at. One sequence a batch: in bfloat16 a token depends on what else is in it, which is
# chance.
FINISHED = ("student.max_num_seqs=1", *TWO_RANKS, *AVERAGED)


@dataclass(frozen=True)
class WatchedRun:
    """A real run that has ended, what it printed, where its processes listened, and its temporary folder."""

    run_dir: Path
    done: "subprocess.CompletedProcess[str]"
    listeners: list[Listener]
    temporary: Path


@dataclass(frozen=True)
class SweptRun:
    """A real run of a sweep that has ended: its settings beside `SMALL`, the sweep's command and what that printed."""

    run_dir: Path
    settings: tuple[str, ...]
    command: tuple[str, ...]
    done: "subprocess.CompletedProcess[str]"

    @property
    def log(self) -> Path:
        return self.run_dir.with_name(f"{self.run_dir.name}.log")


# Values of a run's environment that nothing it writes may repeat.
PLANTED = {
    "AWS_ACCESS_KEY_ID": "planted-AKIA-4c1e", "AWS_SECRET_ACCESS_KEY": "planted-secret-77d0",
    "AWS_SESSION_TOKEN": "planted-session-0b9a", "OPENAI_API_KEY": "planted-openai-5f32",
    "HF_TOKEN": "planted-hub-e81d", "RAY_AUTH_TOKEN": "706c616e746564" * 4, "WANDB_API_KEY": "planted-wandb-2a6c",
}  # fmt: skip


def edge_opd(
    *arguments: str, timeout: int = 1200, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "edge-opd"), *arguments]
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env, cwd=cwd)


def small_arguments(run_dir: Path, *overrides: str, recipe: str = str(RECIPE)) -> list[str]:
    settings = [part for item in (*SMALL, *overrides) for part in ("--set", item)]
    return ["run", recipe, "--run-dir", str(run_dir), *settings]


def small_run(
    run_dir: Path, *overrides: str, flags: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    return edge_opd(*small_arguments(run_dir, *overrides), *flags, **environment)


def small_runs(folder: Path, settings: Mapping[str, tuple[str, ...]]) -> "dict[str, subprocess.CompletedProcess[str]]":
    """Small runs by name, all at once: each has its settings, and a folder of its name in `folder`."""
    with ThreadPoolExecutor(len(settings)) as pool:
        done = pool.map(lambda name: small_run(folder / name, *settings[name]), settings)
        return dict(zip(settings, done, strict=True))


def side_by_side(scripts: dict[str, list[str]], timeout: int = 900) -> None:
    """Runs each list of Python arguments in a process of its own, all at once; AssertionError for one that fails."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = {
        name: subprocess.Popen([sys.executable, *script], stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env)
        for name, script in scripts.items()
    }
    try:
        for name, process in started.items():
            _, said = process.communicate(timeout=timeout)
            assert process.returncode == 0, f"{name}: {said[-3000:]}"
    finally:
        for process in started.values():
            process.kill()
            process.wait()


def lines(path: Path) -> list[dict[str, Any]]:
    """Of a file of JSON lines, also while it is written: the last may be there in part."""
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def hub_at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is at `address` for this test, as if HF_ENDPOINT had said so from the start."""
    from huggingface_hub import close_session, constants

    from cluster import hub

    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    close_session()  # the client reads the environment once
    hub._commit.cache_clear()
    hub.downloaded.cache_clear()
