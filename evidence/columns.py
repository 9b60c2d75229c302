"""Arrow's list columns to and from numpy, without a Python object a token."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def column_of(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """An Arrow array of one value a row; rows of a list type are numpy arrays, or sequences of them where nested."""
    if not pa.types.is_list(kind):
        return pa.array(values, kind)
    offsets = pa.array(np.cumsum([0, *map(len, values)], dtype=np.int32))
    if pa.types.is_list(kind.value_type):
        return pa.ListArray.from_arrays(
            offsets, column_of([item for value in values for item in value], kind.value_type)
        )
    empty = np.empty(0, kind.value_type.to_pandas_dtype())
    return pa.ListArray.from_arrays(offsets, pa.array(np.concatenate([empty, *values]), kind.value_type))


def flat_column(table: pa.Table, name: str) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """A list column as (values [N], offsets [rows + 1]): row i is values[offsets[i]:offsets[i + 1]].

    Values are a read-only view of the table's memory (booleans, which Arrow packs into bits, are unpacked).
    """
    return _flat(_whole(table, name))


def _whole(table: pa.Table, name: str) -> pa.Array:
    chunked = table.column(name)
    return chunked.chunk(0) if chunked.num_chunks == 1 else chunked.combine_chunks()  # which copies


def _flat(lists: pa.ListArray) -> tuple[NDArray[Any], NDArray[np.int32]]:
    offsets = lists.offsets.to_numpy()
    values = lists.flatten()
    return values.to_numpy(zero_copy_only=not pa.types.is_boolean(values.type)), offsets - offsets[0]


def nested_column(table: pa.Table, name: str) -> list[list[NDArray[Any]]]:
    """A column of lists of lists, as each row's read-only views of the table's memory."""
    outer = _whole(table, name)
    inner = rows_of(*_flat(outer.flatten()))
    offsets = outer.offsets.to_numpy()
    return [inner[start:stop] for start, stop in pairwise(offsets - offsets[0])]


def rows_of(values: NDArray[Any], offsets: NDArray[np.int32]) -> list[NDArray[Any]]:
    """A flat column as one read-only view a row."""
    values.flags.writeable = False
    return [values[start:stop] for start, stop in pairwise(offsets)]
