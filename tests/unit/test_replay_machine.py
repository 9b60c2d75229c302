"""Resuming after a crash at any moment and damage to any shard: the learner has learned from each step's standing shard
once, in order, and nothing that stands is sampled again."""

import asyncio
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from rich.console import Console

from cluster.config import Recipe
from cluster.observe.sinks import MetricsSink
from cluster.run.checkpoints import Checkpoints
from cluster.run.choice import Choice
from cluster.run.record import read_steps
from cluster.run.replay import catch_up, learned_groups
from cluster.run.rundir import RunDir
from evidence.manifest import Manifest
from evidence.records import ShardInfo
from evidence.rule import EvidenceConfig, judge_all
from evidence.schema import to_table
from evidence.shards import write_shard
from evidence.sidecar import write_student
from learner.report import LearnedStep
from learner.sealed import SealedFile, faults, seal
from tests.fakes import scored_step

MOMENTS = ("shard", "written", "learned", "sidecar", "trained", "recorded", "saving", "checkpoint", "never")
RULE = EvidenceConfig()
METADATA = {
    "run_id": "run", "mask_rule": RULE.to_json(), "model_id": "model", "code_version": "1", "machine": "here",
    "weights_digest": "ab",
}  # fmt: skip


class Killed(BaseException):
    pass


class Chain:
    """A learner whose weights are the checksums that it has learned from, in order. `is_killed`: amid a save."""

    def __init__(self) -> None:
        self.weights: list[str] = []
        self.is_killed = False

    async def verify(self, folder: Path, files: Sequence[SealedFile]) -> list[str]:
        return faults(folder, files)

    async def load(self, folder: Path, step: int) -> None:
        self.weights = json.loads((folder / f"step-{step:06d}" / "weights").read_text())

    async def learn(self, shard: ShardInfo) -> LearnedStep:
        self.weights.append(shard.sha256)
        return LearnedStep(0.5, {}, 1.0, shard.tokens, 0, [], {})

    async def checkpoint_bytes(self) -> int:
        return 1

    async def save(self, folder: Path, step: int) -> list[SealedFile]:
        place = folder / f"step-{step:06d}"
        place.mkdir()
        if self.is_killed:
            raise Killed
        (place / "weights").write_text(json.dumps(self.weights))
        return seal(place, 0)


class ReplayMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = RunDir(Path(self.temporary.name))
        for part in (self.folder.shards, self.folder.student, self.folder.checkpoints):
            part.mkdir()
        self.manifest = Manifest(self.folder.manifest)
        self.said = io.StringIO()
        self.sink = MetricsSink(99, Console(file=self.said, width=500))
        self.sampled = 0
        self.learner: Any = Chain()
        self.version: int | None = 0  # None: crashed
        self.whole: dict[int, bytes] = {}  # by step: what was written
        self.damaged: set[int] = set()
        self.stands = 0  # steps with a shard in the manifest
        self.checkpoints: list[int] = []  # the steps of those that are whole, ascending

    def sample(self, step: int) -> ShardInfo:
        self.sampled += 1
        records = judge_all(scored_step([2, 3], seed=self.sampled), [None, None], RULE, step)
        table = to_table(records, METADATA | {"step": str(step)})
        return write_shard(table, str(self.folder.shards), f"step-{step:06d}.arrow")

    @precondition(lambda self: self.version is not None)
    @rule(crash=st.sampled_from(MOMENTS), saves=st.booleans())
    def step(self, crash: str, saves: bool) -> None:
        assert self.version is not None
        step, version = self.version, self.version
        self.version = None
        shard = self.sample(step)
        if crash == "shard":
            return
        self.manifest.append_written(shard)
        self.whole[step] = Path(shard.uri).read_bytes()
        self.damaged.discard(step)
        self.stands = step + 1
        if crash == "written":
            return
        learned = asyncio.run(self.learner.learn(shard))
        if crash == "learned":
            return
        write_student(learned.logprobs, str(self.folder.student), step)
        if crash == "sidecar":
            return
        self.manifest.append_trained(shard.uri, step)
        if crash == "trained":
            return
        self.folder.metrics.open("a").write(json.dumps({"step": step, "wall_s": 1.0, "diagnostics": {}}) + "\n")
        if crash == "recorded":
            return
        if saves and not self.save(version + 1, is_killed=crash == "saving"):
            return
        if crash != "checkpoint":
            self.version = version + 1

    def save(self, version: int, is_killed: bool) -> bool:
        self.learner.is_killed = is_killed
        self.checkpoints = [one for one in self.checkpoints if one < version]
        try:
            asyncio.run(Checkpoints(self.folder.checkpoints).save(self.learner, version, keep=2))
        except Killed:
            return False
        self.checkpoints = [*self.checkpoints[-1:], version]
        return True

    @precondition(lambda self: self.version)
    @rule(is_killed=st.booleans())
    def stop(self, is_killed: bool) -> None:
        """It is asked to, and saves what may be in a checkpoint already, for which the time may not do."""
        assert self.version is not None
        self.save(self.version, is_killed)
        self.version = None

    @precondition(lambda self: self.stands > 0)
    @rule(data=st.data(), cuts=st.booleans())
    def damage(self, data: st.DataObject, cuts: bool) -> None:
        step = data.draw(st.integers(0, self.stands - 1))
        path = self.folder.shards / f"step-{step:06d}.arrow"
        content = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, max(len(content) - 1, 0)))
        if cuts:
            del content[at:]
        elif content:
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        (self.damaged.discard if content == self.whole[step] else self.damaged.add)(step)  # a bit that flips back

    @rule()
    def resume(self) -> None:
        """By the same process or another: what is on the disk is all that there is."""
        self.learner, self.manifest = Chain(), Manifest(self.folder.manifest)
        self.said.truncate(0)
        choice = Choice(Recipe(), self.learner, {})
        resumed = asyncio.run(catch_up(self.learner, self.folder, self.sink, Recipe(), choice))
        found, checkpoint = resumed.version, max(self.checkpoints, default=0)
        assert resumed.loaded == checkpoint
        broken = [step for step in range(checkpoint, self.stands) if step in self.damaged]
        assert found == min([self.stands, *broken])
        if broken:
            assert f"step {broken[0] + 1} is sampled again: " in self.said.getvalue()
            assert f"step-{broken[0]:06d}.arrow" in self.said.getvalue()
        standing = {info.step: info for info in self.manifest.written().values()}
        assert sorted(standing) == list(range(found))
        assert learned_groups(self.folder, pytest.fail) == ["g0"] * found  # a lag asks for, whatever became of shards
        assert self.learner.weights == [standing[step].sha256 for step in range(found)]
        assert self.manifest.trained() == {info.uri for info in standing.values()}
        assert set(read_steps(self.folder.metrics)) >= set(range(found))
        self.version = self.stands = found
        self.damaged = {step for step in self.damaged if step < found}

    def teardown(self) -> None:
        self.resume()
        self.temporary.cleanup()


TestReplay = ReplayMachine.TestCase
TestReplay.settings = settings(max_examples=30, stateful_step_count=15, deadline=None)
