"""A run's folder under claims, resumptions, crashes and another process, beside the rules written out."""

import fcntl
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster.config import Recipe, load_recipe
from cluster.run.lock import LOCK
from cluster.run.rundir import RunDir

PLAIN = Recipe()
RECIPES = {"plain": PLAIN, "longer": replace(PLAIN, run=replace(PLAIN.run, steps=PLAIN.run.steps + 1))}


class RunDirMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name) / "run"
        self.mine: RunDir | None = None  # the run under way
        self.owner: str | None = None  # whose recipe the folder has
        self.has_probes = self.has_metrics = False
        self.other: int | None = None  # another process's descriptor of the lock

    def teardown(self) -> None:
        self.end()
        self.other_ends()
        self.folder.cleanup()

    def expected_refusal(self, name: str, resume: bool) -> str | None:
        """The words of the error, or None where the claim succeeds."""
        if self.owner is None and resume:
            return "found no config.toml"
        if self.other is not None:
            return "a run under way"
        if self.owner is not None and (resume or self.has_probes or self.has_metrics):
            if self.owner != name:
                return "another recipe"
            if self.has_metrics and not resume:
                return "expected --resume"
        return None

    @precondition(lambda self: self.mine is None)
    @rule(name=st.sampled_from(sorted(RECIPES)), resume=st.booleans())
    def claim(self, name: str, resume: bool) -> None:
        run, refusal = RunDir(self.root), self.expected_refusal(name, resume)
        if refusal is not None:
            with pytest.raises(ValueError, match=refusal):
                run.claim(RECIPES[name], resume)
            run.release()
            return
        run.claim(RECIPES[name], resume)
        self.mine, self.owner = run, name

    @precondition(lambda self: self.mine is not None)
    @rule()
    def probe(self) -> None:
        (self.root / "probes.jsonl").write_text("{}\n")
        self.has_probes = True

    @precondition(lambda self: self.mine is not None)
    @rule()
    def step(self) -> None:
        (self.root / "metrics.jsonl").write_text("{}\n")
        self.has_metrics = True

    @rule()
    def end(self) -> None:
        """Finished or crashed: what is on the disk is the same."""
        if self.mine is not None:
            self.mine.release()
            self.mine = None

    @precondition(lambda self: self.mine is None and self.other is None and self.owner is not None)
    @rule()
    def another_process_takes_it(self) -> None:
        self.other = os.open(self.root / LOCK, os.O_RDWR | os.O_CREAT)
        fcntl.flock(self.other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free: whoever was refused or ended holds nothing

    @rule()
    def other_ends(self) -> None:
        if self.other is not None:
            os.close(self.other)
            self.other = None

    @invariant()
    def the_folder_has_its_owners_recipe(self) -> None:
        if self.owner is None:
            assert not (self.root / "config.toml").exists()
        else:
            assert load_recipe(self.root / "config.toml") == RECIPES[self.owner]


TestRunDir = RunDirMachine.TestCase
TestRunDir.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
