"""The manifest under any order of events, crashes and reopenings, beside a dictionary and a set that do the same."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from evidence.manifest import Manifest
from evidence.records import ShardInfo

NAMES = st.sampled_from(["a", "b", "c"])
STEPS = st.integers(0, 3)


class ManifestMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "manifest.jsonl"
        self.handles = [Manifest(self.path), Manifest(self.path)]
        self.written: dict[str, ShardInfo] = {}
        self.trained: set[str] = set()

    def teardown(self) -> None:
        self.folder.cleanup()

    def act(self, allowed: bool, act: Any, *arguments: Any) -> None:
        """What is not allowed is refused, and leaves every whole line as it is."""
        if allowed:
            act(*arguments)
            return
        before = self.whole_lines()
        with pytest.raises(ValueError, match="expected"):
            act(*arguments)
        assert self.whole_lines() == before

    def whole_lines(self) -> bytes:
        content = self.path.read_bytes() if self.path.exists() else b""
        return content[: content.rfind(b"\n") + 1]

    @rule(who=st.integers(0, 1), uri=NAMES, step=STEPS)
    def write(self, who: int, uri: str, step: int) -> None:
        info = ShardInfo(uri=uri, step=step, rows=1, tokens=2, sha256="0" * 64)
        self.handles[who].append_written(info)
        self.written.pop(uri, None)
        self.written[uri] = info
        self.trained.discard(uri)

    @rule(who=st.integers(0, 1), uri=NAMES, step=STEPS)
    def train(self, who: int, uri: str, step: int) -> None:
        allowed = uri in self.written and uri not in self.trained
        self.act(allowed, self.handles[who].append_trained, uri, step)
        if allowed:
            self.trained.add(uri)

    @rule(who=st.integers(0, 1), uri=NAMES)
    def supersede(self, who: int, uri: str) -> None:
        self.act(uri in self.written, self.handles[who].append_superseded, uri)
        self.written.pop(uri, None)
        self.trained.discard(uri)

    @rule(cut=st.integers(1, 20))
    def crash_in_mid_write(self, cut: int) -> None:
        """Another process dies before its line is whole. Only a last line can be such a one."""
        content = self.path.read_bytes() if self.path.exists() else b""
        if not content or content.endswith(b"\n"):
            with self.path.open("ab") as file:
                file.write(b'{"event": "superseded", "uri": "a"}'[:cut])

    @rule(who=st.integers(0, 1))
    def reopen(self, who: int) -> None:
        self.handles[who] = Manifest(self.path)

    @invariant()
    def everyone_reads_what_happened(self) -> None:
        for manifest in self.handles:
            assert list(manifest.written().items()) == list(self.written.items())
            assert manifest.trained() == self.trained


TestManifest = ManifestMachine.TestCase
TestManifest.settings = settings(max_examples=30, stateful_step_count=25)
