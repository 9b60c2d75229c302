"""Trackers: what they are told, that one without its package is refused, and what a real TensorBoard file holds."""

import json
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.config import Recipe, RunConfig, load_recipe
from cluster.observe.config import TRACKERS, ObserveConfig
from cluster.observe.observer import Batch
from cluster.observe.readings import of_step
from cluster.observe.trackers import (
    MAKERS,
    NOT_TOLD,
    PACKAGES,
    QUIET,
    TrackerSink,
    figures_of,
    flat,
    require_packages,
)
from cluster.resolved import difference
from tests.observed import a_step
from tests.unit.test_observer import Kept, answers, observed
from tests.unit.test_record import a_probe

BATCHES = [Batch(0.0, steps=(a_step(0), a_step(1))), Batch(0.0, probes=(a_probe(2),)), Batch(0.0, ended="finished")]
# A module that writes down what it is told: W&B's and trackio's first three functions, and MLflow's.
STAND_IN = """
import json, os, pathlib, types
told = pathlib.Path(__file__).with_suffix(".told")
told.with_suffix(".environment").write_text(json.dumps(dict(os.environ)))  # as it is imported

def note(name):
    def act(*arguments, **named):
        with told.open("a") as file:
            file.write(json.dumps([name, arguments, named], default=str) + "\\n")
        return Run()
    return act

class MlflowException(Exception):
    error_code = os.environ.get("STAND_IN_CODE", "")

def get_run(run_id):
    if MlflowException.error_code:
        raise MlflowException("Run not found")
    stage = os.environ.get("STAND_IN_STAGE", "active")
    return types.SimpleNamespace(info=types.SimpleNamespace(lifecycle_stage=stage))

class Run:
    id = os.environ.get("STAND_IN_ID", "a1")
    info = types.SimpleNamespace(run_id=id)
    log = staticmethod(note("log"))
    finish = staticmethod(note("finish"))

init, log, finish = note("init"), note("log"), note("finish")
set_tracking_uri, set_experiment, start_run = note("set_tracking_uri"), note("set_experiment"), note("start_run")
log_params, log_metrics, end_run = note("log_params"), note("log_metrics"), note("end_run")
"""


@pytest.mark.parametrize(
    ("tracker", "log", "end"),
    [("wandb", "log", "finish"), ("trackio", "log", "finish"), ("mlflow", "log_metrics", "end_run")],
)
def test_a_tracker_is_told_the_recipe_each_step_and_each_probe_once(
    tracker: str, log: str, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{tracker}.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, tracker, raising=False)
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_DIR", *QUIET):
        monkeypatch.setenv(name, "")  # so that what the sink sets is taken back
        monkeypatch.delenv(name)
    require_packages([tracker])
    sink = TrackerSink(tracker, tmp_path / "run", Recipe())
    for batch in BATCHES:
        sink.write(batch)
    monkeypatch.delitem(sys.modules, tracker)
    told = [json.loads(line) for line in (tmp_path / f"{tracker}.told").read_text().splitlines()]
    logged = [(arguments[0], named["step"]) for name, arguments, named in told if name == log]
    assert [step for _, step in logged] == [1, 2, 2] and told[-1][0] == end
    figures = {reading.name for reading in of_step(a_step(0), 8)}
    assert {name.removesuffix("_total") for name in figures - NOT_TOLD} <= {
        name.partition("/")[0] for name in logged[0][0]
    }
    assert logged[0][0]["stages/learn/tokens"] == 2100 and logged[2][0]["probe/selfname"] == 0.25
    environment = json.loads((tmp_path / f"{tracker}.environment").read_text())
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true" and environment["WANDB_ERROR_REPORTING"] == "false"
    words = json.dumps(told)
    assert "run.steps" in words or '"steps": 32' in words
    if tracker == "wandb":
        assert told[0][2]["mode"] == "offline" and told[0][2]["name"] == "run"
    if tracker == "trackio":
        assert environment["TRACKIO_DIR"] == str(tmp_path / "run" / "trackio")
    if tracker == "mlflow":
        assert told[0] == ["set_tracking_uri", [f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}"], {}]


def test_a_tracker_has_each_figure_of_a_step_with_its_labels() -> None:
    """What the step added of a counter."""
    told = figures_of(a_step(2), 8)
    expected = {
        "learner_grad_norm": a_step(2).grad_norm, "canary_nats": a_step(2).canary, "learner_loss": -0.28,
        "rollouts/trained": 31, "rollouts/skipped": 1, "rollouts/dropped": 2, "rollouts/nonfinite": 0,
        "prompts_refused": 0, "responses/length": 4, "policy_lag_steps/max": 1, "policy_lag_steps/min": 0,
        "learner_nonfinite_updates": 0, "learner_memory_bytes/1/device": 6 << 30, "step_seconds": 10.0,
        "eta_seconds": 50.0, "verdicts/repeated": 2, "kept_ratio/plain": told["diagnostics/plain/kept"],
    }  # fmt: skip
    assert {name: told[name] for name in expected} == pytest.approx(expected)
    assert told["stages/learn/tokens_per_s"] > 0 and "last_step_timestamp_seconds" not in told


def test_a_later_step_is_told_after_a_probe_that_came_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B takes no figures of a step before its last."""
    told: list[int] = []
    taken = SimpleNamespace(id="", log=lambda figures, step: told.append(step))
    monkeypatch.setattr("cluster.observe.trackers.MAKERS", {"wandb": lambda *_: taken})
    sink = TrackerSink("wandb", Path("/nowhere"), Recipe())
    sink.write(Batch(0.0, steps=(a_step(7), a_step(8)), probes=(a_probe(8), a_probe(9))))
    assert told == [8, 8, 9, 9]


@pytest.mark.parametrize(
    ("tracker", "ended", "told"),
    [
        ("wandb", "finished", ["finish", [], {"exit_code": 0}]),
        ("wandb", "failed", ["finish", [], {"exit_code": 1}]),
        ("wandb", "stopped", ["finish", [], {"exit_code": 1}]),
        ("mlflow", "finished", ["end_run", ["FINISHED"], {}]),
        ("mlflow", "failed", ["end_run", ["FAILED"], {}]),
        ("mlflow", "restarting", ["end_run", ["KILLED"], {}]),
    ],
)
def test_a_tracker_is_told_how_the_run_ended(
    tracker: str, ended: str, told: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{tracker}.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI", *QUIET):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, tracker, raising=False)
    TrackerSink(tracker, tmp_path / "run", Recipe()).write(Batch(0.0, ended=ended))
    monkeypatch.delitem(sys.modules, tracker)
    assert json.loads((tmp_path / f"{tracker}.told").read_text().splitlines()[-1]) == told


Resumes = Callable[[str], list[Any]]  # what a tracker is told as a run is resumed, by the tracker's name


@pytest.fixture
def resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Resumes:
    def resume(tracker: str) -> list[Any]:
        (tmp_path / f"{tracker}.py").write_text(STAND_IN)
        monkeypatch.syspath_prepend(tmp_path)
        for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_DIR", *QUIET):
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        monkeypatch.delitem(sys.modules, tracker, raising=False)
        TrackerSink(tracker, tmp_path / "run", Recipe()).write(BATCHES[0])
        monkeypatch.delitem(sys.modules, tracker)
        return [json.loads(line) for line in (tmp_path / f"{tracker}.told").read_text().splitlines()]

    return resume


@pytest.mark.parametrize(
    ("tracker", "begins", "first", "again"),
    [
        ("wandb", "init", {}, {"id": "a1", "resume": "allow"}),
        ("trackio", "init", {"resume": "never"}, {"resume": "allow"}),
        ("mlflow", "start_run", {"run_name": "run"}, {"run_id": "a1"}),
    ],
)
def test_a_resumed_run_goes_on_with_the_run_that_a_tracker_had(
    tracker: str, begins: str, first: dict[str, str], again: dict[str, str], tmp_path: Path, resumes: Resumes
) -> None:
    resumes(tracker)
    assert (tmp_path / "run" / "trackers" / tracker).read_text() == "a1\n"
    told = resumes(tracker)
    keys, begun = {*first, *again}, [named for name, _, named in told if name == begins]
    assert [{key: named[key] for key in keys & named.keys()} for named in begun] == [first, again]
    assert [name for name, *_ in told].count("log_params") == (tracker == "mlflow")  # they may not change


def test_another_run_of_the_name_and_one_that_is_gone_are_not_gone_on_with(
    tmp_path: Path, resumes: Resumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tracker in ("trackio", "mlflow"):
        resumes(tracker)
    monkeypatch.setenv("STAND_IN_ID", "z9")
    monkeypatch.setenv("STAND_IN_CODE", "RESOURCE_DOES_NOT_EXIST")
    assert [named["resume"] for name, _, named in resumes("trackio") if name == "init"] == ["never", "allow", "never"]
    assert [named for name, _, named in resumes("mlflow") if name == "start_run"] == [{"run_name": "run"}] * 2
    for tracker in ("trackio", "mlflow"):
        assert (tmp_path / "run" / "trackers" / tracker).read_text() == "z9\n"
    monkeypatch.setenv("STAND_IN_CODE", "")
    monkeypatch.setenv("STAND_IN_STAGE", "deleted")
    assert [named for name, _, named in resumes("mlflow") if name == "start_run"] == [{"run_name": "run"}] * 3
    monkeypatch.setenv("STAND_IN_CODE", "INTERNAL_ERROR")
    with pytest.raises(RuntimeError, match=r"^MlflowException: Run not found$"):
        resumes("mlflow")


def hidden_from(file: Path) -> list[int]:
    """The steps from which an event file hides what other files of its folder have."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    data, found, place = file.read_bytes(), [], 0
    while place < len(data):  # a length of 8 bytes, its checksum of 4, the event, its checksum of 4
        (length,) = struct.unpack_from("<Q", data, place)
        event = Event.FromString(data[place + 12 : place + 12 + length])
        found += [event.step] if event.session_log.status == SessionLog.START else []
        place += length + 16
    return found


@pytest.mark.parametrize(
    ("batch", "hidden"), [(Batch(0.0, steps=(a_step(5),)), 6), (Batch(0.0, probes=(a_probe(5),)), 6)], ids=["step", ""]
)
def test_tensorboard_hides_the_steps_that_a_resume_repeats(batch: Batch, hidden: int, tmp_path: Path) -> None:
    """Six updates were made: the figures of the step before, which are at 5, stand."""
    pytest.importorskip("tensorboardX", reason="needs the package tensorboardX")
    folder = tmp_path / "tensorboard"
    for told in (BATCHES[0], batch):
        sink = TrackerSink("tensorboard", tmp_path, Recipe())
        for one in (told, BATCHES[-1]):
            sink.write(one)
        (file,) = folder.glob("events.out*")
        file.rename(folder / f"events.{len(list(folder.iterdir()))}")  # a name is of a second
    assert [hidden_from(folder / f"events.{place}") for place in (1, 2)] == [[], [hidden]]


def test_what_a_user_says_of_a_tracker_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trackio.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    own = {"TRACKIO_DIR": "/elsewhere", "MLFLOW_DISABLE_TELEMETRY": "false", "WANDB_ERROR_REPORTING": "true"}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    TrackerSink("trackio", tmp_path / "run", Recipe()).write(BATCHES[0])
    monkeypatch.delitem(sys.modules, "trackio")
    environment = json.loads((tmp_path / "trackio.environment").read_text())
    assert {name: environment[name] for name in own} == own


def test_tensorboards_own_files_hold_every_figure(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="needs the package tensorboardX")
    sink = TrackerSink("tensorboard", tmp_path, Recipe())
    for batch in BATCHES:
        sink.write(batch)
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"stages/learn/tokens_per_s" in file.read_bytes() and b"probe/selfname" in file.read_bytes()


class CommError(Exception):
    """As W&B has its own."""


class Odd:
    """A tracker that fails as it is told something."""

    id = ""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def log(self, figures: object, step: int) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (CommError("no answer\nfrom \x1b[31mthe server"), "CommError: no answer from  [31mthe server"),
        (KeyError("run"), "KeyError: 'run'"),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("when", ["made", "told"])
def test_whatever_a_tracker_raises_is_one_line_with_its_name_and_the_run_goes_on(
    error: Exception, words: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(folder: Path, recipe: Recipe, kept: str) -> Odd:
        if when == "made":
            raise error
        return Odd(error)

    monkeypatch.setattr(threading, "excepthook", lambda failed: pytest.fail(str(failed)))
    monkeypatch.setattr("cluster.observe.trackers.MAKERS", {"wandb": make})
    monkeypatch.setattr("cluster.observe.trackers.QUIET", {})
    good = Kept()
    said = observed(answers, [TrackerSink("wandb", tmp_path, Recipe()), good])
    assert said == [f"observe: wandb: {words}; the run goes on without it"]
    assert len(good.all("steps")) == 5 and good.batches[-1].ended == "finished"


def test_a_tracker_without_its_package_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, package in PACKAGES.items():
        expected = f"observe.trackers: {name}: found no package {package}, expected it installed: pip install {package}"
        with pytest.raises(ValueError, match=f"^{expected}$"):
            require_packages([name])
    require_packages([])


def test_a_tracker_that_is_none_is_refused_by_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[observe]\ntrackers = ["tensorboard", "comet"]\n')
    with pytest.raises(ValueError, match=r"observe\.trackers: found 'comet', expected one of \('tensorboard', 'wandb'"):
        load_recipe(path)
    path.write_text("[observe]\nevery_s = 0\n")
    with pytest.raises(ValueError, match=r"observe\.every_s: found 0\.0, expected more than 0 seconds"):
        load_recipe(path)
    assert set(TRACKERS) == set(PACKAGES) == set(MAKERS)


def test_a_resumed_run_may_be_watched_otherwise() -> None:
    watched = replace(Recipe(), observe=ObserveConfig(every_s=1.0, page=False, trackers=("tensorboard",)))
    assert difference(Recipe(), watched) is None
    assert difference(Recipe(), replace(watched, run=RunConfig(seed=1))) == ("run", "seed")


def test_figures_are_flat_numbers() -> None:
    assert dict(flat({"a": {"b": 1, "c": None, "d": [1, 2]}, "e": 0.5, "f": "x"})) == {"a/b": 1.0, "e": 0.5}
