"""Arrow IPC files that appear whole or not at all, on a local disk or in any pyarrow filesystem."""

import hashlib
import os
import uuid
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
from pyarrow import fs as pafs

from evidence.storage import locate


def write_table(table: pa.Table, uri: str) -> str:
    """Write `table` at `uri`, which then exists whole; an older file there is replaced. Returns its sha256.

    On a full or read-only disk nothing is left behind and OSError names the path.
    """
    data = _serialise(table)
    target, path = locate(uri)
    try:
        _write(target, path, data)
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
        data = _map_local(path) if source is None else source.open_input_file(path).read_buffer()
    except OSError as error:
        raise naming(error, uri, "cannot read shard") from error
    if sha256 is not None:
        expect(uri, "sha256", hashlib.sha256(data).hexdigest(), sha256)
    return _deserialise(data, uri)


def expect(uri: str, what: str, found: object, expected: object) -> None:
    """ValueError that names the file unless `found` is `expected`."""
    if found != expected:
        raise ValueError(f"{uri}: {what}: found {found}, expected {expected}")


def naming(error: OSError, uri: str, act: str) -> OSError:
    """The same error with the file in its message: a failed write or fsync does not name one."""
    if error.errno is None:
        return OSError(f"{act}: {one_line(error)}: {uri!r}")
    return OSError(error.errno, f"{act}: {error.strerror}", uri)


def one_line(error: OSError) -> str:
    """What the error says, without the file that it may name; an object store's answer can span lines."""
    return " ".join((error.strerror or str(error)).split())


def check_writable(root: str) -> None:
    """Writes a small object under `root` and removes it: what would else fail after the engines have started.

    ValueError names `root` and what was found. An S3 store that does not answer takes some 20 s.
    """
    try:
        target, folder = locate(root)
        path = os.path.join(folder, f"check-{uuid.uuid4().hex}")
        _write(target, path, pa.py_buffer(b"ok"))
        os.unlink(path) if target is None else target.delete_file(path)
    except OSError as error:
        found = one_line(error).rstrip(".")
        raise ValueError(f"{root}: found {found!r}, expected a place that shards can be written to") from error


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
        table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{uri}: found {data.size} bytes ({error}), expected a whole Arrow IPC file") from error
    return table


def _temporary(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")


def _write(target: pafs.FileSystem | None, path: str, data: pa.Buffer) -> None:
    _write_local(path, data) if target is None else _write_remote(target, path, data)


def _write_local(path: str, data: pa.Buffer) -> None:
    folder, temporary = os.path.dirname(path), _temporary(path)
    os.makedirs(folder, exist_ok=True)
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)  # still there only if something above failed
    fsync_folder(folder)


def _write_remote(filesystem: pafs.FileSystem, path: str, data: pa.Buffer) -> None:
    temporary = _temporary(path)
    filesystem.create_dir(os.path.dirname(path), recursive=True)
    try:
        with filesystem.open_output_stream(temporary) as stream:
            stream.write(data)
        filesystem.move(temporary, path)
    except OSError:
        with suppress(OSError):  # the first error is the one to report
            filesystem.delete_file(temporary)
        raise


def _map_local(path: str) -> pa.Buffer:
    if os.path.getsize(path) == 0:  # an empty file cannot be mapped
        return pa.py_buffer(b"")
    return pa.memory_map(path).read_buffer()
