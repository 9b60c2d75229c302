"""The shard's columns, the border between the two services: records in, per-token streams out.

One row a rollout. `prompt_ids` is x, `context_prompt_ids` is (x, r); list columns of log-probs, evidence, weight and
mask are as long as `response_ids`. Further columns (a top-k teacher, say) are allowed and left alone.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa

from evidence.advantage import group_advantages
from evidence.columns import column_of, flat_column, nested_column, rows_of
from evidence.records import EvidenceRecord, TrainRow
from evidence.rule import EvidenceConfig
from evidence.streams import StepStreams, by_wrong_context

SCHEMA_VERSION = 1
METADATA_KEYS = ("run_id", "step", "mask_rule", "model_id", "weights_digest", "code_version")

_NAME = pa.dictionary(pa.int32(), pa.string())
_IDS = pa.list_(pa.int32())
_FLOATS = pa.list_(pa.float32())
_BOOLS = pa.list_(pa.bool_())

Columns = dict[str, tuple[pa.DataType, Callable[[EvidenceRecord], Any]]]

COLUMNS: Columns = {
    "rollout_id": (pa.string(), attrgetter("scored.sample.request.rollout_id")),
    "prompt_id": (pa.string(), attrgetter("scored.sample.request.prompt_id")),
    "group_id": (pa.string(), attrgetter("scored.sample.request.group_id")),
    "guided": (pa.bool_(), attrgetter("scored.sample.request.guided")),
    "context_position": (_NAME, attrgetter("scored.sample.request.context_position")),
    "finish_reason": (_NAME, attrgetter("scored.sample.finish_reason")),
    "policy_version_min": (pa.int32(), attrgetter("scored.sample.policy_version_min")),
    "policy_version_max": (pa.int32(), attrgetter("scored.sample.policy_version_max")),
    "teacher_version": (pa.int32(), attrgetter("scored.teacher_version")),
    "prompt_ids": (_IDS, attrgetter("scored.sample.request.prompt_ids")),
    "context_prompt_ids": (_IDS, attrgetter("scored.sample.request.context_prompt_ids")),
    "response_ids": (_IDS, attrgetter("scored.sample.response_ids")),
    "sampler_logprobs": (_FLOATS, attrgetter("scored.sample.sampler_logprobs")),
    "teacher_context_logprobs": (_FLOATS, attrgetter("scored.teacher_context_logprobs")),
    "teacher_logprobs": (_FLOATS, attrgetter("scored.teacher_logprobs")),
    "evidence": (_FLOATS, attrgetter("evidence")),
    "weight": (_FLOATS, attrgetter("weight")),
    "mask": (_BOOLS, attrgetter("mask")),
    "reward": (pa.float32(), attrgetter("reward")),
}
# What a kind of evidence reads beyond these, if anything: columns of the shards whose mask_rule names it.
KIND_COLUMNS: dict[str, Columns] = {
    "teacher_student": {"student_logprobs": (_FLOATS, attrgetter("scored.student_logprobs"))},
    "contrastive": {  # a list a wrong context
        "wrong_context_prompt_ids": (pa.list_(_IDS), attrgetter("scored.sample.request.wrong_context_prompt_ids")),
        "wrong_context_logprobs": (pa.list_(_FLOATS), attrgetter("scored.wrong_context_logprobs")),
    },
}


def reads(kind: str, column: str) -> bool:
    """Whether a kind of evidence reads this column beyond those of every shard: what it is to be scored with."""
    return column in KIND_COLUMNS.get(kind, {})


def to_table(records: Sequence[EvidenceRecord], metadata: Mapping[str, str]) -> pa.Table:
    """One row a record, `metadata` (METADATA_KEYS and any others) and schema_version in the schema's metadata.

    ValueError, by `check_table`, when a metadata key is missing or a token column is not as long as its response.
    """
    stamped = {**metadata, "schema_version": str(SCHEMA_VERSION)}
    columns = COLUMNS | KIND_COLUMNS.get(_check_metadata(stamped, "new shard").kind, {})
    arrays = [column_of(list(map(get, records)), kind) for kind, get in columns.values()]
    schema = pa.schema([(name, kind) for name, (kind, _) in columns.items()], stamped)
    table = pa.Table.from_arrays(arrays, schema=schema)
    check_table(table, "new shard")
    return table


def num_tokens(table: pa.Table) -> int:
    """Response tokens of all rows."""
    return int(flat_column(table, "response_ids")[1][-1])


def table_streams(table: pa.Table) -> StepStreams:
    """A shard as the rule reads it; streams that it has no column for are None. `table` has passed `check_table`."""
    teacher_context, offsets = flat_column(table, "teacher_context_logprobs")
    names = set(table.column_names)
    student = flat_column(table, "student_logprobs")[0] if "student_logprobs" in names else None
    wrong = nested_column(table, "wrong_context_logprobs") if "wrong_context_logprobs" in names else []
    return StepStreams(
        step=int(shard_metadata(table)["step"]),
        lengths_R=np.diff(offsets).tolist(),
        advantages_R=_advantages(table),
        teacher_context_N=teacher_context,
        teacher_N=flat_column(table, "teacher_logprobs")[0],
        student_N=student,
        wrong_context_WN=by_wrong_context(wrong),
    )


def _advantages(table: pa.Table) -> list[float | None]:
    return group_advantages(table.column("reward").to_pylist(), table.column("group_id").to_pylist())


def train_rows(table: pa.Table) -> list[TrainRow]:
    """The streams the learner trains on, in the table's order: read-only views of its memory.

    TrainRow.weight is weight * mask, computed once for the whole table; TrainRow.advantage comes from the rewards of
    the row's group, which a whole step holds. `table` has passed `check_table`.
    """
    ids = ("prompt_ids", "context_prompt_ids", "response_ids")
    names = (*ids, "sampler_logprobs", "teacher_context_logprobs", "teacher_logprobs", "evidence")
    streams: dict[str, list[Any]] = {name: rows_of(*flat_column(table, name)) for name in names}
    weight, offsets = flat_column(table, "weight")
    mask, _ = flat_column(table, "mask")
    streams["weight"] = rows_of(weight * mask, offsets)
    streams["advantage"] = _advantages(table)
    streams |= {name: table.column(name).to_pylist() for name in ("rollout_id", "guided")}
    return [TrainRow(**{name: rows[i] for name, rows in streams.items()}) for i in range(table.num_rows)]


def check_table(table: pa.Table, where: str) -> None:
    """ValueError with one line (shard `where`, key or column, found, expected) unless the table is a sound shard:

    its metadata, schema version and column types, no null outside `reward`, every token column as long as the response,
    and the columns that its rule's kind of evidence reads.
    """
    rule = _check_metadata(shard_metadata(table), where)
    kinds = {name: kind for name, (kind, _) in (COLUMNS | KIND_COLUMNS.get(rule.kind, {})).items()}
    for name, kind in kinds.items():
        _check_column(table, name, kind, where)
    for name, kind in kinds.items():
        if kind in (_FLOATS, _BOOLS):
            _check_lengths(table, name, where)
    if "wrong_context_logprobs" in kinds:
        _check_wrong_contexts(table, rule.num_wrong_contexts, where)


def shard_metadata(table: pa.Table) -> dict[str, str]:
    """The schema's metadata as text."""
    return {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}


def _check_metadata(metadata: dict[str, str], where: str) -> EvidenceConfig:
    version = metadata.get("schema_version")
    if version != str(SCHEMA_VERSION):
        raise ValueError(f"{where}: metadata schema_version: found {version!r}, expected '{SCHEMA_VERSION}'")
    for key in METADATA_KEYS:
        if key not in metadata:
            raise ValueError(f"{where}: metadata {key}: found nothing, expected a value")
    if not metadata["step"].isdecimal():
        raise ValueError(f"{where}: metadata step: found {metadata['step']!r}, expected a whole number >= 0")
    try:
        return EvidenceConfig.from_json(metadata["mask_rule"])
    except ValueError as error:
        raise ValueError(f"{where}: metadata mask_rule: {error}") from error


def _check_column(table: pa.Table, name: str, kind: pa.DataType, where: str) -> None:
    found = [str(table.schema.field(index).type) for index in table.schema.get_all_field_indices(name)]
    if found != [str(kind)]:
        raise ValueError(f"{where}: column {name}: found {' and '.join(found) or 'no such column'}, expected {kind}")
    nulls = sum(_num_nulls(chunk) for chunk in table.column(name).chunks)
    if nulls and name != "reward":
        raise ValueError(f"{where}: column {name}: found {nulls} null values, expected none")


def _num_nulls(array: pa.Array) -> int:
    inside = _num_nulls(array.flatten()) if pa.types.is_list(array.type) else 0
    return int(array.null_count) + inside


def _check_lengths(table: pa.Table, name: str, where: str) -> None:
    expected = np.diff(flat_column(table, "response_ids")[1])
    found = np.diff(flat_column(table, name)[1])
    bad = np.flatnonzero(found != expected)
    if bad.size:
        row = bad[0]
        raise ValueError(
            f"{where}: column {name}: row {row}: found {found[row]} tokens, expected {expected[row]} as response_ids"
        )


def _check_wrong_contexts(table: pa.Table, count: int, where: str) -> None:
    for row, prompts in enumerate(nested_column(table, "wrong_context_prompt_ids")):
        if len(prompts) != count:
            name = f"{where}: column wrong_context_prompt_ids: row {row}"
            raise ValueError(f"{name}: found {len(prompts)} prompts, expected {count}")
    lengths = np.diff(flat_column(table, "response_ids")[1]).tolist()
    for row, (logprobs, length) in enumerate(zip(nested_column(table, "wrong_context_logprobs"), lengths, strict=True)):
        found = [len(values) for values in logprobs]
        if found != [length] * count:
            name = f"{where}: column wrong_context_logprobs: row {row}"
            raise ValueError(f"{name}: found {found} tokens, expected {count} x {length} as response_ids")
