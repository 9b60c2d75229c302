"""The learner's side of a step: its log-probs of the rollouts that it ran, beside the shard that they came from.

With it, agreement and k1 can be recomputed too. One Arrow file a step, `step-NNNNNN.arrow` under its own root.
"""

from collections.abc import Mapping

import pyarrow as pa

from evidence.columns import column_of, flat_column, rows_of
from evidence.files import expect, read_table, write_table
from evidence.records import Floats
from evidence.storage import join

SIDECAR = {"rollout_id": pa.string(), "student_logprobs": pa.list_(pa.float32())}


def write_student(student: Mapping[str, Floats], root: str, step: int) -> str:
    """Writes log pi_theta(y|x) [T] by rollout_id, under x and before the step's first update; returns the URI.

    root: a local path or any pyarrow filesystem URI; the file appears whole or not at all. OSError names it.
    """
    values: dict[str, list[object]] = {"rollout_id": list(student), "student_logprobs": list(student.values())}
    uri = _uri(root, step)
    write_table(pa.table({name: column_of(values[name], kind) for name, kind in SIDECAR.items()}), uri)
    return uri


def read_student(root: str, step: int) -> dict[str, Floats]:
    """What `write_student` wrote, as read-only views; empty where there is no such file.

    ValueError names the file when it is not whole or has other columns.
    """
    uri = _uri(root, step)
    try:
        table = read_table(uri)
    except FileNotFoundError:
        return {}
    expect(uri, "columns", dict(zip(table.schema.names, table.schema.types, strict=True)), SIDECAR)
    logprobs: list[Floats] = rows_of(*flat_column(table, "student_logprobs"))
    return dict(zip(table.column("rollout_id").to_pylist(), logprobs, strict=True))


def _uri(root: str, step: int) -> str:
    return join(root, f"step-{step:06d}.arrow")
