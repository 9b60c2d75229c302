"""Two runs by hand on one card: each sees what the other takes, before either has taken it."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cluster.config import Recipe
from cluster.fleet.placement import Share, make_plan
from cluster.run.memory import with_planned_memory
from cluster.sizing.cards import DEVICES, Card
from cluster.sizing.claims import LOCK, PREFIX, Look
from tests.cards import GIB, card, smi_program
from tests.runs import ROOT

RUN = """
import sys
from pathlib import Path
from cluster.config import Recipe
from cluster.fleet.placement import Share, make_plan
from cluster.run.memory import with_planned_memory
from cluster.sizing.cards import own_cards
from cluster.sizing.claims import Look

recipe = Recipe()
print("ready", flush=True)
sys.stdin.readline()
with Look(Path(sys.argv[2])) as look:
    cards = own_cards(look.left)
    plan = make_plan(recipe, [Share(16, 1)])
    try:
        with_planned_memory(recipe, plan, sys.argv[1], cards, "13.0", print, look.claim)
    except ValueError as error:
        print(error)
sys.stdout.flush()
sys.stdin.readline()
"""


class Run:
    """A process that plans as a run does once it is told to, and then holds what it has until it ends."""

    def __init__(self, model: Path, folder: Path) -> None:
        path = os.pathsep.join([str(folder), os.environ["PATH"]])
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
        environment.pop(DEVICES, None)
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(model), str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def begin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def said(self) -> str:
        return self._line()


def test_of_two_runs_that_start_at_the_same_moment_one_plans_with_what_the_other_leaves(
    tiny_model: Path, tmp_path: Path
) -> None:
    """The driver says all along that 9.5 GiB are free: nobody has taken any of the 5.6 that a run of this model plans
    with. A process that was killed leaves nothing."""
    smi_program(tmp_path, 10, 9.5)
    runs = [Run(tiny_model, tmp_path) for _ in range(2)]
    try:
        for run in runs:
            run.begin()
        said = {run.process.pid: run.said() for run in runs}
        planned = [pid for pid, line in said.items() if line.startswith("memory of NVIDIA H100")]
        (refused,) = said.keys() - {*planned}
        assert f"GiB free, held by process {planned[0]}; expected a card of its own: end the other run" in said[refused]
        assert len(list(tmp_path.glob(f"{PREFIX}*"))) == 1
        next(run for run in runs if run.process.pid == planned[0]).process.kill()
        third = Run(tiny_model, tmp_path)
        runs.append(third)
        third.begin()
        assert third.said().startswith("memory of NVIDIA H100")
    finally:
        for run in runs:
            run.process.kill()
            run.process.wait(30)


def claimed(folder: Path, driver: Card, gib: float) -> Card:
    """What a run that takes so much has found."""
    with Look(folder) as look:
        (found,) = look.left([driver])
        look.claim({found: gib * GIB})
        return found


def test_a_claim_counts_whatever_of_it_is_in_use_and_once(tmp_path: Path) -> None:
    """10 of 80 GiB are somebody else's, who has no claim."""
    me = (os.getpid(),)
    first = claimed(tmp_path, card(80, 70, holders=(4321,)), 20)
    assert (first.free / GIB, first.holders) == (70, (4321,))
    second = claimed(tmp_path, card(80, 70, holders=(4321,)), 20)  # the first has taken nothing yet
    assert (second.free / GIB, second.holders) == (50, (4321, *me))
    third = claimed(tmp_path, card(80, 35), 5)  # both have, in part
    assert (third.free / GIB, third.holders) == (30, me)
    assert claimed(tmp_path, card(80, 12), 5).free / GIB == 12  # and somebody without a claim has more
    assert claimed(tmp_path, card(80, index=1), 5).free / GIB == 79.5  # of another card nobody has any


def test_who_waits_for_another_ones_look_hears_whose_it_is(tmp_path: Path) -> None:
    with Look(tmp_path), pytest.raises(TimeoutError) as late:
        Look(tmp_path, deadline_s=0.2)
    assert str(late.value) == (
        f"placement: {tmp_path / LOCK}: found process {os.getpid()} looking at this host's GPUs for 0.2 s, expected it "
        "to have planned its memory: end it, or start again"
    )
    begun, held = time.monotonic(), Look(tmp_path)
    threading.Timer(0.5, held.close).start()
    with Look(tmp_path):
        assert time.monotonic() - begun > 0.4


def test_a_place_for_claims_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """As where the root is read only; here the folder goes, once before the look and once within it."""
    expected = f"found that it cannot be written (No such file or directory), expected a {tmp_path / 'tmp'} that can be"
    with pytest.raises(OSError, match=re.escape(f"placement: {tmp_path / 'tmp' / LOCK}: {expected}")):
        Look(tmp_path / "tmp")
    (tmp_path / "tmp").mkdir()
    with Look(tmp_path / "tmp") as look:
        cards = look.left([card(80)])
        shutil.rmtree(tmp_path / "tmp")
        with pytest.raises(OSError, match=re.escape(f"placement: {tmp_path / 'tmp' / PREFIX}...: {expected}")):
            look.claim({cards[0]: GIB})


def test_somebody_elses_file_in_the_locks_place_is_named(tmp_path: Path) -> None:
    """One of mode 600 opens for its owner and for root alone, a link for nobody."""
    found = f"placement: {tmp_path / LOCK}: found a file that cannot be locked (Too many levels of symbolic links), "
    (tmp_path / LOCK).symlink_to("/etc/passwd")
    with pytest.raises(
        OSError, match=re.escape(f"{found}expected one that every user may read: have it removed while no run starts")
    ):
        Look(tmp_path)


def test_what_is_no_claim_and_what_was_left_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / f"{PREFIX}left").write_text('{"uuid": "GPU-0-uuid", "pid": 1, "asked": 1000000000, "others": 0}')
    (tmp_path / f"{PREFIX}link").symlink_to("/etc/passwd")
    (tmp_path / f"{PREFIX}folder").mkdir()
    os.mkfifo(tmp_path / f"{PREFIX}fifo")
    with Look(tmp_path) as look:
        assert look.left([card(80)]) == [card(80)]
    assert not (tmp_path / f"{PREFIX}left").exists()


@pytest.mark.parametrize(("gpus", "taken"), [(1, [0]), (3, [0, 1, 2])])
def test_a_plan_takes_the_first_cards_that_it_may_use(tiny_model: Path, gpus: int, taken: list[int]) -> None:
    """A card that all share as planned; one with an engine or a rank of its own wholly."""
    cards, told = [card(80, index=index) for index in range(4)], dict[Card, float]()
    plan = make_plan(Recipe(), [Share(16, gpus)])
    with_planned_memory(Recipe(), plan, str(tiny_model), cards, "13.0", lambda line: None, told.update)
    assert [one.index for one in told] == taken
    assert all(size == one.free for one, size in told.items()) is (gpus > 1)
    assert all(0 < size < 80 * GIB for size in told.values())
