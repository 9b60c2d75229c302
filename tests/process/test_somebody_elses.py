"""A run from somebody else is opened from its own folder: what it names elsewhere is read on a flag only."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster.__main__ import main
from evidence.manifest import Manifest
from evidence.records import ShardInfo
from evidence.shards import write_shard
from tests.fakes import fake_run
from tests.runs import hub_at
from tests.unit.test_view import record, shard

PAGE = "theirs.html"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was asked of a server that is both the hub and an object store, and has nothing."""
    paths: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(name, value)
    paths.append(f"127.0.0.1:{server.server_port}")
    hub_at(f"http://{paths[0]}", monkeypatch)
    yield paths
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A run of two steps, whose shards are in its folder, and whose model is an id of the hub."""
    run = fake_run(tmp_path / "theirs", {0: {"selfname": (0, 4)}}, model={"path": "somebody/model"})
    for step in range(2):
        info = write_shard(shard([record(0, 4, False)], step), str(run / "shards"), f"step-{step:06d}.arrow")
        Manifest(run / "manifest.jsonl").append_written(info)
    return run


def renamed(run: Path, uri: str) -> None:
    """The manifest says that the last shard is there, and nothing else of it has changed."""
    manifest = Manifest(run / "manifest.jsonl")
    last = list(manifest.written().values())[-1]
    manifest.append_superseded(last.uri)
    manifest.append_written(ShardInfo(uri, last.step, last.rows, last.tokens, last.sha256))


def opened(run: Path, out: Path, *flags: str) -> dict[str, int]:
    """The exit code of each command on it."""
    out.mkdir(exist_ok=True)
    commands = {"shards": [], "view": ["--out", str(out / PAGE)], "report": ["--out", str(out / "report")]}
    codes = {name: main([name, str(run), *more, *flags]) for name, more in commands.items()}
    return codes | {"dashboard": main(["dashboard", str(run), "--out", str(out / "dashboard.html"), *flags])}


def test_what_is_in_the_folder_is_enough(theirs: Path, tmp_path: Path, asked: list[str]) -> None:
    moved = theirs.rename(tmp_path / "downloads")  # where it was written is not here
    assert opened(moved, tmp_path) == {"shards": 0, "view": 0, "report": 0, "dashboard": 0}
    page = (tmp_path / PAGE).read_text()
    assert "--follow reads the tokenizer of its model, somebody/model" in page
    assert len(asked) == 1  # nothing


def test_a_shard_in_another_folder_is_read_on_a_flag(theirs: Path, tmp_path: Path, asked: list[str]) -> None:
    private = tmp_path / "mine" / "step-000001.arrow"
    private.parent.mkdir()
    (theirs / "shards" / private.name).rename(private)
    renamed(theirs, str(private))
    assert opened(theirs, tmp_path) == {"shards": 2, "view": 2, "report": 0, "dashboard": 0}
    assert not (tmp_path / PAGE).exists() and len(asked) == 1
    assert main(["shards", str(theirs), "--follow"]) == 0
    (theirs / "shards" / private.name).symlink_to(private)
    assert main(["shards", str(theirs)]) == 2


def test_an_address_in_the_folder_is_asked_on_a_flag(
    theirs: Path, tmp_path: Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (theirs / "shards" / "step-000001.arrow").unlink()
    renamed(theirs, f"s3://bucket/run/step-000001.arrow?scheme=http&region=a&endpoint_override={asked[0]}")
    assert opened(theirs, tmp_path) == {"shards": 2, "view": 2, "report": 0, "dashboard": 0}
    told = capsys.readouterr().err.splitlines()[0]
    assert told.startswith(f"edge-opd: {theirs}: found a shard at s3://bucket/run/step-000001.arrow")
    assert told.endswith("expected it in this folder: --follow reads what a run that you trust names elsewhere")
    assert len(asked) == 1
    assert main(["shards", str(theirs), "--follow"]) == 1
    assert any("bucket" in path for path in asked[1:])


LINKED = ("config.toml", "manifest.jsonl", "metrics.jsonl", "probes.jsonl", "student", "answers", "answers/a.jsonl")


@pytest.mark.parametrize("name", LINKED)
def test_a_link_out_of_the_folder_is_followed_on_a_flag(
    theirs: Path, tmp_path: Path, asked: list[str], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """To what would be read, were it in the folder."""
    private, place = tmp_path / "private", theirs / name
    place.parent.mkdir(exist_ok=True)
    if name in ("student", "answers"):
        private.mkdir()
    else:
        private.write_bytes(place.read_bytes() if place.exists() else b"")
        place.unlink(missing_ok=True)
    place.symlink_to(private)
    out = tmp_path / "out"
    assert set(opened(theirs, out).values()) == {2} and not list(out.iterdir())
    lines = capsys.readouterr().err.splitlines()
    expected = f"edge-opd: {place}: found a link to {private}, expected a file of this folder: --follow reads"
    assert len(lines) == 4 and all(line.startswith(expected) for line in lines)
    for command in ("trace", "export-metrics"):
        assert main([command, str(theirs), "--out", str(out / "a")]) == 2
        assert f"{place}: found a link to" in capsys.readouterr().err
    assert len(asked) == 1
    del (codes := opened(theirs, out, "--follow"))["view"]  # which asks the hub for its model, as told
    assert set(codes.values()) == {0}


def test_a_link_within_the_folder_and_one_that_the_reader_names_are_followed(theirs: Path, tmp_path: Path) -> None:
    (theirs / "metrics.jsonl").rename(theirs / "kept.jsonl")
    (theirs / "metrics.jsonl").symlink_to("kept.jsonl")
    (tmp_path / "link").symlink_to(theirs)
    assert set(opened(tmp_path / "link", tmp_path / "out").values()) == {0}


DEEP = ("export/additional_chat_templates/a.jinja", "export/additional_chat_templates", "answers/of/old/a.jsonl")


@pytest.mark.parametrize("name", DEEP)
def test_a_link_out_of_the_folder_is_found_at_any_depth(
    theirs: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    private, place = tmp_path / "private", theirs / name
    private.write_text("mine")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(private)
    assert set(opened(theirs, tmp_path / "out").values()) == {2}
    assert f"edge-opd: {place}: found a link to {private}, expected a file" in capsys.readouterr().err


def test_a_folder_behind_a_link_within_is_looked_at_and_a_circle_ends(
    theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, kept = tmp_path / "private", theirs / "kept" / "deep"
    kept.mkdir(parents=True)
    (theirs / "answers").symlink_to("kept")
    (kept / "round").symlink_to("..")
    (kept / "itself").symlink_to("itself")
    assert set(opened(theirs, tmp_path / "out").values()) == {0}
    (kept / "a.jsonl").symlink_to(private)
    assert set(opened(theirs, tmp_path / "out").values()) == {2}
    assert f"{theirs / 'answers' / 'deep' / 'a.jsonl'}: found a link to {private}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["checkpoints/step-000001/complete.json", "checkpoints", "probes.jsonl"])
def test_an_export_follows_no_link_out_of_the_folder(
    theirs: Path, tmp_path: Path, asked: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the others do not read may be on another disk for them."""
    private, place = tmp_path / "private", theirs / name
    place.unlink(missing_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(private)
    assert main(["export", str(theirs)]) == 2
    assert f"edge-opd: {place}: found a link to {private}" in capsys.readouterr().err
    assert main(["export", str(theirs), "--follow"]) == 2
    assert "found no checkpoint" in capsys.readouterr().err and len(asked) == 1
    assert set(opened(theirs, tmp_path / "out").values()) == {0 if "checkpoints" in name else 2}
