"""Parquet from anyone is read in bounded pieces."""

from datetime import UTC, datetime, time, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rollout.tasks import parquet
from rollout.tasks.parquet import FEW_ROWS, batches, open_parquet
from rollout.tasks.tables import file_rows


def written(path: Path, texts: list[str], **options: int) -> str:
    pq.write_table(pa.table({"question": texts, "n": list(range(len(texts)))}), path, compression="zstd", **options)
    return str(path)


@pytest.mark.parametrize("group", [3, 100])
def test_rows_come_in_their_order_whatever_their_groups(tmp_path: Path, group: int) -> None:
    path = written(tmp_path / "rows.parquet", [f"q{n}" for n in range(10)], row_group_size=group)
    rows = list(file_rows(path, "task.prompts_file"))
    assert [row["n"] for _, row in rows if isinstance(row, dict)] == list(range(10))
    assert [place for place, _ in rows][-1] == f"{path}, row 10"


def test_a_small_file_that_becomes_a_large_one_is_read_a_few_rows_at_a_time(tmp_path: Path) -> None:
    """2,000 rows of one text of 2 MB, which is stored once."""
    path = written(tmp_path / "rows.parquet", ["x" * (2 << 20)] * 2000)
    assert Path(path).stat().st_size < 100_000
    with open_parquet(path) as file:
        first = next(batches(file, path, ["question"]))
    assert len(first) == FEW_ROWS and first.nbytes < 64 << 20


def test_rows_and_groups_that_are_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "rows.parquet", ["a", "x" * (2 << 20)])
    monkeypatch.setattr(parquet, "BATCH_BYTES", 1 << 20)
    with pytest.raises(ValueError, match=rf"^{path}, row 1: found 2\d+ bytes in 2 rows, expected at most 1048576$"):
        list(file_rows(path, "task.prompts_file"))
    monkeypatch.setattr(parquet, "GROUP_BYTES", 1 << 10)
    with pytest.raises(ValueError, match=rf"^{path}: row group 1: found 2\d+ bytes, expected at most 1024$"):
        list(file_rows(path, "task.prompts_file"))


@pytest.mark.parametrize("damaged", [10, 200, 1000])
def test_a_damaged_file_is_one_line_with_its_name(tmp_path: Path, damaged: int) -> None:
    """A page's header, a text, compressed data."""
    path, rows = tmp_path / "rows.pq", [{"question": f"Who keeps key {n}?", "context": "Ada " * 50} for n in range(500)]
    pq.write_table(pa.Table.from_pylist(rows), path, compression="snappy")
    content = bytearray(path.read_bytes())
    content[damaged] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{path}: found rows that cannot be read \(.+\), expected whole parquet$"):
        list(file_rows(str(path), "task.prompts_file"))


def test_times_in_nanoseconds_as_pandas_writes_them_are_read_to_the_microsecond(tmp_path: Path) -> None:
    """In any column, also within lists and structures."""
    path, ns = tmp_path / "rows.parquet", 1795834800123456789
    kinds = {"at": pa.timestamp("ns", "UTC"), "took": pa.duration("ns"), "daily": pa.time64("ns")}
    kind = pa.timestamp("ns")
    lists = [("all", pa.list_(kind)), ("large", pa.large_list(kind)), ("two", pa.list_(kind, 2))]
    nested = pa.struct([("when", kind), *lists, ("by", pa.map_(pa.string(), kind))])
    columns = {"question": ["Who?"], "at": pa.array([ns], kinds["at"]), "took": pa.array([1999], kinds["took"])}
    columns |= {"daily": pa.array([61_000_001_999], kinds["daily"])}
    value = {name: [ns, None] for name, _ in lists}
    columns |= {"meta": pa.array([{"when": ns, **value, "by": [("a", ns)]}], nested)}
    pq.write_table(pa.table(columns), path)
    ((_, row),) = file_rows(str(path), "task.prompts_file")
    moment = datetime(2026, 11, 28, 3, 0, 0, 123456)
    assert isinstance(row, dict) and row["question"] == "Who?" and row["at"] == moment.replace(tzinfo=UTC)
    assert row["took"] == timedelta(microseconds=1) and row["daily"] == time(0, 1, 1, 1)
    assert row["meta"] == {"when": moment, **{name: [moment, None] for name, _ in lists}, "by": [("a", moment)]}


def test_a_time_of_any_zone_is_its_moment(tmp_path: Path) -> None:
    """Also of one that this machine does not know."""
    zones, path = (
        {"mars": pa.timestamp("us", "Mars/Base"), "far": pa.timestamp("s", "Asia/Tokyo")},
        tmp_path / "a.parquet",
    )
    pq.write_table(pa.table({name: pa.array([1], kind) for name, kind in zones.items()}), path)
    ((_, row),) = file_rows(str(path), "task.prompts_file")
    assert row == {"mars": datetime(1970, 1, 1, 0, 0, 0, 1, UTC), "far": datetime(1970, 1, 1, 0, 0, 1, 0, UTC)}


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    columns = [pa.array([text]) for text in ("Who?", "Ada.", "Bo.")]
    pq.write_table(pa.Table.from_arrays(columns, names=["question", "context", "context"]), path)
    with pytest.raises(ValueError, match=rf"^{path}: found 2 columns 'context', expected each name once$"):
        list(file_rows(str(path), "task.prompts_file"))


def test_a_value_of_no_python_type_is_one_line(tmp_path: Path) -> None:
    """A time in the year 33,658."""
    path = tmp_path / "rows.PARQUET"
    pq.write_table(pa.table({"question": ["Who?"], "when": pa.array([10**12], pa.timestamp("s"))}), path)
    with pytest.raises(ValueError, match=rf"^{path}: found rows that cannot be read \(.*out of range.*\)"):
        list(file_rows(str(path), "task.prompts_file"))


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()], ids=str)
def test_a_number_is_the_one_that_was_written_whatever_its_width(tmp_path: Path, kind: pa.DataType) -> None:
    """As an answer 0.10000000149 is another number than 0.1."""
    numbers = pa.array(np.array([0.1, 5.0, -2.25, np.inf], kind.to_pandas_dtype()), kind)
    objects = pa.StructArray.from_arrays([numbers, pa.array(["a", "b", "c", "d"])], ["number", "text"])
    few = pa.array(np.array([0.1, 0.0], kind.to_pandas_dtype()), kind, mask=np.array([False, True]))
    lists = pa.ListArray.from_arrays(pa.array([0, 1, None, 1, 2]), few)
    maps = pa.MapArray.from_arrays([0, 1, 2, 3, 4], ["a"] * 4, numbers)
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"answer": numbers, "nested": objects, "lists": lists, "maps": maps}), path)
    rows = [row for _, row in file_rows(str(path), "task.prompts_file") if isinstance(row, dict)]
    assert [row["answer"] for row in rows] == [row["nested"]["number"] for row in rows] == [0.1, 5.0, -2.25, np.inf]
    assert [row["lists"] for row in rows] == [[0.1], [], None, [None]]
    assert [row["maps"] for row in rows] == [[("a", row["answer"])] for row in rows]
