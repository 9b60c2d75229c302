"""Shards on disks that are full, read-only or limited."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from evidence.shards import read_shard, write_shard
from tests.unit.test_evidence_shards import big_table, table


@pytest.mark.parametrize("scheme", ["", "fsspec+file://"])
def test_a_full_disk_leaves_nothing_behind(tiny_disk: Path, scheme: str) -> None:
    if scheme:
        pytest.importorskip("fsspec")
    old = write_shard(table(), f"{scheme}{tiny_disk}", "a.arrow")
    with pytest.raises(OSError, match=r"cannot write shard: .*disk/a\.arrow") as caught:
        write_shard(big_table(), f"{scheme}{tiny_disk}", "a.arrow")
    assert "No space left" in str(caught.value)
    assert os.listdir(tiny_disk) == ["a.arrow"]
    assert read_shard(old.uri, old).equals(table())
    with pytest.raises(OSError, match="No space left"):
        write_shard(big_table(), f"{scheme}{tiny_disk}", "b.arrow")
    assert os.listdir(tiny_disk) == ["a.arrow"]


def test_a_read_only_disk(tiny_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with pytest.raises(OSError, match=r"cannot write shard: Read-only file system: .*disk/a\.arrow"):
        write_shard(table(), str(tiny_disk), "a.arrow")
    assert os.listdir(tiny_disk) == []


def test_a_write_cut_short_by_a_file_size_limit(tmp_path: Path) -> None:
    """Needs no rights: the kernel refuses every byte beyond the limit, also to root."""
    script = """
        import resource, sys
        from tests.process.test_evidence_disks import big_table, write_shard
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        try:
            write_shard(big_table(), sys.argv[1], "a.arrow")
        except OSError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert "cannot write shard: File too large" in done.stdout
    assert str(tmp_path / "a.arrow") in done.stdout
    assert os.listdir(tmp_path) == []
