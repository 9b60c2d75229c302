"""Parquet from anyone, a few rows at a time: a small file may say that it is a large one, or become one."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from evidence.require import first_line
from rollout.tasks.rows import Row

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

T = TypeVar("T")
Leaf = Callable[["pa.DataType"], "pa.DataType"]
BATCH_ROWS = 1024
FEW_ROWS = 16  # at a time, where one value may be large: values that repeat are stored once
PART_BYTES = 1 << 20  # of a column in a row group; in a larger one a value may be large
GROUP_BYTES = 4 << 30  # of a row group, uncompressed
BATCH_BYTES = 256 << 20


def open_parquet(path: str) -> "pq.ParquetFile":
    """
    Raises:
        ValueError: it is no parquet, or two columns have one name, of which a row could keep one.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        names = Counter(file.schema_arrow.names)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: found no parquet ({first_line(error)}), expected a parquet file") from error
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        file.close()
        raise ValueError(f"{path}: found {names[twice]} columns {twice!r}, expected each name once")
    return file


def parquet_rows(file: "pq.ParquetFile", path: str, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """As `batches`, each row as Python's own values, times to the microsecond, 0.1 as 0.1 whatever its width; also
    ValueError for a value of no such type."""
    for batch in batches(file, path, columns):
        yield from _readable(lambda batch=batch: _values(_pythons_own(batch)), path)  # type: ignore[misc]


def _values(batch: "pa.RecordBatch") -> list[Row]:
    """Arrow writes a number of 16 bits out as the one of 64 that it is: the shortest one is numpy's to say."""
    import pyarrow as pa

    rows: list[Row] = batch.to_pylist()
    wide = _with(batch.schema, lambda kind: pa.float64() if pa.types.is_float16(kind) else kind)
    halves = [field for field in batch.schema if field.type != wide.field(field.name).type]
    return [row | {field.name: _shortest(row[field.name], field.type) for field in halves} for row in rows]


def _shortest(value: Any, kind: "pa.DataType") -> Any:
    """The value with 0.1 for each number of 16 bits that is 0.0999755859375; whole numbers as they are."""
    import pyarrow as pa

    if value is None:
        return None
    if pa.types.is_float16(kind):
        return value if value.is_integer() else float(str(np.float16(value)))
    if any(is_one(kind) for is_one in _lists()):
        return [_shortest(one, kind.value_type) for one in value]
    if pa.types.is_map(kind):
        return [(_shortest(key, kind.key_type), _shortest(item, kind.item_type)) for key, item in value]
    if pa.types.is_struct(kind):
        return {field.name: _shortest(value[field.name], field.type) for field in kind}
    return value


def _pythons_own(batch: "pa.RecordBatch") -> "pa.RecordBatch":
    """Pandas writes times in nanoseconds, which Python's own types do not hold; nor do they hold any zone. A number of
    32 bits is another one in 64: 0.1 is 0.10000000149 there, but for one that is written out and read."""
    import pyarrow as pa

    coarse = _with(batch.schema, _coarser)
    written, read = (
        _with(coarse, lambda kind, to=to: to if pa.types.is_float32(kind) else kind)  # type: ignore[misc]
        for to in (pa.string(), pa.float64())
    )
    for schema in (coarse, written, read):
        batch = batch if schema.equals(batch.schema) else batch.cast(schema, safe=False)
    return batch


def _with(schema: "pa.Schema", leaf: "Leaf") -> "pa.Schema":
    import pyarrow as pa

    return pa.schema([field.with_type(_changed(field.type, leaf)) for field in schema])


def _lists() -> "dict[Callable[[Any], bool], Callable[[Any, pa.Field], pa.DataType]]":
    import pyarrow as pa

    return {
        pa.types.is_list: lambda kind, field: pa.list_(field),
        pa.types.is_large_list: lambda kind, field: pa.large_list(field),
        pa.types.is_fixed_size_list: lambda kind, field: pa.list_(field, kind.list_size),
    }


def _changed(kind: "pa.DataType", leaf: "Leaf") -> "pa.DataType":
    """The type with `leaf` of each type inside it."""
    import pyarrow as pa

    for is_one, made in _lists().items():
        if is_one(kind):
            return made(kind, kind.value_field.with_type(_changed(kind.value_type, leaf)))
    if pa.types.is_map(kind):
        key, item = (field.with_type(_changed(field.type, leaf)) for field in (kind.key_field, kind.item_field))
        return pa.map_(key, item, kind.keys_sorted)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_changed(field.type, leaf)) for field in kind])
    return leaf(kind)


def _coarser(kind: "pa.DataType") -> "pa.DataType":
    import pyarrow as pa

    if pa.types.is_timestamp(kind) and (kind.unit == "ns" or kind.tz):
        return pa.timestamp("us" if kind.unit == "ns" else kind.unit, kind.tz and "UTC")
    if pa.types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    if pa.types.is_time64(kind) and kind.unit == "ns":
        return pa.time64("us")
    return kind


def batches(file: "pq.ParquetFile", path: str, columns: Sequence[str] | None = None) -> "Iterator[pa.RecordBatch]":
    """The rows of a file in their order, some at a time.

    Raises:
        ValueError: a row group or some rows that are larger than memory is for, or that cannot be read.
    """
    seen = 0
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        if group.total_byte_size > GROUP_BYTES:
            raise ValueError(
                f"{path}: row group {number + 1}: found {group.total_byte_size} bytes, expected at most {GROUP_BYTES}"
            )
        largest = max((group.column(i).total_uncompressed_size for i in range(group.num_columns)), default=0)
        most = BATCH_ROWS if largest <= PART_BYTES else FEW_ROWS
        found = file.iter_batches(most, [number], columns=None if columns is None else list(columns))
        while (batch := _readable(lambda found=found: next(found, None), path)) is not None:  # type: ignore[misc]
            if batch.nbytes > BATCH_BYTES:
                raise ValueError(
                    f"{path}, row {seen + 1}: found {batch.nbytes} bytes in {len(batch)} rows, expected at most "
                    f"{BATCH_BYTES}"
                )
            seen += len(batch)
            yield batch


def _readable(read: Callable[[], T], path: str) -> T:
    """ValueError, which names the file, where a page is damaged or a value is of no Python type."""
    import pyarrow as pa

    try:
        return read()
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        why = first_line(error)
        raise ValueError(f"{path}: found rows that cannot be read ({why}), expected whole parquet") from error
