"""What a store is asked for and what it may answer: names, environment, rights, silence, and errors of all kinds."""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs as pafs

from cluster.__main__ import main
from evidence.files import check_writable
from evidence.manifest import Manifest
from evidence.shards import read_shard, write_shard
from evidence.storage import join, locate, standard
from tests.process.test_object_store import table
from tests.runs import RECIPE, ROOT
from tests.s3 import Asked, Door, Refuses, at, keys, new_bucket, options, unreachable

pytestmark = pytest.mark.usefixtures("credentials")


@pytest.fixture
def bucket(port: int) -> str:
    return new_bucket(port)


# Names


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ("run#1", "run#1"),
        ("a#b#c/x", "a#b#c/x"),
        ("run%231", "run#1"),
        ("is it%3F", "is it?"),
        ("100%", "100%"),
        ("50%-off", "50%-off"),
        ("a b", "a b"),
        ("a+b=c&d;e", "a+b=c&d;e"),
        ("Läufe/é", "Läufe/é"),
        ("実行", "実行"),
        ("plain/", "plain"),
        ("plain//", "plain"),
    ],
)
def test_each_shard_has_its_own_name_under_the_place_that_was_meant(
    port: int, bucket: str, tmp_path: Path, written: str, key: str
) -> None:
    root = f"s3://{bucket}/{written}{options(port)}"
    infos = [write_shard(table(step), root, f"step-{step:06d}.arrow") for step in range(2)]
    assert keys(port, bucket)[-2:] == [f"{key}/step-000000.arrow", f"{key}/step-000001.arrow"]
    assert len({info.uri for info in infos}) == 2
    manifest = Manifest(tmp_path / "manifest.jsonl")
    for step, info in enumerate(infos):
        assert read_shard(info.uri, info).equals(table(step)) and standard(info.uri) == info.uri
        manifest.append_written(info)
    assert list(Manifest(tmp_path / "manifest.jsonl").written()) == [info.uri for info in infos]


@pytest.mark.parametrize(
    ("root", "uri"),
    [
        ("s3://bucket", "s3://bucket/a.arrow"),
        ("s3://bucket/", "s3://bucket/a.arrow"),
        ("gs://bucket/x y?scheme=http", "gs://bucket/x%20y/a.arrow?scheme=http"),
        ("hdfs:///runs#2", "hdfs:///runs%232/a.arrow"),
        ("fsspec+memory://x/run #1", "fsspec+memory://x/run #1/a.arrow"),
        ("fsspec+memory://x/what?/", "fsspec+memory://x/what?/a.arrow"),
    ],
)
def test_a_name_is_joined_to_the_path(root: str, uri: str) -> None:
    assert join(root, "a.arrow") == uri


def test_other_filesystems_take_the_same_characters(tmp_path: Path) -> None:
    for scheme in ("file", "fsspec+file"):
        info = write_shard(table(), f"{scheme}://{tmp_path}/{scheme} #1+é", "a.arrow")
        assert read_shard(info.uri, info).equals(table())
        assert (tmp_path / f"{scheme} #1+é" / "a.arrow").is_file()
    info = write_shard(table(), str(tmp_path / "what?#1 100%"), "a.arrow")
    assert read_shard(info.uri, info).equals(table()) and (tmp_path / "what?#1 100%" / "a.arrow").is_file()


@pytest.mark.parametrize("uri", ["s3://bucket/a\nb", "gs://bucket/\x00"])
def test_a_control_character_is_refused(uri: str) -> None:
    for act in (lambda: join(uri, "a.arrow"), lambda: check_writable(uri)):
        with pytest.raises(ValueError, match=rf"^{re.escape(repr(uri))}: found a control character, expected a URI$"):
            act()


# The environment


def header(asked: Asked, name: str) -> str:
    return asked.headers.get(name, "")


@pytest.mark.parametrize(
    ("environment", "where"),
    [
        ({"AWS_ENDPOINT_URL": "{door}"}, ""),
        ({"AWS_ENDPOINT_URL_S3": "{door}", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, ""),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "?endpoint_override={door}&region=us-east-1"),
        ({"AWS_ENDPOINT_URL": "{door}", "AWS_REGION": "eu-central-1"}, ""),
        ({"AWS_ENDPOINT_URL": "{door}", "AWS_DEFAULT_REGION": "eu-west-3"}, ""),
        ({"AWS_ENDPOINT_URL": "{door}", "AWS_SESSION_TOKEN": "of-a-session"}, "?region=us-east-1"),
        ({"AWS_ENDPOINT_URL": "{door}", "AWS_PROFILE": "other", "AWS_SHARED_CREDENTIALS_FILE": "{file}"}, ""),
        ({"AWS_ENDPOINT_URL": "{door}", "AWS_PROFILE": "other", "AWS_CONFIG_FILE": "{file}"}, ""),
        ({"AWS_ENDPOINT_URL": "{door}", "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"}, ""),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else None,
)
def test_the_environment_means_what_it_means_to_pyarrows_own_client(
    port: int, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], where: str
) -> None:
    profile = tmp_path / "profile"
    header_line = "[profile other]" if "AWS_CONFIG_FILE" in environment else "[other]"
    profile.write_text(f"{header_line}\nregion = ap-south-1\naws_access_key_id = OTHER\naws_secret_access_key = s\n")
    if "AWS_PROFILE" in environment:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
    door = Door(port)
    with at(door) as front:
        known = {"door": f"http://127.0.0.1:{front}", "file": str(profile)}
        for name, value in environment.items():
            monkeypatch.setenv(name, value.format(**known))
        uri = f"s3://{bucket}/a{where.format(**known)}"
        found = []
        for filesystem, path in (pafs.FileSystem.from_uri(uri), locate(uri)):
            assert filesystem is not None
            door.asked.clear()
            with filesystem.open_output_stream(path) as stream:
                stream.write(b"x")
            filesystem.open_input_file(path).read()
            signed = [
                re.sub(r"/\d{8}/|Signature=\w+|SignedHeaders=\S+", "/", header(a, "authorization")) for a in door.asked
            ]
            tokens = [header(asked, "x-amz-security-token") for asked in door.asked]
            encodings = [header(asked, "content-encoding") for asked in door.asked]
            found.append((signed, tokens, encodings, [asked.method for asked in door.asked]))
    assert found[0] == found[1]
    assert len(found[0][0]) == 5  # three of an upload, two of a download: the door was asked, not Amazon
    told = " ".join([*found[0][0], *found[0][1]])
    for name, shown in (("AWS_REGION", "eu-central-1"), ("AWS_DEFAULT_REGION", "eu-west-3"), ("AWS_PROFILE", "OTHER"),
                        ("AWS_SESSION_TOKEN", "of-a-session")):  # fmt: skip
        assert (shown in told) == (name in environment), told


class Lender(BaseHTTPRequestHandler):
    """The service beside a container that lends its role's credentials."""

    def do_GET(self) -> None:
        lent = {
            "AccessKeyId": "LENT",
            "SecretAccessKey": "s",
            "Token": "of-a-role",
            "Expiration": "2099-01-01T00:00:00Z",
        }
        allowed = self.headers.get("authorization") == "of-a-container"
        body = json.dumps(lent if allowed else {}).encode()
        self.send_response(200 if allowed else 403)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_containers_role_is_asked_for_credentials(
    port: int, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "of-a-container")
    door = Door(port)
    with ThreadingHTTPServer(("127.0.0.1", 0), Lender) as lender, at(door) as front:
        threading.Thread(target=lender.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{lender.server_port}/role")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{front}")
        uri = f"s3://{bucket}/a?region=us-east-1"

        def is_of_the_role(client: Callable[[str], tuple[pafs.FileSystem | None, str]]) -> bool:
            """Whether all that the client asks of the store is signed by what the lender lends."""
            filesystem, path = client(uri)
            assert filesystem is not None
            door.asked.clear()
            with suppress(OSError), filesystem.open_output_stream(path) as stream:
                stream.write(b"x")
            tokens = [header(asked, "x-amz-security-token") for asked in door.asked]
            lent = ["Credential=LENT/" in header(asked, "authorization") for asked in door.asked]
            return tokens == ["of-a-role"] * 3 and all(lent)

        for client in (pafs.FileSystem.from_uri, locate):  # each waits for the lender for a second
            assert any(is_of_the_role(client) for _ in range(10))
        lender.shutdown()


# Rights


def inside(bucket: str, prefix: str) -> Refuses:
    """A policy that allows reading and writing objects under the prefix, and nothing else."""

    def refuses(asked: Asked) -> bool:
        path, _, query = asked.path.partition("?")
        return not path.startswith(f"/{bucket}/{prefix}/") or "list-type" in query

    return refuses


def test_a_place_that_may_be_written_is_taken_with_no_right_beyond_it(port: int, bucket: str) -> None:
    door = Door(port, inside(bucket, "runs/mine"))
    with at(door) as front:
        root = f"s3://{bucket}/runs/mine{options(front)}"
        info = write_shard(table(), root, "a.arrow")
        assert {asked.method for asked in door.asked} == {"POST", "PUT"}
        assert keys(port, bucket) == ["runs/", "runs/mine/", "runs/mine/a.arrow"]  # the folders are pyarrow's reading
        read_shard(info.uri, info)
        check_writable(root)
        assert not any(door.refuses(asked) for asked in door.asked)
    assert keys(port, bucket) == ["runs/", "runs/mine/", "runs/mine/a.arrow"]


def test_a_store_that_lets_nobody_delete_can_be_written_to(port: int, bucket: str) -> None:
    with at(Door(port, lambda asked: asked.method == "DELETE")) as front:
        check_writable(f"s3://{bucket}/runs{options(front)}")
    assert [key.startswith("runs/check-") for key in keys(port, bucket)] == [False, True]


@pytest.mark.parametrize("methods", [("POST", "PUT"), ("GET", "HEAD")])
def test_a_right_that_lacks_is_told(port: int, bucket: str, methods: tuple[str, ...]) -> None:
    with at(Door(port, lambda asked: asked.method in methods)) as front:
        root = f"s3://{bucket}/runs{options(front)}"
        with pytest.raises(ValueError, match=rf"^{re.escape(root)}: found .*ACCESS_DENIED.*, expected a place that"):
            check_writable(root)


def test_a_bucket_is_made_where_the_uri_says_so(port: int) -> None:
    check_writable(f"s3://made-by-us/runs{options(port)}&allow_bucket_creation=true")
    write_shard(table(), f"s3://made-by-us/runs{options(port)}", "a.arrow")
    assert "runs/a.arrow" in keys(port, "made-by-us")


# What comes back


def test_a_store_that_keeps_an_uploads_frame_is_told_with_what_helps(
    port: int, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with at(Door(port, keeps_frame=True)) as front:
        root = f"s3://{bucket}/runs{options(front)}"
        message = (
            rf"^{re.escape(root)}: found \d+ bytes where 38 were written and more around them, expected no more: "
            "set AWS_REQUEST_CHECKSUM_CALCULATION=when_required on every node"
        )
        with pytest.raises(ValueError, match=message):
            check_writable(root)
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        check_writable(root)
        info = write_shard(table(), root, "a.arrow")
        assert read_shard(info.uri, info).equals(table())


def test_a_store_that_changes_what_is_written_is_told(tmp_path: Path) -> None:
    with filesystem("cutting", tmp_path) as root:
        message = rf"^{re.escape(root)}: found 3 bytes where 38 were written, expected a place that keeps what is wri"
        with pytest.raises(ValueError, match=message):
            check_writable(root)


# Silence


@pytest.mark.parametrize("scheme", ["gs", "gcs", "s3", "fsspec+stuck"])
def test_a_store_that_is_silent_is_given_up_by_our_own_deadline(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client has still not returned then: the threads that were there before are not all."""
    monkeypatch.setattr("evidence.files.CHECK_S", 0.5)
    user = "anonymous@" if scheme.startswith("g") else ""
    limit = {"gs": "&retry_limit_seconds=600", "gcs": "&retry_limit_seconds=600", "s3": "&region=us-east-1"}
    with unreachable("silent") as port, filesystem("stuck", tmp_path) as stuck:
        root = f"{scheme}://{user}bucket/runs?endpoint_override=127.0.0.1:{port}&scheme=http"
        root = stuck if scheme == "fsspec+stuck" else root + limit[scheme]
        before = set(threading.enumerate())
        with pytest.raises(ValueError, match=rf"^{re.escape(root)}: found 'no answer within 0.5 s', expected a place"):
            check_writable(root)
        assert set(threading.enumerate()) - before


def test_a_client_that_never_returns_holds_no_process_up(tmp_path: Path) -> None:
    """The default deadline is patched, the thread that hangs in Google's client is real."""
    script = "import evidence.files, sys; evidence.files.CHECK_S = 1.0; evidence.files.check_writable(sys.argv[1])"
    with unreachable("silent") as port:
        options = f"endpoint_override=127.0.0.1:{port}&scheme=http&retry_limit_seconds=600"
        root = f"gs://anonymous@bucket/runs?{options}"
        command = [sys.executable, "-c", script, root]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(f"ValueError: {root}: found 'no answer")


def test_the_limit_on_googles_retries_is_ours_unless_it_is_given() -> None:
    for root, seconds in (("gs://anonymous@b/x", 20), ("gs://anonymous@b/x?retry_limit_seconds=3", 3)):
        found, _ = locate(root)
        assert found is not None and found.__reduce__()[1][0]["retry_time_limit"].total_seconds() == seconds


# Errors of every kind


class NoKeyring(Exception):
    """As botocore's and azure's own: no OSError."""


@contextmanager
def filesystem(kind: str, folder: Path) -> Iterator[str]:
    """The URI of a folder behind fsspec whose filesystem has a fault of its own."""

    class Faulty(LocalFileSystem):
        protocol = kind

        def open(self, path: str, mode: str = "rb", **options: object) -> object:
            if kind == "stuck":
                time.sleep(30)
            if kind == "keyless":
                raise NoKeyring("found no keyring\nbeside the door")
            opened = super().open(path, mode, **options)
            if kind == "cutting" and mode == "wb":
                opened.write(b"cut")
                return super().open(f"{path}.lost", mode, **options)
            return opened

        def mv(self, *arguments: object, **options: object) -> None:
            if kind == "flat":
                raise NotImplementedError("rename needs a hierarchical namespace")
            if kind == "nailed":
                raise NoKeyring("found no keyring")
            super().mv(*arguments, **options)

    fsspec.register_implementation(kind, Faulty, clobber=True)
    yield f"fsspec+{kind}://{folder}/runs"


def test_an_error_that_is_no_oserror_is_one_line(tmp_path: Path) -> None:
    with filesystem("keyless", tmp_path) as root:
        said = r"NoKeyring: found no keyring beside the door"
        with pytest.raises(ValueError, match=rf"^{re.escape(root)}: found '{said}', expected a place that shards can"):
            check_writable(root)
        with pytest.raises(OSError, match=rf"^cannot write shard: {said}: '{re.escape(root)}/a.arrow'$"):
            write_shard(table(), root, "a.arrow")
        (tmp_path / "runs" / "a.arrow").write_bytes(b"")
        with pytest.raises(OSError, match=rf"^cannot read shard: {said}: '{re.escape(root)}/a.arrow'$"):
            read_shard(join(root, "a.arrow"))


def test_botocores_own_error_is_one_line_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    command = ["run", str(RECIPE), "--run-dir", str(tmp_path / "run"), "--set", "run.storage=fsspec+s3://bucket/runs"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "edge-opd: run.storage: fsspec+s3://bucket/runs: found 'ProfileNotFound: The config profile"
    )
    assert error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_store_without_rename_gets_a_copy_and_keeps_no_temporary_object(tmp_path: Path) -> None:
    """As Azure's without hierarchical namespace."""
    with filesystem("flat", tmp_path) as root:
        check_writable(root)
        info = write_shard(table(), root, "a.arrow")
        assert read_shard(info.uri, info).equals(table())
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a.arrow"]


def test_a_failed_write_leaves_no_temporary_object(tmp_path: Path) -> None:
    with (
        filesystem("nailed", tmp_path) as root,
        pytest.raises(OSError, match=r"^cannot write shard: NoKeyring: found "),
    ):
        write_shard(table(), root, "a.arrow")
    assert list((tmp_path / "runs").iterdir()) == []
