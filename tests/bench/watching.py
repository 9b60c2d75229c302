"""What watching a run costs: one real run, of which half of the steps are watched, by everything that needs no network.

    python -m tests.bench.watching [--steps 60] [--whole]

With --whole the steps are those of local-smoke; otherwise the default model has few and short rollouts, so that a step
is short and what is shown of it a large part. Of each two steps chance has one watched. In it the observer asks, and
files, page, Ray's figures and TensorBoard's are written; in the other it does nothing. The figures are the ratio of a
watched step to the other of its pair, and the processor time of the threads that show the run. Engines count in both
(`tests.bench.counting`).
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.config import Recipe, load_recipe
from cluster.observe.observer import Batch, Observer, Sink
from cluster.observe.ray_sink import RaySink
from cluster.run import start, watch
from cluster.run.record import StepRecord, read_steps
from cluster.run.rundir import RunDir
from tests.bench.figures import Figure
from tests.bench.turns import more
from tests.bench.turns import say as in_turns
from tests.runs import RECIPE, SMALL

LOCAL_SMOKE = RECIPE.with_name("local-smoke.toml")
WHOLE = ("run.probe_every=0", "run.checkpoint_every=0", "probe.samples=1", "probe.require=0.0")
WARM = 4  # steps at the beginning that do not count


class Timed:
    """A sink that counts the processor time of its own thread."""

    def __init__(self, sink: Sink) -> None:
        self.name, self._sink, self.seconds = sink.name, sink, 0.0

    def write(self, batch: Batch) -> None:
        begun = time.thread_time()
        self._sink.write(batch)
        self.seconds += time.thread_time() - begun


class InTurns(Observer):
    """Watches one step of each two. A step's record is shown in the step after it."""

    watches = more(0)

    def step(self, record: StepRecord) -> None:
        self.watches = more(record.step + 1)
        if self.watches:
            super().step(record)

    async def _sample(self) -> None:
        if self.watches:
            await super()._sample()

    def _feed(self, ended: str = "") -> None:
        if self.watches or ended:
            super()._feed(ended)
        else:
            self._heard.clear()
            self._activity.take()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--whole", action="store_true")
    arguments = parser.parse_args()
    steps = arguments.steps
    sinks: list[Timed] = []

    made_of = watch.sinks_of

    def timed(recipe: Recipe, folder: RunDir, exporters: Sequence[RaySink]) -> list[Sink]:
        sinks.extend(map(Timed, made_of(recipe, folder, exporters)))
        return [*sinks]

    setattr(watch, "sinks_of", timed)  # noqa: B010
    setattr(watch, "Observer", InTurns)  # noqa: B010
    with tempfile.TemporaryDirectory() as temporary:
        recipe, settings = (LOCAL_SMOKE, WHOLE) if arguments.whole else (RECIPE, SMALL)
        made = load_recipe(recipe, [*settings, f"run.steps={steps}", 'observe.trackers=["tensorboard"]'])
        assert start.run_recipe(made, str(Path(temporary) / "run"), None) == 0
        assert [sink.name for sink in sinks] == ["files", "page", "Ray's metrics", "tensorboard"], "everything is on"
        records = read_steps(Path(temporary) / "run" / "metrics.jsonl")
    say({step: record.wall_s or 0.0 for step, record in records.items() if step >= WARM}, sinks)


def say(walls: dict[int, float], sinks: list[Timed]) -> None:
    """walls: seconds by step."""
    in_turns("watched step over one that is not", walls, "<= 1.01")
    watched = sum(seconds for step, seconds in walls.items() if more(step))
    parts = ", ".join(f"{sink.name} {sink.seconds / watched:.2%}" for sink in sinks)
    share = sum(sink.seconds for sink in sinks) / watched
    Figure("processor time of what shows it, of a watched step's", share, "<= 0.01", parts).say()


if __name__ == "__main__":
    main()
