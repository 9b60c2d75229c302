"""Shards in an object store: a real S3 server on loopback and pyarrow's own client, and what goes wrong there."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs as pafs

from cluster.__main__ import main
from cluster.commands.shards import statistics
from cluster.config import load_recipe
from evidence.files import check_writable
from evidence.manifest import Manifest
from evidence.records import ShardInfo
from evidence.rule import EvidenceConfig, judge_all
from evidence.schema import to_table
from evidence.shards import read_shard, write_shard
from evidence.sidecar import read_student, write_student
from evidence.storage import locate, refuse_credentials
from tests.fakes import scored_step
from tests.runs import RECIPE, ROOT
from tests.s3 import CREDENTIALS, new_bucket, options, s3_server, unreachable

LENGTHS = (5, 1, 8, 3)
RULE = EvidenceConfig(soft="rlsd")


@pytest.fixture
def store(port: int, credentials: None) -> str:
    """The URI of an empty prefix in a bucket of its own."""
    return f"s3://{new_bucket(port)}/runs/shards{options(port)}"


def table(step: int = 3, lengths: tuple[int, ...] = LENGTHS) -> pa.Table:
    records = judge_all(scored_step(lengths, seed=step), [None] * len(lengths), RULE, step)
    keys = ("run_id", "model_id", "weights_digest", "code_version")
    return to_table(records, dict.fromkeys(keys, "x") | {"step": str(step), "mask_rule": RULE.to_json()})


def names(root: str) -> list[str]:
    filesystem, path = pafs.FileSystem.from_uri(root)
    return sorted(found.base_name for found in filesystem.get_file_info(pafs.FileSelector(path)))


def content(uri: str) -> bytes:
    filesystem, path = pafs.FileSystem.from_uri(uri)
    return bytes(filesystem.open_input_file(path).read())


def replace_content(uri: str, data: bytes) -> None:
    filesystem, path = pafs.FileSystem.from_uri(uri)
    with filesystem.open_output_stream(path) as stream:
        stream.write(data)


# What is written comes back


def test_a_shard_comes_back_bit_for_bit(store: str, tmp_path: Path) -> None:
    info = write_shard(table(), store, "step-000003.arrow")
    assert info.uri == store.replace("/shards?", "/shards/step-000003.arrow?")
    assert (info.step, info.rows, info.tokens) == (3, len(LENGTHS), sum(LENGTHS))
    assert read_shard(info.uri, info).equals(table(), check_metadata=True)
    local = write_shard(table(), str(tmp_path), "step-000003.arrow")
    assert content(info.uri) == Path(local.uri).read_bytes()
    assert names(store) == ["step-000003.arrow"]


def test_another_content_than_the_manifest_says_is_found(store: str) -> None:
    info = write_shard(table(), store, "a.arrow")
    whole = content(info.uri)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (bytes(flipped), whole[:-9], b""):
        replace_content(info.uri, damaged)
        with pytest.raises(ValueError, match=rf"^{re.escape(info.uri)}: sha256: found \w+, expected {info.sha256}$"):
            read_shard(info.uri, info)
    with pytest.raises(ValueError, match=r"a\.arrow\?.*: found 0 bytes .*, expected a whole Arrow IPC file$"):
        read_shard(info.uri)


def test_a_shard_written_again_is_replaced_and_no_longer_the_first(store: str) -> None:
    first = write_shard(table(), store, "a.arrow")
    second = write_shard(table(step=4), store, "a.arrow")
    assert read_shard(second.uri, second).equals(table(step=4))
    with pytest.raises(ValueError, match=f"sha256: found {second.sha256}, expected {first.sha256}$"):
        read_shard(first.uri, first)
    assert names(store) == ["a.arrow"]


def big_table(step: int) -> pa.Table:
    return table(step, (100_000,))


def test_a_shard_appears_whole_whenever_its_writer_dies(store: str) -> None:
    """A reader beside a writer of two contents, which is then killed: each read is one of the two."""
    script = """
        import sys
        from tests.process.test_object_store import big_table, write_shard
        both = [big_table(step) for step in (0, 1)]
        for number in range(1000):
            write_shard(both[number % 2], sys.argv[1], "a.arrow")
            print(number, flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), store]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert writer.stdout is not None and writer.stdout.readline() == b"0\n"
    uri = store.replace("/shards?", "/shards/a.arrow?")
    found = [read_shard(uri) for _ in range(20)]
    writer.kill()
    writer.communicate()
    both = [big_table(step) for step in (0, 1)]
    assert all(any(shard.equals(whole) for whole in both) for shard in [*found, read_shard(uri)])
    assert [name for name in names(store) if not name.startswith(".")] == ["a.arrow"]


def test_a_missing_shard_is_named(store: str) -> None:
    write_shard(table(), store, "a.arrow")
    uri = store.replace("/shards?", "/shards/missing.arrow?")
    with pytest.raises(FileNotFoundError, match=r"cannot read shard: .*missing\.arrow"):
        read_shard(uri)


def test_the_students_log_probs_come_back(store: str) -> None:
    student = {"r0": np.array([-0.0, -1e-30, -3.4e38], np.float32), "r1": np.array([], np.float32)}
    write_student(student, store, 12)
    back = read_student(store, 12)
    assert {name: values.tobytes() for name, values in back.items()} == {
        name: values.tobytes() for name, values in student.items()
    }
    assert read_student(store, 13) == {}


def run_of(folder: Path, root: str) -> list[ShardInfo]:
    """A run directory of two steps whose shards are under `root`."""
    folder.mkdir()
    manifest = Manifest(folder / "manifest.jsonl")
    infos = [write_shard(table(step), root, f"step-{step:06d}.arrow") for step in range(2)]
    for info in infos:
        manifest.append_written(info)
        manifest.append_trained(info.uri, info.step)
    return infos


def test_the_statistics_of_a_run_are_those_of_local_shards(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    infos = run_of(tmp_path / "remote", store)
    assert all(info.uri.startswith("s3://") for info in infos)
    run_of(tmp_path / "local", str(tmp_path / "shards"))
    assert main(["shards", str(tmp_path / "remote"), "--json", "--tau", "0.5", "--follow"]) == 0
    local = statistics(tmp_path / "local", tau=0.5, follow=True)
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(local))
    replace_content(infos[1].uri, b"ARROW1")
    assert main(["shards", str(tmp_path / "remote"), "--follow"]) == 2
    assert capsys.readouterr().err.startswith(f"edge-opd: {infos[1].uri}: sha256: found ")


# What is refused before anything starts


def test_a_place_that_can_be_written_to_is_left_as_it_was(store: str, tmp_path: Path) -> None:
    write_shard(table(), store, "a.arrow")
    check_writable(store)
    assert names(store) == ["a.arrow"]
    check_writable(str(tmp_path / "shards"))
    assert list((tmp_path / "shards").iterdir()) == []


def test_a_local_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match=rf"^{tmp_path}/file: found 'File exists', expected a place that shards can be"
    ):
        check_writable(f"{tmp_path}/file")


def test_a_missing_bucket(port: int, credentials: None) -> None:
    root = f"s3://nobodys/runs{options(port)}"
    message = (
        rf"^{re.escape(root)}: found \".*bucket 'nobodys': AWS Error NO_SUCH_BUCKET.*\", expected a place that shards"
    )
    with pytest.raises(ValueError, match=message):
        check_writable(root)
    with pytest.raises(OSError, match=r"^cannot write shard: .*NO_SUCH_BUCKET.*'s3://nobodys/runs/a\.arrow"):
        write_shard(table(), root, "a.arrow")


def test_credentials_that_the_store_does_not_know(credentials: None) -> None:
    with s3_server(INITIAL_NO_AUTH_ACTION_COUNT="0") as port:
        root = f"s3://bucket/runs{options(port)}"
        with pytest.raises(ValueError, match=rf"^{re.escape(root)}: found .*INVALID_ACCESS_KEY_ID.*, expected a place"):
            check_writable(root)


@pytest.mark.parametrize("kind", ["closed", "silent"])
def test_a_store_that_does_not_answer_is_given_up(
    kind: str, credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the client itself, after some 20 s for three attempts; without a limit of ours it takes 200 s."""
    monkeypatch.setattr("evidence.files.CHECK_S", 150.0)
    with unreachable(kind) as port:
        root = f"s3://bucket/runs{options(port)}"
        with pytest.raises(
            ValueError, match=rf"^{re.escape(root)}: found .*NETWORK_CONNECTION.*, expected a pl"
        ) as caught:
            check_writable(root)
        assert "\n" not in str(caught.value)


def test_a_run_without_its_store_ends_before_it_starts(
    credentials: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2 with one line, and no run folder: another try with the right URI would not be the same recipe."""
    with unreachable("closed") as port:
        root = f"s3://bucket/runs{options(port)}"
        command = ["run", str(RECIPE), "--run-dir", str(tmp_path / "run"), "--set", f"run.storage={root}"]
        assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"edge-opd: run.storage: {root}: found ") and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_statistics_without_the_store_exit_1_with_one_line(
    credentials: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with unreachable("closed") as port:
        uri = f"s3://bucket/runs/a.arrow{options(port)}"
        Manifest(tmp_path / "manifest.jsonl").append_written(ShardInfo(uri, step=0, rows=1, tokens=1, sha256="0" * 64))
        assert main(["shards", str(tmp_path), "--follow"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("edge-opd: cannot read shard: ") and uri in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s9://bucket/runs", "Unrecognized filesystem type"),
        ("s3:// bucket", "Cannot parse URI"),
        ("fsspec+nosuch://bucket", "Protocol not known: nosuch"),
    ],
)
def test_a_uri_that_cannot_be_opened_is_named(uri: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(uri)}: found {message}.*, expected a path or a URI that"):
        check_writable(uri)


# Credentials


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://KEY:{SECRET}@bucket/runs?region=x",
        f"s3://KEY:{SECRET}/with+slash@bucket/runs",  # not escaped, as it should be
        f"s3://{SECRET}@bucket/runs",
        f"abfs://:{SECRET}@account/container",
        f"s3://KEY%3A{SECRET}%40bucket/runs",
        f"S3://{SECRET}@bucket/runs",
        f"s3:///AK:{SECRET}@bucket/runs",
        f"fsspec+https://{SECRET}@host/runs",
        f"fsspec+s3://{SECRET}@bucket/runs",
        f"hf://{SECRET}@datasets/me/rows",
        f"hf://{SECRET}%40datasets/me/rows",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    refused(uri, r"found credentials in the URI")


@pytest.mark.parametrize(
    "uri",
    [
        f"abfs://container@account/runs?client_secret={SECRET}",
        f"abfs://container@account/runs?client%5Fsecret={SECRET}",
        f"abfss://container@account/runs?enable_tls=true&sas={SECRET}",
        f"fsspec+abfs://container/runs?sv=2024&sig={SECRET}",
        f"fsspec+abfs://container/runs?sv%3D{SECRET}",
        f"hf://datasets/me/rows?key={SECRET}",
        f"s3://bucket/runs?region=x&session_token={SECRET}",
        f"s3://bucket/runs?region=x&accesskey={SECRET}",
        f"s3://bucket/runs?region=x&colour={SECRET}",
        f"s3://bucket/runs?region=x;session_token={SECRET}",
        f"s3://bucket/runs?{SECRET}",
        f"s3://bucket/runs?endpoint_override=KEY:{SECRET}@host:9000",
        f"gs://bucket/runs?private_key={SECRET}",
        f"file:///runs?token={SECRET}",
        f"fsspec+s3://bucket/runs#token={SECRET}",
        f"s3://bucket/runs#token={SECRET}",
        f"gs://bucket/runs#a#token%3D{SECRET}",
        f"hf://datasets/me/rows#token={SECRET}",
    ],
)
def test_an_option_that_is_not_known_to_hold_no_secret_is_refused(uri: str) -> None:
    refused(uri, r"found (the option \w+|option \d) of the URI, which may hold a credential, expected")


def refused(uri: str, why: str) -> None:
    acts = {
        "run.storage: ": lambda: load_recipe(RECIPE, [f"run.storage={uri}"]),
        "": lambda: write_shard(table(), uri, "a.arrow"),
        " ": lambda: read_shard(uri),
    }
    for prefix, act in acts.items():
        with pytest.raises(ValueError, match=rf"{prefix.strip()}.*://\.\.\.: {why}") as caught:
            act()
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "/data/a:b@c",
        "s3://bucket/runs?region=x&tls_verify_certificates=false&endpoint_override=http://127.0.0.1:9000",
        "fsspec+memory://x/what?/",
        "gcs://bucket/runs?scheme=http&retry_limit_seconds=20&project_id=me-1",
        "abfs://c@a.dfs.core.windows.net/runs?credential_kind=default&enable_tls=true",
        "s3://bucket/a:b@c/runs?endpoint_override=host:9000&scheme=http",
        "gs://anonymous@bucket/runs",
        "hdfs://user@host:8020/runs",
        "hdfs://host:8020/user@example/runs",
        "abfs://container@account.dfs.core.windows.net/runs",
        "fsspec+abfs://container@account/runs",
        "hf://datasets/me/rows@main/x",
        "file:///data/a:b@c",
        "file:///data:b@c/run #1",
        "s3://bucket/run#1",
    ],
)
def test_a_uri_without_a_secret_is_taken(uri: str) -> None:
    refuse_credentials(uri)
    assert load_recipe(RECIPE, [f"run.storage={uri}"]).run.storage == uri


def test_the_environments_credentials_reach_no_file(store: str, tmp_path: Path) -> None:
    infos = run_of(tmp_path / "run", store)
    written = [(tmp_path / "run" / "manifest.jsonl").read_bytes(), *(content(info.uri) for info in infos)]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert not any(CREDENTIALS[name].encode() in data for data in written)


def test_every_option_of_an_s3_uri_reaches_the_client() -> None:
    """The client is made a second time, with few attempts: an option lost on the way would be a wrong store."""
    given = "region=eu-west-1&scheme=http&endpoint_override=h:1&allow_bucket_creation=true&tls_ca_file_path=/ca.pem"
    found, path = locate(f"s3://bucket/runs?{given}")
    assert found == pafs.S3FileSystem(
        region="eu-west-1",
        scheme="http",
        endpoint_override="h:1",
        allow_bucket_creation=True,
        tls_ca_file_path="/ca.pem",
    )
    assert path == "bucket/runs"
    assert locate("s3://bucket/runs?region=x&tls_verify_certificates=false")[1] == "bucket/runs"  # has no keyword
