"""The manifest between processes, and on a full disk."""

import os
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evidence.manifest import Manifest
from tests.unit.test_evidence_manifest import info


def test_only_one_of_many_processes_trains_a_shard(tmp_path: Path) -> None:
    """The racers share a clock, which is set when both are there, and reach for each shard at the same instant."""
    manifest = Manifest(tmp_path / "manifest.jsonl")
    for index in range(40):
        manifest.append_written(info(str(index)))
    script = """
        import sys, time
        from evidence.manifest import Manifest
        print("ready", flush=True)
        start, won = float(sys.stdin.readline()), 0
        for index in range(40):
            while time.time() < start + index * 0.02:
                pass
            try:
                Manifest(sys.argv[1]).append_trained(f"/runs/{index}.arrow", 1)
                won += 1
            except ValueError:
                pass
        print(won)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), manifest.path]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen(command, env=env, **pipes) for _ in range(2)]
    assert all(racer.stdout and racer.stdout.readline() == "ready\n" for racer in racers)
    start = f"{time.time() + 0.1}\n"
    for racer in racers:
        assert racer.stdin
        racer.stdin.write(start)
        racer.stdin.flush()
    assert sum(int(racer.communicate()[0]) for racer in racers) == 40
    assert len(manifest.trained()) == 40


def test_a_line_that_does_not_fit_leaves_the_manifest_whole(tiny_disk: Path) -> None:
    manifest = Manifest(tiny_disk / "manifest.jsonl")
    manifest.append_written(info("a"))
    with open(tiny_disk / "filler", "wb", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
        while True:
            filler.write(bytes(4096))
    before = Path(manifest.path).read_bytes()
    with pytest.raises(OSError, match=r"manifest\.jsonl"):
        manifest.append_written(replace(info("b"), uri="/runs/" + "b" * 8000))
    assert Path(manifest.path).read_bytes() == before
    assert list(manifest.written()) == [info("a").uri]
