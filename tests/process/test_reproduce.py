"""The reproduction: what is missing is run, what is finished is kept, what was interrupted starts again."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.commands.reproduce import AXES, RECIPES, Told, is_finished, print_reproduction, reproduce
from cluster.config import load_recipe
from cluster.errors import Preempted
from cluster.run.record import ProbeRecord, append_probe
from cluster.run.rundir import RunDir
from rollout.probe import Rate
from tests.process.test_run_folder import another_run
from tests.runs import lines


def probe_at(step: int) -> ProbeRecord:
    return ProbeRecord(step, 0.0, "identity", {"selfname": Rate(1, 4)}, 4, 1)


class Runner:
    """Stands for `edge-opd run`: claims the folder, and finishes the run unless the arm is to fail."""

    def __init__(self, failing: str = "") -> None:
        self.failing, self.arms = failing, list[str]()

    def __call__(self, arguments: list[str]) -> int:
        recipe = load_recipe(arguments[1], [arguments[i + 1] for i, a in enumerate(arguments) if a == "--set"])
        place = RunDir(Path(arguments[arguments.index("--run-dir") + 1]))
        assert "--resume=auto" in arguments
        resume = place.has_begun
        place.claim(recipe, resume)
        place.release()
        self.arms.append(place.root.name + " resumed" * resume)
        append_probe(place.probes, probe_at(0))
        if recipe.run.name == self.failing:
            return 1
        append_probe(place.probes, probe_at(recipe.run.steps))
        place.export.mkdir()
        (place.export / "README.md").write_text("card")
        return 0


@pytest.mark.parametrize("status", [75, -15, 0])
def test_a_reproduction_that_is_told_to_end_tells_its_run_and_begins_no_other(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run ends by the signal where it does not heed it yet, and well where it was about to."""
    monkeypatch.setattr("cluster.commands.reproduce.is_finished", lambda *_: False)
    ran = list[str]()

    def process(arguments: list[str], told: Callable[[], int]) -> int:
        ran.append(arguments[1])
        os.kill(os.getpid(), signal.SIGTERM)
        while not told():
            time.sleep(0.01)
        return status

    monkeypatch.setattr("cluster.commands.reproduce.run_process", process)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match=r"^reproduce: stopped as asked: the same command continues .*N[13]-seed0$"):
        print_reproduction(["identity"], 1, tmp_path, ())
    assert len(ran) == 1 and signal.getsignal(signal.SIGTERM) is before


def test_what_a_process_is_told_to_ignore_it_ignores() -> None:
    """As nohup has it ignore the end of its terminal."""
    told, before = Told(), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with told.heeding():
            os.kill(os.getpid(), signal.SIGHUP)
        assert told.times() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_every_arm_is_a_recipe() -> None:
    assert all((RECIPES / f"{arm}.toml").is_file() for arms in AXES.values() for arm in arms)


def test_a_finished_run_is_not_run_again_and_an_interrupted_one_is(tmp_path: Path) -> None:
    first = Runner(failing="N12")
    with pytest.raises(RuntimeError, match=r"reproduce: .*N12-seed0: the run ended with exit code 1"):
        reproduce(["identity"], 1, tmp_path, (), first)
    assert first.arms == ["N3-seed0", "N1-seed0", "N12-seed0"]
    second = Runner()
    runs = reproduce(["identity"], 1, tmp_path, (), second)
    assert second.arms == ["N12-seed0 resumed", *(f"{arm}-seed0" for arm in AXES["identity"][3:])]
    assert [run.name for run in runs] == [f"{arm}-seed0" for arm in AXES["identity"]]
    third = Runner()
    reproduce(["identity"], 2, tmp_path, (), third)
    assert third.arms == [f"{arm}-seed1" for arm in AXES["identity"]]


def test_a_folder_of_another_recipe_is_refused_and_kept(tmp_path: Path) -> None:
    reproduce(["identity"], 1, tmp_path, (), Runner())
    with pytest.raises(ValueError, match=r"N3-seed0/config.toml: run.steps: found 24, expected 5"):
        reproduce(["identity"], 1, tmp_path, ["run.steps=5"], Runner())
    assert (tmp_path / "N3-seed0" / "export" / "README.md").is_file()


def test_an_unknown_axis_and_no_seed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^--axis: found 'cooking', expected one of identity"):
        reproduce(["cooking"], 1, tmp_path, (), Runner())
    with pytest.raises(ValueError, match="--seeds: found 0, expected at least 1"):
        reproduce(["identity"], 0, tmp_path, (), Runner())


def test_a_run_without_its_last_probe_is_not_finished(tmp_path: Path) -> None:
    recipe, place = load_recipe(RECIPES / "N3.toml"), RunDir(tmp_path / "run")
    assert not is_finished(place, recipe)
    place.claim(recipe, resume=False)
    append_probe(place.probes, probe_at(0))
    assert not is_finished(place, recipe)


def test_an_interrupted_run_goes_on_and_nothing_of_it_is_deleted(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        reproduce(["identity"], 1, tmp_path, (), Runner(failing="N3"))
    interrupted = RunDir(tmp_path / "N3-seed0")
    second = Runner(failing="N1")
    with pytest.raises(RuntimeError):
        reproduce(["identity"], 1, tmp_path, (), second)
    assert second.arms == ["N3-seed0 resumed", "N1-seed0"]
    assert [line["step"] for line in lines(interrupted.probes)] == [0, 0, 24]


@pytest.mark.parametrize("has_checkpoint", [False, True])
def test_a_second_reproduce_leaves_the_firsts_live_run_alone(tmp_path: Path, has_checkpoint: bool) -> None:
    """Whose process holds the folder, and has no checkpoint yet."""
    root = tmp_path / "N3-seed0"
    with pytest.raises(RuntimeError):
        reproduce(["identity"], 1, tmp_path, (), Runner(failing="N3"))
    if has_checkpoint:
        (root / "checkpoints" / "latest").write_text("step-000008")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.name not in (".lock", "owner.json")}
    with another_run(root) as first, pytest.raises(ValueError, match=f"under way in it .process {first.pid} on "):
        reproduce(["identity"], 1, tmp_path, (), Runner())
    after = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.name not in (".lock", "owner.json")}
    assert {path: after[path] for path in before} == before


def test_a_finished_run_with_a_torn_line_is_finished_and_an_unfinished_one_is_not(tmp_path: Path) -> None:
    recipe, place = load_recipe(RECIPES / "N3.toml", ["run.seed=0"]), RunDir(tmp_path / "N3-seed0")
    reproduce(["identity"], 1, tmp_path, (), Runner())
    content = place.probes.read_text()
    place.probes.write_text(content + content[:40])
    assert is_finished(place, recipe)
    place.probes.write_text(content[:-1])  # the last probe's line has no end: it never happened
    assert not is_finished(place, recipe)
