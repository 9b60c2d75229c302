"""Experiment trackers as sinks: off unless the recipe names them, each imported when it is named. Only TensorBoard's
package is in the lock.

Each gets a step's figures and a probe's once, and the resolved recipe as its configuration. A figure of the table of
figures has its name and its labels, such as `learner_grad_norm` and `rollouts/dropped`; what the lines of a run show
besides has the names of docs/metrics.md, such as `stages/learn/tokens_per_s` and `probe/selfname`. What it keeps stays
in the run's folder, and nothing goes over a network, of the packages' own reports either, unless the tracker's own
environment says so (`QUIET`, and WANDB_MODE, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID).

A resumed run goes on with the run that a tracker had, by the id that is kept in RUN/trackers: seen with mlflow 3.17,
trackio 0.43 and wandb 0.31, and with TensorBoard, where a folder is a run. Steps that are repeated after a checkpoint
are there twice in mlflow and trackio; W&B takes none that is before its last, and TensorBoard hides the older ones.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from cluster.config import Recipe
from cluster.errors import printable
from cluster.observe.figures import FIGURES
from cluster.observe.observer import FAILED, FINISHED, Batch
from cluster.observe.readings import of_step
from cluster.observe.values import TIMES
from cluster.run.record import StepRecord, shown_probe, shown_step
from evidence.files import write_whole

PROJECT = "edge-opd"
KEPT = "trackers"  # a folder of the run's: a file a tracker, with the id of its run
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow"}
# What keeps a package from reporting to its maker, and a user may set otherwise: read as it is imported or before its
# first call (mlflow 3.17, wandb 0.31).
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}
Figures = Mapping[str, float]
STEPS_DONE = "steps_done"  # a figure of each step, and of no probe
# Of the table: a tracker has times of its own, and a stage's gauges say what the step adds to its counters.
NOT_TOLD = {*TIMES, "stage_worked_tokens_total", "stage_busy_seconds_total"}


def require_packages(trackers: Sequence[str]) -> None:
    """ValueError names a tracker whose package is not installed."""
    for name in trackers:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            package = PACKAGES[name]
            raise ValueError(
                f"observe.trackers: {name}: found no package {package}, expected it installed: pip install {package}"
            )


class Tracker(Protocol):
    """One run in a tracker. id: by which it is found again; empty where nothing is to be kept for that. close: `ended`
    says how the run ended, as in `Batch`."""

    id: str

    def log(self, figures: Figures, step: int) -> None: ...

    def close(self, ended: str) -> None: ...


class TensorBoard:
    """Event files in RUN/tensorboard: a run, however many they are."""

    id = ""

    def __init__(self, folder: Path, recipe: Recipe, kept: str) -> None:
        from tensorboardX import SummaryWriter

        self._make, self._folder = SummaryWriter, folder / "tensorboard"
        self._writer: Any = None

    def log(self, figures: Figures, step: int) -> None:
        if self._writer is None:
            goes_on = any(self._folder.glob("events*"))
            # Of an earlier process's figures those from here on are hidden. A probe is of the step before: it stands.
            first = step if STEPS_DONE in figures else step + 1
            self._writer = self._make(str(self._folder), purge_step=first if goes_on else None)
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, ended: str) -> None:
        if self._writer is not None:
            self._writer.close()


class Wandb:
    """W&B, offline in RUN/wandb unless WANDB_MODE says otherwise. Offline there is a folder a process, with the id of
    the run, which `wandb sync` puts together."""

    def __init__(self, folder: Path, recipe: Recipe, kept: str) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE", "offline")
        named = {"project": PROJECT, "name": folder.name, "config": asdict(recipe)}
        again = {"id": kept, "resume": "allow"} if kept else {}
        self._run = wandb.init(**named, **again, dir=str(folder), mode=mode)
        self.id = str(self._run.id)

    def log(self, figures: Figures, step: int) -> None:
        self._run.log(dict(figures), step=step)

    def close(self, ended: str) -> None:
        self._run.finish(exit_code=0 if ended == FINISHED else 1)


class Trackio:
    """trackio, in RUN/trackio unless TRACKIO_DIR says otherwise. It finds a run by its name, and of several the newest:
    where another folder of this name keeps its runs in the same place, that may be the other's."""

    def __init__(self, folder: Path, recipe: Recipe, kept: str) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))  # read as it is imported (trackio 0.43)
        import trackio

        self._module = trackio
        named = {"project": PROJECT, "name": folder.name, "config": asdict(recipe)}
        run = trackio.init(**named, resume="allow") if kept else None
        if run is None or run.id != kept:
            run = trackio.init(**named, resume="never")
        self.id = str(run.id)

    def log(self, figures: Figures, step: int) -> None:
        self._module.log(dict(figures), step=step)

    def close(self, ended: str) -> None:
        self._module.finish()


class Mlflow:
    """MLflow, in RUN/mlflow.db unless MLFLOW_TRACKING_URI says otherwise."""

    def __init__(self, folder: Path, recipe: Recipe, kept: str) -> None:
        import mlflow

        self._module = mlflow
        if "MLFLOW_TRACKING_URI" not in os.environ:
            mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        mlflow.set_experiment(PROJECT)
        self.id = kept if kept and self._has_resumed(kept) else self._begun(folder.name, recipe)

    def _has_resumed(self, kept: str) -> bool:
        """Whether there still is such a run; its parameters, which may not change, are those of its first start."""
        try:
            is_there = self._module.get_run(kept).info.lifecycle_stage == "active"  # and not one that was deleted
        except self._module.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            is_there = False
        if is_there:
            self._module.start_run(run_id=kept)
        return is_there

    def _begun(self, name: str, recipe: Recipe) -> str:
        run = self._module.start_run(run_name=name)
        tables = asdict(recipe).items()
        self._module.log_params({f"{table}.{key}": value for table, keys in tables for key, value in keys.items()})
        return str(run.info.run_id)

    def log(self, figures: Figures, step: int) -> None:
        self._module.log_metrics(dict(figures), step=step)

    def close(self, ended: str) -> None:
        self._module.end_run({FINISHED: "FINISHED", FAILED: "FAILED"}.get(ended, "KILLED"))


# From the run's folder, its recipe, and the id that the tracker's run has; empty for a new one.
MAKERS: Mapping[str, Callable[[Path, Recipe, str], Tracker]] = {
    "tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio, "mlflow": Mlflow,
}  # fmt: skip


class Foreign:
    """Within it whatever a tracker's package raises is a RuntimeError of one line: each has classes of its own."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            raise RuntimeError(printable(" ".join(f"{type(error).__name__}: {error}".split()))) from error


class TrackerSink:
    """A tracker as a sink. It is made with the first batch, in the sink's own thread: some ask a server."""

    def __init__(self, name: str, folder: Path, recipe: Recipe) -> None:
        self.name, self._folder, self._recipe = name, folder, recipe
        self._tracker: Tracker | None = None

    def write(self, batch: Batch) -> None:
        with Foreign():
            self._write(batch)

    def _write(self, batch: Batch) -> None:
        if self._tracker is None:
            for name, value in QUIET.items():
                os.environ.setdefault(name, value)
            self._tracker = self._made()
        told = [(step.step + 1, figures_of(step, self._recipe.run.steps)) for step in batch.steps]
        told += [(probe.step, dict(flat({"probe": shown_probe(probe)}))) for probe in batch.probes]
        for at, figures in sorted(told, key=lambda pair: pair[0]):
            self._tracker.log(figures, at)
        if batch.ended:
            self._tracker.close(batch.ended)

    def _made(self) -> Tracker:
        """With the run that it had, where it is a resume; its id is kept at once."""
        path = self._folder / KEPT / self.name
        kept = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
        tracker = MAKERS[self.name](self._folder, self._recipe, kept)
        if tracker.id:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, f"{tracker.id}\n")
        return tracker


def figures_of(step: StepRecord, planned: int) -> dict[str, float]:
    """All that a tracker is told of a step of `planned`; of a counter what the step adds to it."""
    found = dict(flat(shown_step(step)))
    for reading in of_step(step, planned):
        if reading.name not in NOT_TOLD:
            labels = (reading.labels[label] for label in FIGURES[reading.name].labels)
            found["/".join((reading.name.removesuffix("_total"), *labels))] = reading.value
    return found


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a nested object, by their path; what is no number is left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            yield prefix + name, float(value)
