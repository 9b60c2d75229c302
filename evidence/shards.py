"""Shards on disk or in an object store, and the manifest that says which exist and which were trained.

A shard appears whole or not at all, and is trained exactly once. Format: Arrow IPC file.
"""

import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs as pafs

from evidence.diagnostics import TokenStats, diagnose, split_summary
from evidence.records import ShardInfo
from evidence.rule import EVIDENCE_KINDS, EvidenceConfig, remask, reweigh
from evidence.schema import check_table, flat_column, shard_metadata


def write_shard(table: pa.Table, root: str, name: str) -> ShardInfo:
    """Write `table` as `root`/`name`, which then exists whole; an older shard of that name is replaced.

    root: a local path or any pyarrow filesystem URI, its options after `?`.
    On a full or read-only disk nothing is left behind and OSError names the path. ValueError for an unsound table
    or a name that is not a plain file name.
    """
    uri = _join(root, name)
    check_table(table, uri)
    data = _serialise(table)
    target, path = _locate(uri)
    try:
        _write_local(path, data) if target is None else _write_remote(target, path, data)
    except OSError as error:
        raise _naming(error, uri, "cannot write shard") from error
    return ShardInfo(
        uri=uri,
        step=int(shard_metadata(table)["step"]),
        rows=table.num_rows,
        tokens=_num_tokens(table),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def read_shard(uri: str, expected: ShardInfo | None = None) -> pa.Table:
    """The table at `uri`, memory-mapped when it is on a local disk.

    ValueError names the shard, what was found and what was expected, when it is not a whole, sound shard or differs
    from `expected` in checksum, rows or tokens. OSError when it cannot be opened.
    """
    source, path = _locate(uri)
    try:
        data = _map_local(path) if source is None else source.open_input_file(path).read_buffer()
    except OSError as error:
        raise _naming(error, uri, "cannot read shard") from error
    if expected is not None:
        _expect(uri, "sha256", hashlib.sha256(data).hexdigest(), expected.sha256)
    table = _deserialise(data, uri)
    check_table(table, uri)
    if expected is not None:
        _expect(uri, "rows", table.num_rows, expected.rows)
        _expect(uri, "tokens", _num_tokens(table), expected.tokens)
    return table


def recompute(table: pa.Table, config: EvidenceConfig) -> dict[str, dict[str, float]]:
    """What another rule would have kept: `split_summary` of the table under `config`, without an engine or a student.

    Evidence is recomputed from the two teacher columns. `table` has passed `check_table`.
    """
    teacher_context, offsets = flat_column(table, "teacher_context_logprobs")
    evidence = EVIDENCE_KINDS[config.kind](teacher_context, flat_column(table, "teacher_logprobs")[0])
    weight = reweigh(evidence, config) * remask(evidence, config)
    guided_rows = np.array(table.column("guided").to_pylist(), np.bool_)
    guided_tokens = np.repeat(guided_rows, np.diff(offsets))

    def stats(guided: bool) -> TokenStats:
        own = guided_tokens == guided
        return diagnose(evidence[own], weight[own], None, teacher_context[own], rows=int((guided_rows == guided).sum()))

    return split_summary([(guided, stats(guided)) for guided in (True, False)])


def _join(root: str, name: str) -> str:
    if not name or name != os.path.basename(name) or name.startswith("."):
        raise ValueError(f"shard name: found {name!r}, expected a plain file name that does not start with a dot")
    if "://" not in root:
        return os.path.join(os.path.abspath(root), name)
    base, mark, options = root.partition("?")
    return f"{base.rstrip('/')}/{name}{mark}{options}"


def _locate(uri: str) -> tuple[pafs.FileSystem | None, str]:
    """(filesystem, path inside it); None stands for the local disk, which has stronger guarantees of its own."""
    if "://" not in uri:
        return None, uri
    found, path = pafs.FileSystem.from_uri(uri)
    return (None, path) if isinstance(found, pafs.LocalFileSystem) else (found, path)


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


def _num_tokens(table: pa.Table) -> int:
    return int(flat_column(table, "response_ids")[1][-1])


def _expect(uri: str, what: str, found: object, expected: object) -> None:
    if found != expected:
        raise ValueError(f"{uri}: {what}: found {found}, expected {expected}")


def _naming(error: OSError, uri: str, act: str) -> OSError:
    """The same error with the shard in its message: a failed write or fsync does not name a file."""
    if error.errno is None:
        return OSError(f"{act}: {error}: {uri!r}")
    return OSError(error.errno, f"{act}: {error.strerror}", uri)


def _temporary(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")


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
    _fsync_folder(folder)


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


def _fsync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass
class _State:
    """The manifest replayed: shards that stand, in the order they were written, and those of them that were trained."""

    written: dict[str, ShardInfo] = field(default_factory=dict)
    trained: set[str] = field(default_factory=set)

    def apply(self, event: dict[str, Any]) -> None:
        """One line. ValueError when it cannot follow the lines before it; KeyError or TypeError when it is no event."""
        _EVENTS[event["event"]](self, {key: value for key, value in event.items() if key != "event"})


def _apply_written(state: _State, body: dict[str, Any]) -> None:
    info = ShardInfo(**body)
    state.written.pop(info.uri, None)
    state.trained.discard(info.uri)
    state.written[info.uri] = info


def _apply_trained(state: _State, body: dict[str, Any]) -> None:
    uri, step = body["uri"], body["step"]
    if uri not in state.written:
        raise ValueError(f"{uri}: cannot be trained at step {step}: found no such shard written, expected one")
    if uri in state.trained:
        raise ValueError(f"{uri}: cannot be trained at step {step}: found it already trained, expected exactly once")
    state.trained.add(uri)


def _apply_superseded(state: _State, body: dict[str, Any]) -> None:
    uri = body["uri"]
    if uri not in state.written:
        raise ValueError(f"{uri}: cannot be superseded: found no such shard written, expected one")
    del state.written[uri]
    state.trained.discard(uri)


_EVENTS: dict[str, Callable[[_State, dict[str, Any]], None]] = {
    "written": _apply_written,
    "trained": _apply_trained,
    "superseded": _apply_superseded,
}


class Manifest:
    """The append-only JSON lines file at a local `path`: every shard written, trained or superseded.

    A line is one write and one fsync, under a file lock, so that "trained exactly once" also holds between processes.
    A last line without its newline (a crash in mid-write) never happened: reads skip it, the next append removes it.
    Any other malformed line is a ValueError that names the file and the line.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)

    def append_written(self, info: ShardInfo) -> None:
        """The shard exists whole. Written again, it may be trained again."""
        self._append({"event": "written", **asdict(info)})

    def append_trained(self, uri: str, step: int) -> None:
        """The shard was consumed by learner step `step`. ValueError unless it stands written and untrained."""
        self._append({"event": "trained", "uri": uri, "step": step})

    def append_superseded(self, uri: str) -> None:
        """The shard no longer counts, trained or not. ValueError unless it stands written."""
        self._append({"event": "superseded", "uri": uri})

    def written(self) -> dict[str, ShardInfo]:
        """The shards that stand, by URI, in the order they were last written; without superseded ones."""
        return self._replay(self._read()).written

    def trained(self) -> set[str]:
        """The URIs of the standing shards that were trained since they were last written."""
        return self._replay(self._read()).trained

    def _read(self) -> bytes:
        with suppress(FileNotFoundError):
            return Path(self.path).read_bytes()
        return b""

    def _replay(self, content: bytes) -> _State:
        state = _State()
        for number, line in enumerate(content.split(b"\n")[:-1], start=1):  # what follows the last newline is torn
            try:
                state.apply(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{self.path}: line {number}: found {line[:200]!r} ({error}), expected a manifest event"
                ) from error
        return state

    def _append(self, event: dict[str, Any]) -> None:
        with self._locked() as descriptor:
            content = self._read()
            self._replay(content).apply(event)
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.ftruncate(descriptor, whole)
            self._write_line(descriptor, json.dumps(event).encode() + b"\n", whole)

    def _write_line(self, descriptor: int, line: bytes, whole: int) -> None:
        try:
            if os.write(descriptor, line) != len(line):
                raise OSError(f"{self.path}: found no room for a line of {len(line)} bytes")
            os.fsync(descriptor)
        except OSError as error:
            os.ftruncate(descriptor, whole)
            raise _naming(error, self.path, "cannot append to manifest") from error

    @contextmanager
    def _locked(self) -> Iterator[int]:
        is_new = not os.path.exists(self.path)
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if is_new:
                _fsync_folder(os.path.dirname(os.path.abspath(self.path)))
            yield descriptor
        finally:
            os.close(descriptor)
