"""`edge-opd view`: a heat map of one step's rollouts. Decoding the tokens is all that needs a tokenizer."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from cluster.commands.decoding import Decode, decoder_of
from cluster.resolved import read_resolved
from cluster.run.rundir import RunDir
from evidence.columns import flat_column
from evidence.manifest import Manifest
from evidence.records import Floats, ShardInfo
from evidence.rule import EvidenceConfig
from evidence.schema import shard_metadata
from evidence.shards import find_shard, read_shard
from evidence.sidecar import read_student
from evidence.view.heatmap import RowText, choose_rows, heatmap, student_samples


def view_run(run: Path, step: int | None, tau: float | None, region: str | None, out: Path | None) -> Path:
    """Writes the page of a run's step (default: its last) and returns its path; tau and region show another mask.

    Raises:
        ValueError: not a run, no such step, a damaged shard, or a region that does not exist.
    """
    recipe = read_resolved(run).recipe
    info = _shard_of(run, step)
    table = read_shard(find_shard(run, info), expected=info)
    rule = EvidenceConfig.from_json(shard_metadata(table)["mask_rule"])
    rule = dataclasses.replace(
        rule, tau=rule.tau if tau is None else tau, region=rule.region if region is None else region
    )
    decoder = decoder_of(run, recipe.model.path)
    if decoder.note:
        print(f"edge-opd: {decoder.note}", file=sys.stderr)
    student = student_samples(table) if recipe.rollout.sampler == "student" else {}
    texts = {row: _text(table, row, decoder.decode) for row in choose_rows(table)}
    page = heatmap(table, texts, rule, student | _learner_logprobs(run, info), decoder.note)
    path = out or Path(f"view-{run.resolve().name}-step-{info.step:06d}.html")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _shard_of(run: Path, step: int | None) -> ShardInfo:
    by_step = {info.step: info for info in Manifest(run / "manifest.jsonl").written().values()}
    if not by_step:
        raise ValueError(f"{run}: found no shards in manifest.jsonl, expected a run with at least one step")
    chosen = max(by_step) if step is None else step
    if chosen not in by_step:
        raise ValueError(f"{run}: --step: found {chosen}, expected a step from {min(by_step)} to {max(by_step)}")
    return by_step[chosen]


def _learner_logprobs(run: Path, info: ShardInfo) -> dict[str, Floats]:
    """Of the rollouts that the learner ran; none of a shard that was written again since."""
    trained = info.uri in Manifest(run / "manifest.jsonl").trained()
    return read_student(str(RunDir(run).student), info.step) if trained else {}


def _text(table: pa.Table, row: int, decode: Decode) -> RowText:
    ids = {}
    for name in ("prompt_ids", "context_prompt_ids", "response_ids"):
        values, offsets = flat_column(table, name)
        ids[name] = values[offsets[row] : offsets[row + 1]].tolist()
    return RowText(
        decode(ids["prompt_ids"]), decode(ids["context_prompt_ids"]), tuple(pieces(ids["response_ids"], decode))
    )


def pieces(ids: Sequence[int], decode: Decode) -> list[str]:
    """Each token's own text, so that joined they are the decoded response. A token that ends inside a character has
    none: the one that completes it has the whole character."""
    texts: list[str] = []
    before, start = 0, 0  # ids[before:start] is what was last completed: some tokenizers need it to place spaces
    for end in range(1, len(ids) + 1):
        text = decode(ids[before:end])[len(decode(ids[before:start])) :]
        if text.endswith("�") and end < len(ids):
            texts.append("")
            continue
        texts.append(text)
        before, start = start, end
    return texts
