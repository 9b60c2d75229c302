"""Experiment trackers as sinks: off unless the recipe names them, each imported when it is named. Only TensorBoard's
package is in the lock.

Each gets a step's figures and a probe's once, with names such as `stages/learn/tokens_per_s` and `probe/selfname`, and
the resolved recipe as its configuration. What it keeps stays in the run's folder, and nothing goes over a network, of
the packages' own reports either, unless the tracker's own environment says so (`QUIET`, and WANDB_MODE,
MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID).
"""

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from cluster.config import Recipe
from cluster.errors import printable
from cluster.observe.observer import Batch
from cluster.run.record import shown_probe, shown_step

PROJECT = "edge-opd"
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow"}
# What keeps a package from reporting to its maker, and a user may set otherwise: read as it is imported or before its
# first call (mlflow 3.17, wandb 0.31).
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}
Figures = Mapping[str, float]


def require_packages(trackers: Sequence[str]) -> None:
    """ValueError names a tracker whose package is not installed."""
    for name in trackers:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            package = PACKAGES[name]
            raise ValueError(
                f"observe.trackers: {name}: found no package {package}, expected it installed: pip install {package}"
            )


class Tracker(Protocol):
    """One run in a tracker."""

    def log(self, figures: Figures, step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in RUN/tensorboard."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, figures: Figures, step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """W&B, offline in RUN/wandb unless WANDB_MODE says otherwise."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE", "offline")
        named = {"project": PROJECT, "name": folder.name, "config": asdict(recipe)}
        self._run = wandb.init(**named, dir=str(folder), mode=mode)

    def log(self, figures: Figures, step: int) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """trackio, in RUN/trackio unless TRACKIO_DIR says otherwise."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))  # read as it is imported (trackio 0.43)
        import trackio

        self._module = trackio
        trackio.init(project=PROJECT, name=folder.name, config=asdict(recipe))

    def log(self, figures: Figures, step: int) -> None:
        self._module.log(dict(figures), step=step)

    def close(self) -> None:
        self._module.finish()


class Mlflow:
    """MLflow, in RUN/mlflow.db unless MLFLOW_TRACKING_URI says otherwise."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        import mlflow

        self._module = mlflow
        if "MLFLOW_TRACKING_URI" not in os.environ:
            mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        mlflow.set_experiment(PROJECT)
        mlflow.start_run(run_name=folder.name)
        tables = asdict(recipe)
        mlflow.log_params({f"{table}.{key}": value for table, keys in tables.items() for key, value in keys.items()})

    def log(self, figures: Figures, step: int) -> None:
        self._module.log_metrics(dict(figures), step=step)

    def close(self) -> None:
        self._module.end_run()


MAKERS: Mapping[str, Callable[[Path, Recipe], Tracker]] = {
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
            self._tracker = MAKERS[self.name](self._folder, self._recipe)
        for step in batch.steps:
            self._tracker.log(dict(flat(shown_step(step) | {"wall_s": step.wall_s, "loss": step.loss})), step.step + 1)
        for probe in batch.probes:
            self._tracker.log(dict(flat({"probe": shown_probe(probe)})), probe.step)
        if batch.ended:
            self._tracker.close()


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a nested object, by their path; what is no number is left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            yield prefix + name, float(value)
