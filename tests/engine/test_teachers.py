"""Teachers that are not the frozen base, on real engines: what they hold, when, and what that makes of the evidence."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evidence.manifest import Manifest
from evidence.shards import read_shard
from tests.reference import logprobs_of, plain_model
from tests.runs import lines, small_runs

RUNS = {
    # The teacher samples and the evidence is teacher_student, so that the student's engines score every row; and the
    # student's engine is two workers, the teacher's is one, so that a push has to reach each part of the weights.
    "live": (
        "learner.lr=1e-3", "learner.beta_kl=0.0", "evidence.region=all",
        "teacher.kind=live", "evidence.kind=teacher_student", "rollout.sampler=teacher",
        "student.tensor_parallel_size=2", "learner.dtype=float32", "student.dtype=float32",
    ),
    # The same loop with a staleness bound of 1.
    "averaged": (
        "teacher.kind=ema", "teacher.ema_rate=0.5", "learner.lr=1e-2", "learner.beta_kl=0.05",
        "run.max_policy_lag=1", "run.steps=3", "weights.in_flight=false",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of each of `RUNS`."""
    folder = tmp_path_factory.mktemp("teachers")
    common = (f"model.path={small_model}", "probe.gap=false")
    for done in small_runs(folder, {name: (*common, *own) for name, own in RUNS.items()}).values():
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def tables(run_dir: Path) -> list[Any]:
    return [read_shard(uri) for uri in sorted(Manifest(run_dir / "manifest.jsonl").written())]


def column(table: Any, name: str) -> np.ndarray:
    return np.concatenate([np.asarray(row) for row in table.column(name).to_pylist()])


def test_evidence_of_a_live_teacher_is_minus_the_surprise(runs: Path) -> None:
    """method.md, section 9: e_t = -delta_t, so mean e = -k1, also once the student has moved away from its start."""
    for version, table in enumerate(tables(runs / "live")):
        for name in ("teacher_version", "policy_version_min", "policy_version_max"):
            assert table.column(name).to_pylist() == [version] * 8
        student, plain, context = (
            column(table, name) for name in ("student_logprobs", "teacher_logprobs", "teacher_context_logprobs")
        )
        assert np.abs(student - plain).max() < 1e-4  # two engines with the same weights
        assert np.array_equal(column(table, "evidence"), (context - student).astype(np.float32))
        for row in table.to_pylist():
            own = row["teacher_context_logprobs" if row["guided"] else "student_logprobs"]
            assert np.abs(np.array(row["sampler_logprobs"]) - np.array(own)).max() < 1e-4
    for record in lines(runs / "live" / "metrics.jsonl"):
        for group in record["diagnostics"].values():
            assert group["mean_evidence"] == pytest.approx(-group["k1"], abs=1e-4)
            assert group["agreement"] > 0.99  # a token of |e| about 1e-6 may fall on either side of 0


def test_an_averaged_teacher_follows_under_a_lag_and_the_anchor_keeps_to_the_base(
    runs: Path, small_model: Path
) -> None:
    """No rollout is older than the staleness bound, and every shard is trained once."""
    run_dir = runs / "averaged"
    records = lines(run_dir / "metrics.jsonl")
    assert [record["step"] for record in records] == [0, 1, 2]
    assert all(record["step"] - 1 <= record["policy_version_min"] <= record["step"] for record in records)
    assert records[1]["policy_version_min"] == 0  # step 1 began before version 1 existed
    manifest = Manifest(run_dir / "manifest.jsonl")
    assert len(manifest.written()) == 3 and manifest.trained() == set(manifest.written())

    for step, table in enumerate(tables(run_dir)):
        oldest, newest, held = (
            table.column(name).to_pylist() for name in ("policy_version_min", "policy_version_max", "teacher_version")
        )
        assert oldest == newest  # an update waits for the rollouts under way
        assert all(max(step - 1, 0) <= version <= step for version in (*oldest, *held))
    base = plain_model(small_model).requires_grad_(False)
    first, _, last = (distance_from(base, table.to_pylist()[0]) for table in tables(run_dir))
    assert first < 1e-3 < 0.05 < last
    anchored = [record["anchor_kl"] for record in records]
    assert anchored[0] < 0.01 < anchored[2]  # the student left the base, whatever its teacher did


def distance_from(model: Any, row: dict[str, Any]) -> float:
    """The largest difference of a row's teacher_context_logprobs from `model`'s own."""
    expected = logprobs_of(model, row["context_prompt_ids"], row["response_ids"])
    return float(np.abs(np.array(row["teacher_context_logprobs"]) - expected.numpy()).max())
