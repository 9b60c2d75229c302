"""The shard's columns, the border between the two services: records in, per-token streams out.

One row a rollout. `prompt_ids` is x, `context_prompt_ids` is (x, r); list columns of log-probs, evidence, weight and
mask are as long as `response_ids`. Columns beyond COLUMNS (a top-k teacher, say) are allowed and left alone.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evidence.records import EvidenceRecord, TrainRow
from evidence.rule import EvidenceConfig

SCHEMA_VERSION = 1
METADATA_KEYS = ("run_id", "step", "mask_rule", "model_id", "weights_digest", "code_version")

_NAME = pa.dictionary(pa.int32(), pa.string())
_IDS = pa.list_(pa.int32())
_FLOATS = pa.list_(pa.float32())
_BOOLS = pa.list_(pa.bool_())

COLUMNS: dict[str, tuple[pa.DataType, Callable[[EvidenceRecord], Any]]] = {
    "rollout_id": (pa.string(), lambda r: r.scored.sample.request.rollout_id),
    "prompt_id": (pa.string(), lambda r: r.scored.sample.request.prompt_id),
    "group_id": (pa.string(), lambda r: r.scored.sample.request.group_id),
    "guided": (pa.bool_(), lambda r: r.scored.sample.request.guided),
    "context_position": (_NAME, lambda r: r.scored.sample.request.context_position),
    "finish_reason": (_NAME, lambda r: r.scored.sample.finish_reason),
    "policy_version_min": (pa.int32(), lambda r: r.scored.sample.policy_version_min),
    "policy_version_max": (pa.int32(), lambda r: r.scored.sample.policy_version_max),
    "teacher_version": (pa.int32(), lambda r: r.scored.teacher_version),
    "prompt_ids": (_IDS, lambda r: r.scored.sample.request.prompt_ids),
    "context_prompt_ids": (_IDS, lambda r: r.scored.sample.request.context_prompt_ids),
    "response_ids": (_IDS, lambda r: r.scored.sample.response_ids),
    "sampler_logprobs": (_FLOATS, lambda r: r.scored.sample.sampler_logprobs),
    "teacher_context_logprobs": (_FLOATS, lambda r: r.scored.teacher_context_logprobs),
    "teacher_logprobs": (_FLOATS, lambda r: r.scored.teacher_logprobs),
    "evidence": (_FLOATS, lambda r: r.evidence),
    "weight": (_FLOATS, lambda r: r.weight),
    "mask": (_BOOLS, lambda r: r.mask),
    "reward": (pa.float32(), lambda r: r.reward),
}
SCHEMA = pa.schema([(name, kind) for name, (kind, _) in COLUMNS.items()])
TOKEN_COLUMNS = ("sampler_logprobs", "teacher_context_logprobs", "teacher_logprobs", "evidence", "weight", "mask")


def to_table(records: Sequence[EvidenceRecord], metadata: Mapping[str, str]) -> pa.Table:
    """One row a record, `metadata` (METADATA_KEYS and any others) and schema_version in the schema's metadata.

    ValueError, by `check_table`, when a metadata key is missing or a token column is not as long as its response.
    """
    arrays = [_column([get(record) for record in records], kind) for kind, get in COLUMNS.values()]
    stamped = {**metadata, "schema_version": str(SCHEMA_VERSION)}
    table = pa.Table.from_arrays(arrays, schema=SCHEMA.with_metadata(stamped))
    check_table(table, "new shard")
    return table


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if not pa.types.is_list(kind):
        return pa.array(values, kind)
    offsets = np.cumsum([0, *(len(value) for value in values)], dtype=np.int32)
    empty = np.empty(0, kind.value_type.to_pandas_dtype())
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate([empty, *values]), kind.value_type))


def flat_column(table: pa.Table, name: str) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """A list column as (values [N], offsets [rows + 1]): row i is values[offsets[i]:offsets[i + 1]].

    Values are a read-only view of the table's memory (booleans, which Arrow packs into bits, are unpacked).
    """
    column = table.column(name)
    column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # which copies
    offsets = column.offsets.to_numpy()
    values = column.flatten()
    return values.to_numpy(zero_copy_only=not pa.types.is_boolean(values.type)), offsets - offsets[0]


def train_rows(table: pa.Table) -> list[TrainRow]:
    """The streams the learner trains on, in the table's order: read-only views of its memory.

    TrainRow.weight is weight * mask, computed once for the whole table. `table` has passed `check_table`.
    """
    ids = ("prompt_ids", "context_prompt_ids", "response_ids")
    names = (*ids, "teacher_context_logprobs", "teacher_logprobs", "evidence")
    streams = {name: _rows(*flat_column(table, name)) for name in names}
    weight, offsets = flat_column(table, "weight")
    mask, _ = flat_column(table, "mask")
    streams["weight"] = _rows(weight * mask, offsets)
    rollouts, guided = table.column("rollout_id").to_pylist(), table.column("guided").to_pylist()
    return [
        TrainRow(
            rollout_id=rollouts[i],
            guided=guided[i],
            advantage=None,
            **{name: rows[i] for name, rows in streams.items()},
        )
        for i in range(table.num_rows)
    ]


def _rows(values: NDArray[Any], offsets: NDArray[np.int32]) -> list[NDArray[Any]]:
    values.flags.writeable = False
    return [values[start:stop] for start, stop in pairwise(offsets)]


def check_table(table: pa.Table, where: str) -> None:
    """ValueError with one line (shard `where`, key or column, found, expected) unless the table is a sound shard:

    its metadata, schema version and column types, no null outside `reward`, every token column as long as the response.
    """
    _check_metadata(shard_metadata(table), where)
    for name, (kind, _) in COLUMNS.items():
        _check_column(table, name, kind, where)
    for name in TOKEN_COLUMNS:
        _check_lengths(table, name, where)


def shard_metadata(table: pa.Table) -> dict[str, str]:
    """The schema's metadata as text."""
    return {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}


def _check_metadata(metadata: dict[str, str], where: str) -> None:
    version = metadata.get("schema_version")
    if version != str(SCHEMA_VERSION):
        raise ValueError(f"{where}: metadata schema_version: found {version!r}, expected '{SCHEMA_VERSION}'")
    for key in METADATA_KEYS:
        if key not in metadata:
            raise ValueError(f"{where}: metadata {key}: found nothing, expected a value")
    if not metadata["step"].isdecimal():
        raise ValueError(f"{where}: metadata step: found {metadata['step']!r}, expected a whole number >= 0")
    try:
        EvidenceConfig.from_json(metadata["mask_rule"])
    except ValueError as error:
        raise ValueError(f"{where}: metadata mask_rule: {error}") from error


def _check_column(table: pa.Table, name: str, kind: pa.DataType, where: str) -> None:
    found = [str(table.schema.field(index).type) for index in table.schema.get_all_field_indices(name)]
    if found != [str(kind)]:
        raise ValueError(f"{where}: column {name}: found {' and '.join(found) or 'no such column'}, expected {kind}")
    column = table.column(name)
    nulls = column.null_count
    if pa.types.is_list(kind):
        nulls += sum(chunk.flatten().null_count for chunk in column.chunks)
    if nulls and name != "reward":
        raise ValueError(f"{where}: column {name}: found {nulls} null values, expected none")


def _check_lengths(table: pa.Table, name: str, where: str) -> None:
    expected = np.diff(flat_column(table, "response_ids")[1])
    found = np.diff(flat_column(table, name)[1])
    bad = np.flatnonzero(found != expected)
    if bad.size:
        row = bad[0]
        raise ValueError(
            f"{where}: column {name}: row {row}: found {found[row]} tokens, expected {expected[row]} as response_ids"
        )
