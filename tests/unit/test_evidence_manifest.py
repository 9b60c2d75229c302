"""The manifest on a real file: what happened, exactly once, also across processes, crashes and full disks."""

import json
import os
from pathlib import Path

import pytest

from evidence.manifest import Manifest
from evidence.records import ShardInfo


def info(name: str, step: int = 0) -> ShardInfo:
    return ShardInfo(uri=f"/runs/{name}.arrow", step=step, rows=2, tokens=9, sha256="0" * 64)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return Manifest(tmp_path / "manifest.jsonl")


def test_a_new_manifest_is_empty(manifest: Manifest) -> None:
    assert manifest.written() == {}
    assert manifest.trained() == set()
    assert not os.path.exists(manifest.path)


def test_manifest_tells_what_happened(manifest: Manifest) -> None:
    manifest.append_written(info("a"))
    manifest.append_written(info("b", step=1))
    manifest.append_trained(info("a").uri, 0)
    again = Manifest(manifest.path)
    assert list(again.written().values()) == [info("a"), info("b", step=1)]
    assert again.trained() == {info("a").uri}
    assert [json.loads(line)["event"] for line in Path(manifest.path).read_text().splitlines()] == [
        "written",
        "written",
        "trained",
    ]


def test_a_shard_is_trained_exactly_once(manifest: Manifest) -> None:
    manifest.append_written(info("a"))
    manifest.append_trained(info("a").uri, 4)
    before = Path(manifest.path).read_bytes()
    with pytest.raises(ValueError, match=r"^/runs/a\.arrow: cannot be trained at step 5: found it already trained"):
        Manifest(manifest.path).append_trained(info("a").uri, 5)
    assert Path(manifest.path).read_bytes() == before
    manifest.append_written(info("a", step=6))
    assert manifest.trained() == set()
    manifest.append_trained(info("a").uri, 6)
    assert manifest.trained() == {info("a").uri}


def test_a_shard_never_written_cannot_be_trained_or_superseded(manifest: Manifest) -> None:
    with pytest.raises(ValueError, match=r"^/runs/a\.arrow: cannot be trained at step 1: found no such shard"):
        manifest.append_trained(info("a").uri, 1)
    with pytest.raises(ValueError, match=r"^/runs/a\.arrow: cannot be superseded: found no such shard"):
        manifest.append_superseded(info("a").uri)
    assert Path(manifest.path).read_bytes() == b""


def test_a_superseded_shard_is_gone_until_written_again(manifest: Manifest) -> None:
    manifest.append_written(info("a"))
    manifest.append_trained(info("a").uri, 0)
    manifest.append_superseded(info("a").uri)
    assert manifest.written() == {}
    assert manifest.trained() == set()
    with pytest.raises(ValueError, match="found no such shard"):
        manifest.append_trained(info("a").uri, 1)
    manifest.append_written(info("a", step=2))
    manifest.append_trained(info("a").uri, 2)
    assert manifest.written() == {info("a").uri: info("a", step=2)}


def test_a_crash_at_any_byte_of_a_line_loses_that_line_only(manifest: Manifest) -> None:
    manifest.append_written(info("a"))
    first = Path(manifest.path).read_bytes()
    manifest.append_written(info("b"))
    second = Path(manifest.path).read_bytes()[len(first) :]
    for cut in range(len(second)):
        Path(manifest.path).write_bytes(first + second[:cut])
        assert list(manifest.written()) == [info("a").uri]
        manifest.append_written(info("c"))
        assert list(manifest.written()) == [info("a").uri, info("c").uri]
        assert Path(manifest.path).read_bytes().startswith(first + b"{")


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "",
        "[]",
        '{"uri": "x"}',
        '{"event": "burnt", "uri": "x"}',
        '{"event": "written", "uri": "x"}',
        '{"event": "trained", "uri": "never", "step": 1}',
    ],
)
def test_a_malformed_line_is_named(manifest: Manifest, line: str) -> None:
    manifest.append_written(info("a"))
    with open(manifest.path, "a", encoding="utf-8") as file:
        file.write(line + "\n")
    content = Path(manifest.path).read_bytes()
    for act in (manifest.written, manifest.trained, lambda: manifest.append_written(info("b"))):
        with pytest.raises(ValueError, match=r"manifest\.jsonl: line 2: found .*, expected a manifest event$"):
            act()
    assert Path(manifest.path).read_bytes() == content


def three_events(path: Path) -> tuple[bytes, list[tuple[list[str], set[str]]]]:
    """A manifest's bytes, and what stands and what is trained after none, one, two and three of its events."""
    manifest, seen = Manifest(path), [(list[str](), set[str]())]
    info = ShardInfo(uri="shards/step-000003.arrow", step=3, rows=8, tokens=64, sha256="0123456789abcdef" * 4)
    for append in (
        lambda: manifest.append_written(info),
        lambda: manifest.append_trained(info.uri, 3),
        lambda: manifest.append_superseded(info.uri),
    ):
        append()
        seen.append((list(manifest.written()), manifest.trained()))
    return path.read_bytes(), seen


def test_a_manifest_with_any_bit_turned_round_is_refused_by_name(tmp_path: Path) -> None:
    """But for the newest line's end: that line then never happened, as if it had been torn off."""
    path = tmp_path / "manifest.jsonl"
    content, seen = three_events(path)
    for place in range(len(content)):
        for bit in {place % 8, 7 - place % 8}:
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            if place == len(content) - 1:
                assert (list(Manifest(path).written()), Manifest(path).trained()) == seen[2]
                continue
            with pytest.raises(ValueError, match=r"manifest\.jsonl: line \d: found .* expected a manifest event"):
                Manifest(path).written()


def test_a_manifest_cut_anywhere_holds_the_events_before_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    content, seen = three_events(path)
    for place in range(len(content)):
        path.write_bytes(content[:place])
        found = list(Manifest(path).written()), Manifest(path).trained()
        assert found == seen[content[:place].count(b"\n")]


def test_lines_of_older_runs_have_no_checksum(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    content, seen = three_events(path)
    older = [{key: value for key, value in json.loads(line).items() if key != "crc32"} for line in content.splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in older[:2]))
    assert (list(Manifest(path).written()), Manifest(path).trained()) == seen[2]
