"""What of a run is shown while it lasts. None of it changes a figure."""

from dataclasses import dataclass

from evidence.require import require

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")


@dataclass(frozen=True)
class ObserveConfig:
    """What is shown of a run while it lasts. It changes no result, and a resumed run may have other values."""

    every_s: float = 5.0  # seconds between samples of the engines and services
    page: bool = True  # RUN/dashboard.html, written anew as the run goes on
    ray: bool = True  # figures at the metrics endpoint of Ray, for Prometheus
    trackers: tuple[str, ...] = ()  # of tensorboard, wandb, trackio, mlflow; each needs its package

    def __post_init__(self) -> None:
        require(self.every_s > 0, "observe.every_s", self.every_s, "more than 0 seconds")
        for name in self.trackers:
            require(name in TRACKERS, "observe.trackers", name, f"one of {TRACKERS}")
