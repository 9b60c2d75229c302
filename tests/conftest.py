"""What several tests share: the default model, prepared once (and cached across sessions), and a tiny random one."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from cluster.default_model import prepare_default_model
from tests import fakes
from tests.listeners import family, wait_for_the_agents_port, watched
from tests.runs import ADAPTER, FINISHED, PLANTED, RECIPE, SMALL, SweptRun, WatchedRun, edge_opd, small_run
from tests.strangers import asks_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WHOLE_RUNS_S = 1800  # above what the deadlines within one such test, and the runs that it shares, add up to
CONTRACT_S = 30  # a test of a library's private side, without the start that a file's tests share
settings.register_profile("patient", deadline=None)  # an example that a busy machine stalls has not failed
settings.load_profile("patient")
if "PYTEST_XDIST_WORKER" in os.environ:  # threads of two workers wait for each other on two cores
    import torch

    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test's tier is its folder: those of engine and gpu get the marker of that name."""
    for item in items:
        tier = item.path.parts[-2]
        if tier in ("engine", "gpu"):
            item.add_marker(tier)
            contract = item.path.name.endswith("_contract.py")
            item.add_marker(
                pytest.mark.timeout(CONTRACT_S, func_only=True) if contract else pytest.mark.timeout(WHOLE_RUNS_S)
            )


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The folder of the default model; the first time ever this takes about 25 s and a download."""
    return prepare_default_model()


@pytest.fixture(scope="session")
def tokenizer(default_model: Path) -> "PreTrainedTokenizerBase":
    """The default model's tokenizer. Shared: a test that changes it works on a copy."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(default_model))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `fakes.tiny_model`: float32, tied embeddings, no tokenizer."""
    return fakes.tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def small_model(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with the default one's tokenizer, for runs whose subject is not what a model says."""
    folder = tmp_path_factory.mktemp("small-model")
    # vLLM's attention on CPUs knows no smaller heads.
    sizes = {"vocab": 49152, "hidden_size": 128, "head_dim": 32}
    return fakes.tiny_model(folder, dtype="bfloat16", tokenizer_from=default_model, **sizes)


@pytest.fixture(scope="session")
def watched_run(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedRun]:
    """One small real run on a local Ray: two learner ranks under ZeRO-3, the same tokens each time. Its environment has
    `PLANTED`."""
    run_dir = tmp_path_factory.mktemp("runs") / "small"
    with tempfile.TemporaryDirectory(prefix="edge-", dir="/tmp") as temporary:  # Ray's socket paths must be short
        wait_for_the_agents_port()
        with watched(lambda: family(os.getpid())[1:], asks_for) as watch:
            settings = (f"model.path={small_model}", *FINISHED)
            done = small_run(run_dir, *settings, TMPDIR=temporary, RAY_TMPDIR=temporary, **PLANTED)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        yield WatchedRun(run_dir, done, watch.found(), Path(temporary))


@pytest.fixture(scope="session")
def finished(watched_run: WatchedRun) -> "tuple[Path, subprocess.CompletedProcess[str]]":
    """(run directory, what it printed) of `watched_run`."""
    return watched_run.run_dir, watched_run.done


@pytest.fixture(scope="session")
def swept(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> SweptRun:
    """One small real run, with LoRA, by `edge-opd sweep`."""
    folder, settings = tmp_path_factory.mktemp("swept"), (f"model.path={small_model}", *ADAPTER)
    listed = ", ".join(f'"{setting}"' for setting in (*SMALL, *settings))
    vary = '[vary.position]\nuser = ["rollout.context_position=user"]\n'
    (folder / "one.toml").write_text(f'recipe = "{RECIPE}"\nset = [{listed}]\nseeds = [3]\n\n{vary}')
    command = ("sweep", str(folder / "one.toml"), "--dir", str(folder / "runs"))
    done = edge_opd(*command)
    own = ("rollout.context_position=user", "run.seed=3")
    swept = SweptRun(folder / "runs" / "user-seed3", (*settings, *own), command, done)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:] + swept.log.read_text()[-3000:]
    return swept


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty folder that holds 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
