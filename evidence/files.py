"""Arrow IPC files that appear whole or not at all, on a local disk or in any pyarrow filesystem."""

import hashlib
import os
import struct
import uuid
from functools import partial
from pathlib import Path

import pyarrow as pa

from evidence.packed import unpacked_bytes
from evidence.patience import within
from evidence.remote import get, read_back, temporary_name, write_remote
from evidence.storage import locate, options_of

TRANSFER_S = 600.0  # a shard, to a store or from it
CHECK_S = 60.0  # a few bytes; an S3 store that does not answer takes some 20 s
UNPACKED_TIMES, UNPACKED_BYTES = 16, 64 << 20  # what a shard of somebody's may become; ours are not packed
PROBE = pa.py_buffer(b"edge-opd: can shards be written here?\n")


def write_table(table: pa.Table, uri: str) -> str:
    """Write `table` at `uri`, which then exists whole; an older file there is replaced. Returns its sha256.

    On a full or read-only disk nothing is left behind and OSError names the path.
    """
    data = _serialise(table)
    target, path = locate(uri)
    try:
        if target is None:
            write_whole(path, data)
        else:
            within(TRANSFER_S, partial(write_remote, target, path, data, _makes_bucket(uri)))
    except OSError as error:
        raise naming(error, uri, "cannot write shard") from error
    return hashlib.sha256(data).hexdigest()


def read_table(uri: str, sha256: str | None = None) -> pa.Table:
    """The table at `uri`, memory-mapped when it is on a local disk.

    ValueError names the file when it is not a whole Arrow IPC file or its checksum is not `sha256`. OSError when it
    cannot be opened.
    """
    source, path = locate(uri)
    try:
        data = _map_local(path) if source is None else within(TRANSFER_S, partial(get, source, path))
    except OSError as error:
        raise naming(error, uri, "cannot read shard") from error
    if sha256 is not None:
        expect(uri, "sha256", hashlib.sha256(data).hexdigest(), sha256)
    return _deserialise(data, uri)


def file_sha256(path: Path) -> str:
    """Of a local file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expect(uri: str, what: str, found: object, expected: object) -> None:
    """ValueError that names the file unless `found` is `expected`."""
    if found != expected:
        raise ValueError(f"{uri}: {what}: found {found}, expected {expected}")


def naming(error: OSError, uri: str, act: str) -> OSError:
    """The same error with the file in its message: a failed write or fsync does not name one."""
    if error.errno is None:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
        return kind(f"{act}: {one_line(error)}: {uri!r}")
    return OSError(error.errno, f"{act}: {error.strerror}", uri)


def one_line(error: OSError) -> str:
    """What the error says, without the file that it may name; an object store's answer can span lines."""
    return " ".join((error.strerror or str(error)).split())


def check_writable(root: str) -> None:
    """Writes a small object under `root`, reads it back and removes it: what would else fail after the engines have
    started.

    ValueError names `root` and what was found, within about a minute.
    """
    try:
        target, folder = locate(root)
        path = os.path.join(folder, f"check-{uuid.uuid4().hex}")
        found = (
            _read_back_local(path)
            if target is None
            else within(CHECK_S, partial(read_back, target, path, PROBE, _makes_bucket(root)))
        )
    except OSError as error:
        said = one_line(error).rstrip(".")
        raise ValueError(f"{root}: found {said!r}, expected a place that shards can be written to") from error
    if not found.equals(PROBE):
        raise ValueError(f"{root}: found {found.size} bytes where {PROBE.size} were written{_framing(found)}")


def _framing(found: pa.Buffer) -> str:
    """What to do about a store that keeps the frame around an upload's chunks, and so more than was sent."""
    if PROBE.to_pybytes() not in found.to_pybytes():
        return ", expected a place that keeps what is written"
    return (
        " and more around them, expected no more: set AWS_REQUEST_CHECKSUM_CALCULATION=when_required on every node, "
        "where the store keeps the frame of an upload's chunks as content"
    )


def _makes_bucket(uri: str) -> bool:
    return "://" in uri and options_of(uri).get("allow_bucket_creation", "").lower() in ("true", "1")


def fsync_folder(folder: str) -> None:
    """Makes the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _serialise(table: pa.Table) -> pa.Buffer:
    """One record batch: the file format cannot replace a dictionary between batches."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.unify_dictionaries().combine_chunks())
    return sink.getvalue()


def _deserialise(data: pa.Buffer, uri: str) -> pa.Table:
    try:
        unpacked, most = unpacked_bytes(data), UNPACKED_TIMES * data.size + UNPACKED_BYTES
        if unpacked > most:
            raise ValueError(f"{uri}: found {unpacked} bytes in {data.size} packed ones, expected at most {most}")
        table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
        table.validate(full=True)
    except (pa.ArrowException, struct.error, OverflowError, OSError) as error:
        raise ValueError(f"{uri}: found {data.size} bytes ({error}), expected a whole Arrow IPC file") from error
    return table


def write_whole(path: str | Path, data: pa.Buffer | bytes | str, on_disk: bool = True) -> None:
    """A local file with this content, which a reader sees whole or not at all; an older one is replaced. Text is UTF-8.

    on_disk: also after a power cut, which takes milliseconds.
    """
    path, data = str(path), data.encode() if isinstance(data, str) else data
    folder, temporary = os.path.dirname(path) or ".", temporary_name(path)
    os.makedirs(folder, exist_ok=True)
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            if on_disk:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)  # still there only if something above failed
    if on_disk:
        fsync_folder(folder)


def _read_back_local(path: str) -> pa.Buffer:
    write_whole(path, PROBE)
    try:
        return pa.py_buffer(Path(path).read_bytes())
    finally:
        os.unlink(path)


def _map_local(path: str) -> pa.Buffer:
    if os.path.getsize(path) == 0:  # an empty file cannot be mapped
        return pa.py_buffer(b"")
    return pa.memory_map(path).read_buffer()
