"""A shard of somebody's is not unpacked before it has said what it becomes."""

import struct
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest

from evidence import files
from evidence.files import read_table, write_table
from evidence.packed import MOST, unpacked_bytes


def packed(table: pa.Table, codec: str | None, batch_rows: int | None = None) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_table(table, batch_rows)
    return sink.getvalue()


def table(rows: int) -> pa.Table:
    """A column of fixed width, one of lists, and one whose values are in a dictionary, as large as they are."""
    names = pa.array([f"{row:>64}" for row in range(rows)]).dictionary_encode()
    return pa.table({"reward": pa.array([0.0] * rows), "ids": pa.array([[1, 2]] * rows), "name": names})


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
@pytest.mark.parametrize("batch_rows", [None, 300])
def test_a_file_says_what_it_becomes(codec: str, batch_rows: int | None) -> None:
    wanted, data = table(1000), packed(table(1000), codec, batch_rows)
    assert unpacked_bytes(data) == pytest.approx(wanted.nbytes, rel=0.05) and data.size < wanted.nbytes / 3
    assert unpacked_bytes(packed(wanted, None)) == 0


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
@pytest.mark.parametrize("where", ["values", "dictionary"])
def test_a_small_file_that_becomes_a_large_one_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, where: str
) -> None:
    monkeypatch.setattr(files, "UNPACKED_BYTES", 1 << 20)
    column = pa.array([0] * (8 << 20)) if where == "values" else pa.array(["x" * (64 << 20)]).dictionary_encode()
    path = tmp_path / "a.arrow"
    path.write_bytes(packed(pa.table({"a": column}), codec))
    size, before = path.stat().st_size, pa.total_allocated_bytes()
    del column
    with pytest.raises(ValueError, match=rf"^{path}: found 6\d+ bytes in {size} packed ones, expected at most \d+$"):
        read_table(str(path))
    assert pa.total_allocated_bytes() <= before


def test_what_is_packed_within_the_bound_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.arrow").write_bytes(packed(table(1000), "zstd", 300))
    assert read_table(str(tmp_path / "a.arrow")).equals(table(1000))
    write_table(table(1000), str(tmp_path / "b.arrow"))
    assert read_table(str(tmp_path / "b.arrow")).equals(table(1000))


def test_what_is_no_file_of_arrows_is_one_line(tmp_path: Path) -> None:
    whole = packed(table(10), "zstd").to_pybytes()
    for cut in range(0, len(whole), 97):
        for content in (whole[:cut], whole[cut + 1 :]):
            (tmp_path / "a.arrow").write_bytes(content)
            with pytest.raises(ValueError, match=rf"^{tmp_path}/a.arrow: found {len(content)} bytes .*whole Arrow IPC"):
                read_table(str(tmp_path / "a.arrow"))


def test_more_batches_than_a_shard_has_are_not_walked_through() -> None:
    rows = MOST + 1
    with pytest.raises(struct.error, match=f"{rows} batches"):
        unpacked_bytes(packed(pa.table({"a": list(range(rows))}), None, 1))


@pytest.mark.parametrize("codec", [None, "zstd"])
def test_a_flipped_bit_is_found_or_changes_what_is_said(codec: str | None) -> None:
    content = bytearray(packed(table(3), codec).to_pybytes())
    for at in range(len(content)):
        for bit in (0, 4, 7):
            content[at] ^= 1 << bit
            with suppress(struct.error, OverflowError):
                assert unpacked_bytes(pa.py_buffer(bytes(content))) >= 0
            content[at] ^= 1 << bit
