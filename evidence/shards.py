"""Shards, one file a step: written, read back checked, and judged again without an engine. Format: Arrow IPC file."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from evidence.diagnostics import TokenStats, diagnose, split_summary
from evidence.files import expect, read_table, write_table
from evidence.records import Bools, Floats, ShardInfo
from evidence.rule import EvidenceConfig, judge_streams
from evidence.schema import check_table, num_tokens, shard_metadata, table_streams
from evidence.storage import join


class Elsewhere(ValueError):
    """A run's folder names what is not in it."""


def write_shard(table: pa.Table, root: str, name: str) -> ShardInfo:
    """Write `table` as `root`/`name`, which then exists whole; an older shard of that name is replaced.

    root: a local path or any pyarrow filesystem URI, its options after `?`.
    On a full or read-only disk nothing is left behind and OSError names the path. ValueError for an unsound table
    or a name that is not a plain file name.
    """
    uri = join(root, name)
    check_table(table, uri)
    sha256 = write_table(table, uri)
    step = int(shard_metadata(table)["step"])
    return ShardInfo(uri, step, table.num_rows, num_tokens(table), sha256, group_names(table))


def group_names(table: pa.Table) -> tuple[str, ...]:
    """Of its rows' groups, each once, in their order."""
    return tuple(table["group_id"].unique().to_pylist())


def read_shard(uri: str, expected: ShardInfo | None = None) -> pa.Table:
    """The table at `uri`, memory-mapped when it is on a local disk.

    ValueError names the shard, what was found and what was expected, when it is not a whole, sound shard or differs
    from `expected` in checksum, rows or tokens. OSError when it cannot be opened.
    """
    table = read_table(uri, None if expected is None else expected.sha256)
    check_table(table, uri)
    if expected is not None:
        expect(uri, "rows", table.num_rows, expected.rows)
        expect(uri, "tokens", num_tokens(table), expected.tokens)
    return table


def shard_name(step: int) -> str:
    """The file of a step's shard, in the place of its run's shards."""
    return f"step-{step:06d}.arrow"


def check_unshared(root: str, run_id: str, key: str) -> None:
    """Before a run's first step: no other run's first shard is in `root`, where this one's would replace it.

    ValueError names `key`, the shard and its run. What cannot be read, or is no shard, is nobody's.
    """
    uri = join(root, shard_name(0))
    try:
        other = shard_metadata(read_table(uri)).get("run_id", run_id)
    except (OSError, ValueError):
        return
    if other != run_id:
        raise ValueError(
            f"{key}: {uri}: found a shard of the run {other!r}, expected a place where no other run's would be replaced"
        )


def find_shard(run: Path, info: ShardInfo) -> str:
    """Where a run's shard is: at its URI, or in RUN/shards where a local run directory was moved."""
    moved = run / "shards" / info.uri.rsplit("/", 1)[-1]
    return str(moved) if "://" not in info.uri and not Path(info.uri).exists() and moved.is_file() else info.uri


def shard_of(run: Path, info: ShardInfo, follow: bool) -> str:
    """Where the shard of a run is that may be somebody else's: in the run's folder, unless `follow`, which goes where
    the manifest says, like `find_shard`.

    Raises:
        Elsewhere: it is not in the folder.
    """
    if follow:
        return find_shard(run, info)
    own = run / "shards" / info.uri.partition("?")[0].rsplit("/", 1)[-1]
    place = own if own.is_file() or "://" in info.uri else Path(info.uri)
    if not place.is_file() or not place.resolve().is_relative_to(run.resolve()):
        raise Elsewhere(
            f"{run}: found a shard at {info.uri}, expected it in this folder: --follow reads what a run that you trust "
            "names elsewhere"
        )
    return str(place)


def rejudge(table: pa.Table, config: EvidenceConfig) -> tuple[Floats, Floats, Bools]:
    """(e, w, m), each [N]: what `judge_all` gives for the step under `config`, bit for bit, without an engine.

    From the log-prob and reward columns only. `table` is one whole step that has passed `check_table`. ValueError when
    `config` reads a column or a reward that this shard does not have.
    """
    return judge_streams(table_streams(table), config)


def shard_stats(
    table: pa.Table, config: EvidenceConfig, student: Mapping[str, Floats] | None = None
) -> list[tuple[bool, TokenStats]]:
    """(guided, sums) a rollout, as the learner reports them, under `config`.

    student: the learner's log-probs of rollouts by rollout_id (see evidence/sidecar.py); those it never ran are
    absent. ValueError as `rejudge`, or when one of them belongs to no response here or is not as long as it.
    """
    student = student or {}
    streams = table_streams(table)
    evidence, weight, mask = judge_streams(streams, config)
    columns = (streams.rows(values) for values in (evidence, weight * mask, streams.teacher_context_N))
    rollout_ids, guided = (table.column(name).to_pylist() for name in ("rollout_id", "guided"))
    foreign = sorted(student.keys() - set(rollout_ids))
    if foreign:
        raise ValueError(f"student_logprobs: found rollout {foreign[0]}, expected only rollouts of the shard")
    return [
        (is_guided, diagnose(e, w, student.get(rollout_id), teacher_context, rows=1))
        for rollout_id, is_guided, e, w, teacher_context in zip(rollout_ids, guided, *columns, strict=True)
    ]


def recompute(
    table: pa.Table, config: EvidenceConfig, student: Mapping[str, Floats] | None = None
) -> dict[str, dict[str, float]]:
    """What another rule would have kept: `split_summary` of the step's `shard_stats`."""
    return split_summary(shard_stats(table, config, student))
