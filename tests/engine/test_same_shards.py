"""The same recipe and seed give the same shards, whatever was rebuilt around them: a digest of a small run's columns.

The run is in float32 with one sequence a batch, so that no token depends on what else was under way. Its log-probs are
a processor's own in their last bits: all columns are held on the processors named here, token ids on every one.
`python -m tests.engine.test_same_shards RUN` prints the digests of a run, for a processor that is new.
"""

import hashlib
import sys
from pathlib import Path

import pyarrow as pa

from cluster.machine import cpu_fact
from evidence.shards import read_shard
from tests.runs import small_run

SETTINGS = ("student.max_num_seqs=1", "teacher.max_num_seqs=1", "student.dtype=float32", "learner.dtype=float32")
MEASURED = (pa.list_(pa.float32()), pa.list_(pa.bool_()))  # what a processor rounds, and what follows from it

IDS = "9a562c262a17ff9a"
WHOLE = {"Intel(R) Xeon(R) Processor": "f7929757e7436526"}  # by /proc/cpuinfo's model name


def digests(run: Path) -> tuple[str, str]:
    """(of all columns, of those that are no log-probs) of a run's shards, by their values."""
    whole, ids = hashlib.sha256(), hashlib.sha256()
    for path in sorted((run / "shards").glob("*.arrow")):
        table = read_shard(str(path))
        for name in table.column_names:
            text = name.encode() + repr(table.column(name).to_pylist()).encode()
            whole.update(text)
            if table.schema.field(name).type not in MEASURED:
                ids.update(text)
    return whole.hexdigest()[:16], ids.hexdigest()[:16]


def test_the_same_recipe_and_seed_give_the_same_shards(tmp_path: Path) -> None:
    done = small_run(tmp_path / "run", *SETTINGS)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    whole, ids = digests(tmp_path / "run")
    assert ids == IDS
    known = WHOLE.get(cpu_fact("model name"))
    print(f"{cpu_fact('model name')}: {whole}, expected {known or 'any: not a processor that was recorded'}")
    assert whole == (known or whole)


if __name__ == "__main__":
    print(cpu_fact("model name"), *digests(Path(sys.argv[1])))
