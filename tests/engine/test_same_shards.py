"""The same recipe and seed give the same shards, whatever was rebuilt around them: a small run's columns, kept.

The run is in float32 with one sequence a batch, so that no token depends on what else was under way. Token ids, places
and names are held exactly, by a digest. Log-probs are a processor's own in their last bits, and two machines with
processors of one name were seen to differ: they are held within TOLERANCE of the values in KEPT.
`python -m tests.engine.test_same_shards RUN` prints the digests of a run: on one machine, all columns are the same bit
for bit before and after a change that moves no figure. With `--keep` it writes KEPT from the run.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from evidence.shards import read_shard
from tests.runs import small_run

SETTINGS = ("student.max_num_seqs=1", "teacher.max_num_seqs=1", "student.dtype=float32", "learner.dtype=float32")
MEASURED = (pa.list_(pa.float32()), pa.list_(pa.bool_()))  # what a processor rounds, and what follows from it
TOLERANCE = 1e-4  # nats; 4.4e-5 at most between AVX-512 kernels and AVX2 ones, in either step
KEPT = Path(__file__).with_name("same_shards.json")

IDS = "9a562c262a17ff9a"


def digests(run: Path) -> tuple[str, str]:
    """(of all columns, of those that are no log-probs) of a run's shards, by their values."""
    whole, ids = hashlib.sha256(), hashlib.sha256()
    for table in shards(run):
        for name in table.column_names:
            text = name.encode() + repr(table.column(name).to_pylist()).encode()
            whole.update(text)
            if table.schema.field(name).type not in MEASURED:
                ids.update(text)
    return whole.hexdigest()[:16], ids.hexdigest()[:16]


def measured(run: Path) -> list[dict[str, list[list[float]]]]:
    """By step and column: the values of each row."""
    return [
        {field.name: table.column(field.name).to_pylist() for field in table.schema if field.type in MEASURED}
        for table in shards(run)
    ]


def shards(run: Path) -> list[pa.Table]:
    return [read_shard(str(path)) for path in sorted((run / "shards").glob("*.arrow"))]


def test_the_same_recipe_and_seed_give_the_same_shards(tmp_path: Path) -> None:
    done = small_run(tmp_path / "run", *SETTINGS)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    whole, ids = digests(tmp_path / "run")
    print(f"all columns: {whole}")
    assert ids == IDS
    found, kept = measured(tmp_path / "run"), json.loads(KEPT.read_text())
    assert len(found) == len(kept) == 2
    for step, (now, before) in enumerate(zip(found, kept, strict=True)):
        assert now.keys() == before.keys()
        for name, rows in before.items():
            pairs = zip(now[name], rows, strict=True)
            apart = max(np.abs(np.subtract(one, other, dtype=float)).max() for one, other in pairs)
            assert apart <= TOLERANCE, f"step {step}, {name}: {apart:.2e} apart"


if __name__ == "__main__":
    print(*digests(Path(sys.argv[1])))
    if "--keep" in sys.argv:
        rounded = [
            {name: [[round(float(value), 6) for value in row] for row in rows] for name, rows in step.items()}
            for step in measured(Path(sys.argv[1]))
        ]
        KEPT.write_text(json.dumps(rounded, separators=(",", ":")) + "\n")
