"""Writing to a store behind a URI, with no right beyond put, get, copy and delete under the prefix.

`create_dir` asks more of an object store than writing needs: to list, the metadata of the bucket, and to put empty
objects for the folders above. pyarrow's `delete_file` and `move` put one for the folder itself; a shard on S3 needs
neither.
"""

import os
import uuid
from contextlib import ExitStack, suppress

import pyarrow as pa
from pyarrow import fs as pafs

_FLAT = ("s3", "gcs", "abfs")  # no folder to make first
_WHOLE = ("s3", "gcs")  # an object is there once its upload is complete, under any name


def temporary_name(path: str) -> str:
    """A hidden name beside `path` that nobody else takes."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")


def write_remote(filesystem: pafs.FileSystem, path: str, data: pa.Buffer, makes_bucket: bool = False) -> None:
    """Puts `data` at `path`, which then exists whole; an older object there is replaced."""
    folder = os.path.dirname(path)
    if makes_bucket:
        filesystem.create_dir(path.partition("/")[0])
    if filesystem.type_name in _WHOLE:
        _put(filesystem, path, data)
        return
    if filesystem.type_name not in _FLAT:
        filesystem.create_dir(folder, recursive=True)
    with ExitStack() as undo:
        temporary = temporary_name(path)
        undo.callback(_discard, filesystem, temporary)
        _put(filesystem, temporary, data)
        _rename(filesystem, temporary, path)
        undo.pop_all()


def read_back(filesystem: pafs.FileSystem, path: str, data: pa.Buffer, makes_bucket: bool = False) -> pa.Buffer:
    """What a reader finds at `path` after `data` was put there. It is removed again where the store allows it."""
    write_remote(filesystem, path, data, makes_bucket)
    with ExitStack() as undo:
        undo.callback(_discard, filesystem, path)
        return get(filesystem, path)


def get(filesystem: pafs.FileSystem, path: str) -> pa.Buffer:
    """The whole content of the object."""
    with filesystem.open_input_file(path) as file:
        return file.read_buffer()


def _put(filesystem: pafs.FileSystem, path: str, data: pa.Buffer) -> None:
    with filesystem.open_output_stream(path) as stream:
        stream.write(data)


def _rename(filesystem: pafs.FileSystem, source: str, target: str) -> None:
    """`move`, and where a store has none (Azure's without hierarchical namespace) a copy, which appears whole too."""
    try:
        filesystem.move(source, target)
    except NotImplementedError:
        filesystem.copy_file(source, target)
        filesystem.delete_file(source)


def _discard(filesystem: pafs.FileSystem, path: str) -> None:
    with suppress(OSError):  # the error before it is the one to report; a shard is never deleted
        filesystem.delete_file(path)
