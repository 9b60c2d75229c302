"""Parquet from anyone is read in bounded pieces."""

from pathlib import Path

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


def test_a_value_of_no_python_type_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.PARQUET"
    pq.write_table(pa.table({"question": ["Who?"], "when": pa.array([1], pa.timestamp("ns"))}), path)
    with pytest.raises(ValueError, match=rf"^{path}: found rows that cannot be read \(Nanosecond .+\)"):
        list(file_rows(str(path), "task.prompts_file"))
