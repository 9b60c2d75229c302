"""Engines on a GPU against plain float32 forwards, in both of vLLM's model runners; sleep, adapters, CUDA graphs."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner.adapter import adapter_files
from rollout.engine import files_digest
from tests.engine.test_adapter import RESPONSE as ADAPTED_RESPONSE
from tests.engine.test_adapter import logprobs
from tests.engine.test_engine_numerics import columns, requests, shared_rows
from tests.gpu.conftest import TELL
from tests.process.test_adapter import CONFIG, adapted, plain, trained
from tests.reference import logprobs_of, plain_model
from tests.runs import side_by_side

RUNNERS = ("0", "1")
# Nats: a float32 engine attends in TF32, as Triton's kernels do, which has 10 bits of mantissa. On an H200: 0.002 in
# the mean, 0.038 the largest.
TOLERANCE = {"float32": ("max", 0.06), "bfloat16": ("mean", 0.05)}
ADAPTED = 0.1  # nats, mean: in bfloat16, which is all that vLLM's kernels for adapters take
WAYS = [(dtype, runner) for dtype in TOLERANCE for runner in RUNNERS]


@dataclass(frozen=True)
class Driven:
    """What the engines found that ran side by side on the first card."""

    numerics: dict[tuple[str, str], Any]  # by dtype and runner
    adapter: Any
    students: list[Any]
    digests: list[str]
    folders: list[Path]


@pytest.fixture(scope="module")
def driven(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Driven:
    folder = tmp_path_factory.mktemp("engines")
    targets = {way: folder / f"{'-'.join(way)}.json" for way in WAYS}
    scripts = {
        f"{dtype}, runner {runner}": ["numerics", str(target), str(default_model), dtype, runner]
        for (dtype, runner), target in targets.items()
    }
    students, digests, folders = [adapted(default_model, seed) for seed in (0, 1)], [], []
    for seed, student in enumerate(students):
        folders.append(folder / str(seed))
        folders[-1].mkdir()
        files = adapter_files(trained(student), CONFIG)
        digests.append(files_digest(files))
        for name, content in files.items():
            (folders[-1] / name).write_bytes(content)
    scripts["adapter"] = ["adapter", str(folder / "adapter.json"), str(default_model), *map(str, folders)]
    side_by_side({name: ["-m", "tests.gpu.drive", *script] for name, script in scripts.items()})
    numerics = {way: json.loads(target.read_text()) for way, target in targets.items()}
    return Driven(numerics, json.loads((folder / "adapter.json").read_text()), students, digests, folders)


@pytest.fixture(scope="module")
def reference(default_model: Path) -> Any:
    return plain_model(default_model).requires_grad_(False)


def off(found: list[float], expected: np.ndarray) -> np.ndarray:
    return np.abs(np.array(found) - expected)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_log_probs_agree_with_float32(
    driven: Driven, default_model: Path, reference: Any, dtype: str, runner: str, tell: TELL
) -> None:
    differences: list[float] = []
    for request, row in zip(requests(str(default_model)), driven.numerics[dtype, runner], strict=True):
        for column, prompt_ids in columns(request).items():
            differences += off(row[column], logprobs_of(reference, prompt_ids, row["response_ids"]).numpy()).tolist()
    kind, limit = TOLERANCE[dtype]
    tell(f"engine's log-probs, {dtype}, runner {runner}: mean nats", float(np.mean(differences)), "")
    tell(f"engine's log-probs, {dtype}, runner {runner}: largest", float(np.max(differences)), "")
    assert (np.max(differences) if kind == "max" else np.mean(differences)) < limit
    assert dtype != "float32" or np.mean(differences) < 0.004


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_prefix_from_the_cache_changes_no_score(driven: Driven, reference: Any, runner: str) -> None:
    found, (prompts, responses) = driven.numerics["float32", runner][0]["shared"], shared_rows()
    ways = (found["first"], found["together"], found["apart"])
    for prompt, response, *scores in zip(prompts, responses, *ways, strict=True):
        expected = logprobs_of(reference, prompt, response).numpy()
        assert all(off(score, expected).max() < TOLERANCE["float32"][1] for score in scores)
    assert any(cached > 0 for _, _, cached in found["reads"])
    assert all(cached < num_prompt for _, num_prompt, cached in found["reads"])


def test_an_engine_with_cuda_graphs_sleeps_and_wakes_with_the_same_weights(
    default_model: Path, tmp_path: Path, reference: Any, tell: TELL
) -> None:
    target = tmp_path / "sleep.json"
    side_by_side({"sleep": ["-m", "tests.gpu.drive", "sleeping", str(target), str(default_model)]})
    found = json.loads(target.read_text())
    before, *rest = found["naps"]
    differences: list[float] = []
    for request, (ids, sampled), scored in zip(
        requests(str(default_model)), found["sampled"], before["scores"], strict=True
    ):
        expected = logprobs_of(reference, request.sampler_ids, ids).numpy()
        differences += [*off(sampled, expected), *off(scored, expected)]
    tell("engine with CUDA graphs, bfloat16: mean nats", float(np.mean(differences)), "")
    assert np.mean(differences) < 0.05
    for asleep, awake in zip(rest[::2], rest[1::2], strict=True):
        given = (asleep["free"] - before["free"]) / 2**30
        assert given > 1  # of its share, all but CUDA's own and the graphs'
        assert awake["digest"] == before["digest"]
        for row, known in zip(awake["scores"], before["scores"], strict=True):
            assert np.abs(np.array(row) - known).mean() < 0.05  # what is beside a row moves its last bits
    tell("GiB that a sleeping engine gives back", given, "")


def test_an_adapter_is_swapped_while_requests_wait(driven: Driven, default_model: Path) -> None:
    """As tests/engine/test_adapter.py, with Triton's operators; the adapters move log-probs by 0.5 and 1.5 nats."""
    base, found = logprobs(plain(default_model), ADAPTED_RESPONSE), driven.adapter
    for folder, student in zip(driven.folders, driven.students, strict=True):
        expected = logprobs(student, ADAPTED_RESPONSE)
        assert np.abs(expected - base).mean() > 0.3
        for score, own in zip(found[str(folder)], (expected, base, expected), strict=True):
            assert off(score, own).mean() < ADAPTED
    assert found["state"] == [[version, digest] for version, digest in enumerate(driven.digests, 3)]
    assert [version for *_, version in found["queued"]] == [3] * 6 + [4] * 6
    for response, sampled, version in found["queued"]:
        assert off(sampled, logprobs(driven.students[version - 3], response)).mean() < ADAPTED
