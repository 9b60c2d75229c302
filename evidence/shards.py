"""Shards, one file a step: written, read back checked, and judged again without an engine. Format: Arrow IPC file."""

import numpy as np
import pyarrow as pa

from evidence.diagnostics import TokenStats, diagnose, split_summary
from evidence.files import expect, join, read_table, write_table
from evidence.records import ShardInfo
from evidence.rule import EVIDENCE_KINDS, EvidenceConfig, remask, reweigh
from evidence.schema import check_table, flat_column, shard_metadata


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
    return ShardInfo(uri=uri, step=step, rows=table.num_rows, tokens=_num_tokens(table), sha256=sha256)


def read_shard(uri: str, expected: ShardInfo | None = None) -> pa.Table:
    """The table at `uri`, memory-mapped when it is on a local disk.

    ValueError names the shard, what was found and what was expected, when it is not a whole, sound shard or differs
    from `expected` in checksum, rows or tokens. OSError when it cannot be opened.
    """
    table = read_table(uri, None if expected is None else expected.sha256)
    check_table(table, uri)
    if expected is not None:
        expect(uri, "rows", table.num_rows, expected.rows)
        expect(uri, "tokens", _num_tokens(table), expected.tokens)
    return table


def recompute(table: pa.Table, config: EvidenceConfig) -> dict[str, dict[str, float]]:
    """What another rule would have kept: `split_summary` of the table under `config`, without an engine or a student.

    Evidence is recomputed from the two teacher columns. `table` has passed `check_table`.
    """
    teacher_context, offsets = flat_column(table, "teacher_context_logprobs")
    evidence = EVIDENCE_KINDS[config.kind](teacher_context, flat_column(table, "teacher_logprobs")[0])
    weight = reweigh(evidence, config) * remask(evidence, config)
    guided_rows = np.array(table.column("guided").to_pylist(), np.bool_)
    guided_tokens = np.repeat(guided_rows, np.diff(offsets))

    def stats(guided: bool) -> TokenStats:
        own = guided_tokens == guided
        return diagnose(evidence[own], weight[own], None, teacher_context[own], rows=int((guided_rows == guided).sum()))

    return split_summary([(guided, stats(guided)) for guided in (True, False)])


def _num_tokens(table: pa.Table) -> int:
    return int(flat_column(table, "response_ids")[1][-1])
