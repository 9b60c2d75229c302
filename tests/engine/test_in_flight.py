"""Weights that arrive amid a rollout (`weights.in_flight`), on real engines: which token came from which version."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evidence.manifest import Manifest
from evidence.shards import read_shard
from evidence.sidecar import read_student
from tests.reference import logprobs_of, plain_model
from tests.runs import lines, small_run

STEPS, TOKENS = 4, 100
# One rollout after another takes several times as long as the learner's step, so that a push falls into one of them.
SETTINGS = (
    "run.max_policy_lag=1", f"run.steps={STEPS}", "run.checkpoint_every=1", "run.keep_checkpoints=0",
    "student.max_num_seqs=1",
    f"rollout.max_response_tokens={TOKENS}", "student.window=320", "teacher.window=320", "student.dtype=float32",
    "learner.dtype=float32", "learner.zero_stage=0", "learner.lr=1e-2", "evidence.region=all",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The run's directory, and the rows of all its shards."""
    run_dir = tmp_path_factory.mktemp("runs") / "in-flight"
    done = small_run(run_dir, f"model.path={small_model}", *SETTINGS)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    shards = sorted(Manifest(run_dir / "manifest.jsonl").written())
    return run_dir, [row for shard in shards for row in read_shard(shard).to_pylist()]


@pytest.fixture(scope="module")
def policies(run: tuple[Path, Any], small_model: Path) -> list[Any]:
    """The student of every version, from the run's checkpoints."""
    folder, versions = run[0] / "checkpoints", []
    for version in range(STEPS + 1):
        model = plain_model(small_model).requires_grad_(False)
        if version > 0:
            saved = folder / f"step-{version:06d}" / "mp_rank_00_model_states.pt"
            module = torch.load(saved, weights_only=False)["module"]
            model.load_state_dict({name.removeprefix("causal_lm."): tensor for name, tensor in module.items()})
        versions.append(model)
    return versions


def test_each_token_is_of_the_version_before_the_push_or_of_the_one_after(
    run: tuple[Path, list[dict[str, Any]]], policies: list[Any]
) -> None:
    """A mixed row has one seam. Up to it the sampler's log-probs are the older policy's; from there they are the newer
    one's over everything before, which the engine has read again."""
    _, rows = run
    mixed = [row for row in rows if row["policy_version_min"] < row["policy_version_max"]]
    assert mixed and len(mixed) < len(rows)
    for row in rows:
        older, newer = row["policy_version_min"], row["policy_version_max"]
        assert newer - older <= 1
        sampled = np.array(row["sampler_logprobs"])
        prompt = row["context_prompt_ids" if row["guided"] else "prompt_ids"]
        off_older, off_newer = (
            np.abs(sampled - logprobs_of(policies[version], prompt, row["response_ids"]).numpy())
            for version in (older, newer)
        )
        assert off_older[0] < 1e-3 and off_newer[-1] < 1e-3
        seam = int(np.argmax(off_older > 1e-3)) if older < newer else len(sampled)
        assert off_older[:seam].max() < 1e-3
        assert off_newer[seam:].max(initial=0.0) < 1e-3
        if older < newer:
            assert 0 < seam < len(sampled) and off_newer[:seam].max() > 0.05  # the two are far enough apart to tell


def test_the_bound_holds_and_the_learner_takes_the_policy_of_its_step(
    run: tuple[Path, list[dict[str, Any]]], policies: list[Any]
) -> None:
    """Whatever sampled a row, the log-probs trained on are the current student's, under x."""
    run_dir, rows = run
    records, learned = lines(run_dir / "metrics.jsonl"), list[str]()
    assert [record["step"] for record in records] == list(range(STEPS))
    for record in records:
        assert record["step"] - 1 <= record["policy_version_min"] <= record["policy_version_max"] <= record["step"]
        assert record["canary"] < 1e-3 and record["dropped"] == 0
        trained = read_student(str(run_dir / "student"), record["step"])
        step_rows = [row for row in rows if row["rollout_id"] in trained]
        assert len(step_rows) == len(trained) == 8
        learned += [rollout_id.rsplit("-", 1)[0] for rollout_id in trained]
        for row in step_rows:
            current = logprobs_of(policies[record["step"]], row["prompt_ids"], row["response_ids"]).numpy()
            assert np.abs(trained[row["rollout_id"]] - current).max() < 1e-3
    groups = [f"{step:06d}-{slot:03d}" for step in range(STEPS) for slot in range(2)]
    assert sorted(learned) == sorted(4 * groups)  # nothing that began was discarded, however long it took
    manifest = Manifest(run_dir / "manifest.jsonl")
    assert len(manifest.written()) == STEPS and manifest.trained() == set(manifest.written())
