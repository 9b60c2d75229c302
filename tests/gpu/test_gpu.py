"""What only a GPU can prove. Run with `make test` on a machine that has one."""

import json
from pathlib import Path

from evidence.manifest import Manifest
from evidence.shards import read_shard
from tests.runs import edge_opd, lines, small_run


def test_colocated_run_on_one_gpu_pushes_over_ipc(tmp_path: Path) -> None:
    """Student and teacher engine and the learner share one GPU; versions, digests and the canary hold at each push."""
    run_dir = tmp_path / "gpu"
    done = small_run(run_dir)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "on cuda, weights over ipc" in done.stdout
    records = lines(run_dir / "metrics.jsonl")
    assert [record["policy_version_max"] for record in records] == [0, 1]
    assert all(record["canary"] < 0.1 for record in records)
    assert all(record["stages"][stage]["seconds"] > 0 for record in records for stage in ("sleep", "wake"))
    assert sum(read_shard(uri).num_rows for uri in Manifest(run_dir / "manifest.jsonl").written()) == 16
    probed = edge_opd("probe", str(run_dir), "--json", "--set", "probe.max_tokens=8")
    assert probed.returncode == 0 and json.loads(probed.stdout.splitlines()[-1])["n"] == 12
