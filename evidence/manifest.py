"""The manifest of a run: which shards exist, and which were trained, each exactly once."""

import json
import os
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from evidence.lines import appending, read_lines
from evidence.records import ShardInfo

CHECK = "crc32"  # of a line's other keys; lines of older runs have none


@dataclass
class _State:
    """The manifest replayed: shards that stand, in the order they were written, and those of them that were trained."""

    written: dict[str, ShardInfo] = field(default_factory=dict)
    trained: set[str] = field(default_factory=set)

    def apply(self, event: dict[str, Any]) -> None:
        """One line. ValueError when it cannot follow the lines before it; KeyError or TypeError when it is no event."""
        body = dict(event)
        if CHECK in body and (expected := body.pop(CHECK)) != (found := _check(body)):
            raise ValueError(f"{CHECK}: found {found}, expected {expected}")
        _EVENTS[body.pop("event")](self, body)


def _apply_written(state: _State, body: dict[str, Any]) -> None:
    groups = body.pop("groups", None)
    info = ShardInfo(**body, groups=None if groups is None else tuple(groups))
    state.written.pop(info.uri, None)
    state.trained.discard(info.uri)
    state.written[info.uri] = info


def _apply_trained(state: _State, body: dict[str, Any]) -> None:
    uri, step = _values(body, "uri", "step")
    if uri not in state.written:
        raise ValueError(f"{uri}: cannot be trained at step {step}: found no such shard written, expected one")
    if uri in state.trained:
        raise ValueError(f"{uri}: cannot be trained at step {step}: found it already trained, expected exactly once")
    state.trained.add(uri)


def _apply_superseded(state: _State, body: dict[str, Any]) -> None:
    (uri,) = _values(body, "uri")
    if uri not in state.written:
        raise ValueError(f"{uri}: cannot be superseded: found no such shard written, expected one")
    del state.written[uri]
    state.trained.discard(uri)


def _values(body: dict[str, Any], *keys: str) -> list[Any]:
    """Of these keys, which are all that there are."""
    if body.keys() != set(keys):
        raise ValueError(f"found the keys {sorted(body)}, expected {sorted(keys)}")
    return [body[key] for key in keys]


def _check(event: dict[str, Any]) -> str:
    """Of an event without it: a bit that a disk turned round shows."""
    return f"{zlib.crc32(json.dumps(event).encode()):08x}"


_EVENTS: dict[str, Callable[[_State, dict[str, Any]], None]] = {
    "written": _apply_written,
    "trained": _apply_trained,
    "superseded": _apply_superseded,
}


class Manifest:
    """The append-only JSON lines file at a local `path`: every shard written, trained or superseded.

    A line is one write and one fsync, under a file lock, so that "trained exactly once" also holds between processes.
    Each line has a checksum. A torn last line never happened (`evidence.lines`). Any other malformed line is a
    ValueError that names the file and the line.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)

    def append_written(self, info: ShardInfo) -> None:
        """The shard exists whole. Written again, it may be trained again."""
        self._append({"event": "written", **asdict(info)})

    def append_trained(self, uri: str, step: int) -> None:
        """The shard was consumed by learner step `step`. ValueError unless it stands written and untrained."""
        self._append({"event": "trained", "uri": uri, "step": step})

    def ensure_trained(self, uri: str, step: int) -> None:
        """As `append_trained`, unless it is trained: a disk kept the line of an attempt that it reported as failed."""
        if uri not in self.trained():
            self.append_trained(uri, step)

    def append_superseded(self, uri: str) -> None:
        """The shard no longer counts, trained or not. ValueError unless it stands written."""
        self._append({"event": "superseded", "uri": uri})

    def written(self) -> dict[str, ShardInfo]:
        """The shards that stand, by URI, in the order they were last written; without superseded ones."""
        return self._replay().written

    def trained(self) -> set[str]:
        """The URIs of the standing shards that were trained since they were last written."""
        return self._replay().trained

    def _replay(self) -> _State:
        state = _State()
        for _ in read_lines(self.path, state.apply, "a manifest event"):
            pass
        return state

    def _append(self, event: dict[str, Any]) -> None:
        with appending(self.path) as file:
            self._replay().apply(event)
            file.append(event | {CHECK: _check(event)})
