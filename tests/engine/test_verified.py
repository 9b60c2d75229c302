"""A real run with a verified task: what was put to the verifier is counted, of the rollouts and of the probes."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evidence.manifest import Manifest
from evidence.shards import read_shard
from rollout.tasks.boxed import last_boxed
from tests.reference import plain_model, require_columns
from tests.runs import ONE_ENGINE, ROOT, edge_opd, lines, small_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ARITHMETIC = str(ROOT / "cluster" / "recipes" / "N6-arithmetic.toml")
# Long enough for the line that a question asks for.
SETTINGS = (
    "run.steps=1", "rollout.max_response_tokens=32", "probe.max_tokens=32", "student.window=320", "teacher.window=320",
    "learner.micro_batch_tokens=512", "probe.gap=false",
    "learner.dtype=float32",  # which a processor multiplies fastest that has no kernels for bfloat16
    *ONE_ENGINE,
)  # fmt: skip


def put(texts: Sequence[str]) -> int:
    """How many of these answers the verifier is asked about: those with a number in their last box."""
    return sum(re.fullmatch(r"-?\d+", (last_boxed(text) or "").strip().removesuffix(".")) is not None for text in texts)


def told(record: dict[str, Any]) -> int:
    return sum((record["verdicts"] or {}).values())


def test_every_answer_that_is_put_to_the_verifier_is_counted(
    tmp_path: Path, default_model: Path, tokenizer: "PreTrainedTokenizerBase"
) -> None:
    """And what the shard says of the real model is what a float32 forward says."""
    run = tmp_path / "run"
    done = edge_opd(*small_arguments(run, *SETTINGS, recipe=ARITHMETIC))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (step,), probes = lines(run / "metrics.jsonl"), lines(run / "probes.jsonl")
    (shard,) = Manifest(run / "manifest.jsonl").written()
    table = read_shard(shard)
    require_columns(table, plain_model(default_model).requires_grad_(False))
    rows = table.to_pylist()
    responses = [tokenizer.decode(row["response_ids"], skip_special_tokens=True) for row in rows]
    assert step["rewards"]["count"] == len(rows) == 8
    assert sum(row["reward"] for row in rows) == step["rewards"]["total"] <= put(responses) == told(step)
    for probe in probes:
        answers = [line["answer"] for line in lines(run / "answers" / f"step-{probe['step']:06d}.jsonl")]
        assert probe["counts"]["pass_at_1"][0] <= put(answers) == told(probe)
    assert told(step) + sum(map(told, probes)) > 0
