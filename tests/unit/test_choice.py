"""Which weights a run ends with: what the learner is asked to keep, and what a resumed run asks for again."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.config import Recipe
from cluster.run.checks import check_export
from cluster.run.choice import Choice
from cluster.run.record import END, STEP, ProbeRecord, append_probe, read_probes
from cluster.typed import build
from rollout.probe import Rate


class Learner:
    """Remembers which version's weights it holds and keeps."""

    def __init__(self) -> None:
        self.version = self.kept = 0

    async def keep(self) -> None:
        self.kept = self.version

    async def put_kept(self) -> None:
        self.version = self.kept


def recipe(choose: str, steps: int = 8, probe_every: int = 2, average: int = 8) -> Recipe:
    run, export = {"steps": steps, "probe_every": probe_every}, {"choose": choose, "average": average}
    return build(Recipe, {"run": run, "export": export}, "R")


def probed(step: int, hits: int, weights: str | None = STEP) -> ProbeRecord:
    rates = {"selfname": Rate(hits, 10), "mention": Rate(10, 10)}
    return ProbeRecord(step, None, "identity", rates, 10, 1, weights=weights)


def test_an_older_run_s_probes_are_held_against_the_main_rate_of_today() -> None:
    """Its lines have that rate, and another first: all answers, with those that must not change."""

    def facts(step: int, names: Sequence[str], **hits: int) -> ProbeRecord:
        rates = {"correct": Rate(hits["every"], 10), "correct:facts": Rate(hits["facts"], 10)}
        return ProbeRecord(step, None, "facts", {name: rates[name] for name in names}, 10, 1, weights=STEP)

    async def go() -> int:
        learner: Any = Learner()
        old, new = ("correct", "correct:facts"), ("correct:facts", "correct")
        choice = Choice(recipe("best"), learner, {2: facts(2, old, every=9, facts=1)}, "correct:facts")
        await choice.resume(3)
        for step, every, taught in ((4, 2, 5), (6, 8, 4)):
            learner.version = step
            await choice.see(facts(step, new, every=every, facts=taught))
        return int(learner.kept)

    assert asyncio.run(go()) == 4


def end_of(choose: str, hits: Sequence[int], cut: int | None = None, lost: bool = False) -> int:
    """The version whose weights a run ends with that has `hits` at its probes of versions 2, 4, 6 and 8.

    cut: it is resumed at that version from a checkpoint written before the version's probe, which is `lost` or not.
    """

    async def go() -> int:
        learner: Any = Learner()
        choice, seen = Choice(recipe(choose), learner, {}), {0: probed(0, 10)}
        for version in range(1, 9):
            learner.version, before = version, learner.kept
            if choice.probes(version):
                record = probed(version, hits[version // 2 - 1])
                await choice.see(record)
                seen |= {} if lost and version == cut else {version: record}
            if version == cut:
                learner.kept = before
                choice = Choice(recipe(choose), learner, seen)
                await choice.resume(version)
                assert choice.lacks(version) == (lost and choice.probes(version))
                if lost and choose == "best":
                    await choice.see(probed(version, hits[version // 2 - 1]))
        await choice.put()
        return int(learner.version)

    return asyncio.run(go())


@pytest.mark.parametrize(
    ("hits", "best"), [([1, 5, 3, 2], 4), ([1, 5, 3, 5], 8), ([5, 4, 3, 2], 2), ([0, 0, 0, 0], 8), ([1, 2, 3, 4], 8)]
)
@pytest.mark.parametrize(("cut", "lost"), [(None, False), (4, False), (4, True), (6, False), (6, True), (8, True)])
def test_the_best_is_the_later_of_the_highest_also_after_a_resume(
    hits: list[int], best: int, cut: int | None, lost: bool
) -> None:
    """The probe at step 0 is the base's, and no candidate."""
    assert end_of("best", hits, cut, lost) == best
    assert end_of("last", hits, cut) == 8


@pytest.mark.parametrize("checkpoint", [2, 3, 4, 5])
def test_steps_learned_again_from_their_shards_keep_the_best_of_them(checkpoint: int) -> None:
    """The best probe, of version 4, stands behind the checkpoint, or was kept in it."""

    async def go() -> int:
        learner: Any = Learner()
        learner.version, learner.kept = checkpoint, 4 if checkpoint > 4 else 2
        choice = Choice(recipe("best"), learner, {0: probed(0, 10), 2: probed(2, 1), 4: probed(4, 5), 6: probed(6, 3)})
        await choice.resume(checkpoint)
        for version in range(checkpoint + 1, 7):
            learner.version = version
            await choice.see_again(version)
        await choice.put()
        return int(learner.version)

    assert asyncio.run(go()) == 4


def resumed_at_the_last_step(path: Path, lines: Sequence[ProbeRecord]) -> tuple[bool, int]:
    """Of a run with the weights of version 4 kept, whose probes are those lines: whether the last step's own probe is
    missing, and the version whose weights the run ends with as far as it is not."""

    async def go() -> tuple[bool, int]:
        learner: Any = Learner()
        for line in (probed(0, 10), probed(2, 1), probed(4, 5), probed(6, 3), *lines):
            append_probe(path, line)
        choice = Choice(recipe("best"), learner, read_probes(path, own=True))
        learner.version, learner.kept = 8, 4
        await choice.resume(8)
        lacks = choice.lacks(8)
        await choice.put()
        return lacks, int(learner.version)

    return asyncio.run(go())


@pytest.mark.parametrize(
    ("lines", "lacks", "ends_with"),
    [
        ([], True, 4),
        ([probed(8, 2)], False, 4),
        ([probed(8, 9)], False, 8),
        ([probed(8, 2), probed(8, 9, END)], False, 4),
        ([probed(8, 9), probed(8, 2, END)], False, 8),
        ([probed(8, 9, None)], True, 4),
        ([probed(8, 2, None), probed(8, 9, None)], True, 4),
        ([probed(8, 2, None), probed(8, 9, None), probed(8, 2), probed(8, 9, END)], False, 4),
    ],
    ids=["none", "own", "own-best", "both", "both-own-best", "older", "older-both", "older-resumed"],
)
def test_the_probe_of_the_weights_to_end_with_is_not_taken_for_that_of_the_last_steps(
    tmp_path: Path, lines: list[ProbeRecord], lacks: bool, ends_with: int
) -> None:
    """It is of the kept weights, with other answers. An older line does not say which of the two it is."""
    assert resumed_at_the_last_step(tmp_path / "probes.jsonl", lines) == (lacks, ends_with)


def test_the_base_is_not_kept_where_a_run_starts_again_from_its_shards() -> None:
    learner: Any = Learner()
    learner.kept = 7
    asyncio.run(Choice(recipe("best"), learner, {0: probed(0, 10)}).resume(0))
    assert learner.kept == 7


def test_the_last_step_has_a_probe_of_its_own_only_as_a_candidate() -> None:
    nobody: Any = None
    probes = {
        name: [v for v in range(1, 9) if Choice(recipe(name), nobody, {}).probes(v)]
        for name in ("last", "average", "best")
    }
    assert probes == {"last": [2, 4, 6], "average": [2, 4, 6], "best": [2, 4, 6, 8]}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"choose": "average", "average": 9}, "export.average: found 9, expected at most run.steps = 8: there is one"),
        ({"choose": "best", "probe_every": 0}, "export.choose: found 'best', expected another choice with run.probe_e"),
        ({"choose": "best", "probe_every": 8}, "export.choose: found 'best', .*= 8 and run.steps = 8: no probe on"),
    ],
)
def test_what_cannot_be_chosen_is_refused_before_the_run(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        check_export(recipe(**wrong))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"average": 1}, "export.average: found 1, expected at least 2: the mean of one is 'last'"),
        ({"average": -3}, "export.average: found -3, expected at least 2"),
        ({"choose": "first"}, "export.choose: found 'first', expected one of"),
    ],
)
def test_a_value_out_of_range_is_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(Recipe, {"export": table}, "R")


def test_what_may_be_chosen_is_accepted() -> None:
    for right in (recipe("last", average=99), recipe("average", average=8), recipe("best", probe_every=7)):
        check_export(right)
