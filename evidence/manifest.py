"""The manifest of a run: which shards exist, and which were trained, each exactly once."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evidence.files import fsync_folder, naming
from evidence.records import ShardInfo


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
            raise naming(error, self.path, "cannot append to manifest") from error

    @contextmanager
    def _locked(self) -> Iterator[int]:
        is_new = not os.path.exists(self.path)
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if is_new:
                fsync_folder(os.path.dirname(os.path.abspath(self.path)))
            yield descriptor
        finally:
            os.close(descriptor)
