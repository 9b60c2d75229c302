"""Parquet from anyone, a few rows at a time: a small file may say that it is a large one, or become one."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

BATCH_ROWS = 1024
FEW_ROWS = 16  # at a time, where one value may be large: values that repeat are stored once
PART_BYTES = 1 << 20  # of a column in a row group; in a larger one a value may be large
GROUP_BYTES = 4 << 30  # of a row group, uncompressed
BATCH_BYTES = 256 << 20


def open_parquet(path: str) -> "pq.ParquetFile":
    """
    Raises:
        ValueError: it is no parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: found no parquet ({str(error).splitlines()[0]}), expected a parquet file") from error


def batches(file: "pq.ParquetFile", path: str, columns: Sequence[str] | None = None) -> "Iterator[pa.RecordBatch]":
    """The rows of a file in their order, some at a time.

    Raises:
        ValueError: a row group or some rows that are larger than memory is for.
    """
    seen = 0
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        if group.total_byte_size > GROUP_BYTES:
            raise ValueError(
                f"{path}: row group {number + 1}: found {group.total_byte_size} bytes, expected at most {GROUP_BYTES}"
            )
        largest = max((group.column(i).total_uncompressed_size for i in range(group.num_columns)), default=0)
        rows = BATCH_ROWS if largest <= PART_BYTES else FEW_ROWS
        for batch in file.iter_batches(rows, [number], columns=None if columns is None else list(columns)):
            if batch.nbytes > BATCH_BYTES:
                raise ValueError(
                    f"{path}, row {seen + 1}: found {batch.nbytes} bytes in {len(batch)} rows, expected at most "
                    f"{BATCH_BYTES}"
                )
            seen += len(batch)
            yield batch
