"""`edge-opd data`: training rows for the math task from a public dataset's parquet files. No engine, no cluster."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from rollout.tasks.openthoughts import LAYOUTS, RULES, Example, Layout, select
from rollout.tasks.parquet import open_parquet, parquet_rows


def write_openthoughts(source: Path, out: Path, limit: int, seed: int) -> Counter[str]:
    """Filters a parquet file, or a folder of them, to JSON lines; returns the counts of `select`.

    `out` appears whole or not at all.

    Raises:
        ValueError: no such file, no parquet, columns of neither layout, or a limit below 1.
    """
    if limit < 1:
        raise ValueError(f"--limit: found {limit}, expected at least 1")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"{out}: found no folder {out.absolute().parent}, expected one that exists")
    rows, counts = select(_examples(_files(source)), limit, seed)
    part = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return counts


def _files(source: Path) -> list[Path]:
    files = sorted(source.glob("*.parquet")) if source.is_dir() else [source] if source.is_file() else []
    if not files:
        raise ValueError(f"{source}: found no parquet file, expected one or a folder of them")
    return files


def _examples(files: list[Path]) -> Iterator[Example]:
    for path in files:
        with open_parquet(str(path)) as parquet:
            layout = _layout(path, parquet.schema_arrow)
            yield from map(layout.read, parquet_rows(parquet, str(path), layout.columns))


def _layout(path: Path, schema: pa.Schema) -> Layout:
    fitting = [layout for layout in LAYOUTS.values() if all(_fits(schema, name) for name in layout.columns)]
    if not fitting:
        found = ", ".join(f"{field.name} ({field.type})" for field in schema)
        expected = " or ".join(f"{', '.join(layout.columns)} ({name})" for name, layout in LAYOUTS.items())
        raise ValueError(f"{path}: found the columns {found}, expected {expected}")
    return fitting[0]


def _fits(schema: pa.Schema, name: str) -> bool:
    if name not in schema.names:
        return False
    kind = schema.field(name).type
    if name != "conversations":
        return _is_text(kind)
    turn = getattr(kind, "value_type", None)
    return (
        turn is not None
        and pa.types.is_struct(turn)
        and {"from", "value"} <= {turn[i].name for i in range(turn.num_fields)}
    )


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def to_text(counts: Counter[str], out: Path) -> str:
    """One line each for rows read, what each rule dropped, and rows kept."""
    dropped = [f"{-counts[rule]:>8}  not: {rule}" for rule in RULES]
    return "\n".join(
        [
            f"{counts['read']:>8}  read",
            *dropped,
            f"{counts['passed']:>8}  passed",
            f"{counts['kept']:>8}  kept in {out}",
        ]
    )
