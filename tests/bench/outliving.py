"""What it costs to outlive faults that do not come: one real run, of which half of the steps are not looked after.

    python -m tests.bench.outliving [--steps 240] [--whole]

Of each two steps chance leaves one alone. In the other the rollout service asks each engine whether it answers and gets
on, the driver asks that service whether it answers and what is new of the engines, and in one pair of five the frozen
teacher is checked. With --whole the steps are those of local-smoke; otherwise the default model has few and short
rollouts, so that a step is short and what is asked in it a large part. What is written to the run's folder is the same
in both. Two figures are ratios of a step that is looked after to the other of its pair.

A step differs from its neighbour by far more than what is looked for. So the parts are measured too: the processor time
of the questions while nothing else works, in turns of asking and not, over that of the steps; and the time of a
teacher's check, for which a step waits.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, ClassVar

import psutil
import ray

from cluster.config import load_recipe
from cluster.fleet import assembly
from cluster.fleet.engines import EngineClient
from cluster.fleet.seats import Seat
from cluster.run import pipeline, start
from cluster.run.pipeline import Pipeline
from cluster.run.record import read_steps
from cluster.run.teacher_check import TeacherCheck
from tests.bench.figures import Figure
from tests.bench.recovery import spent
from tests.bench.turns import more, say
from tests.bench.watching import LOCAL_SMOKE, WARM, WHOLE
from tests.runs import RECIPE, SMALL

TURNS, TURN_S = 24, 8.0

Actor = assembly.RolloutActor.__ray_metadata__.modified_class  # type: ignore[attr-defined]


class InTurns(Actor):  # type: ignore[misc, valid-type]
    """Asks its engines in the steps that are looked after."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._asks, roster = True, self._fleet.roster
        ping = roster._ping

        async def in_turns(seat: Seat, engine: EngineClient) -> None:
            if self._asks:
                await ping(seat, engine)
            else:
                seat.get_on()

        roster._ping = in_turns

    async def asks(self, so: bool) -> None:
        self._asks = so

    async def advance(self, version: int, weights_digest: str) -> None:
        self._asks = more(version)
        await super().advance(version, weights_digest)


class Checking(TeacherCheck):
    """As often as in the recipe, and in steps that are looked after.

    took_s: each check.
    """

    took_s: ClassVar[list[float]] = []

    def is_due(self, version: int) -> bool:
        pairs = self._recipe.faults.teacher_check_every // 2
        return more(version) and version // 2 % pairs == 0

    async def run(self, *arguments: Any) -> None:
        begun = time.perf_counter()
        await super().run(*arguments)
        self.took_s.append(time.perf_counter() - begun)


async def straight(work: Coroutine[Any, Any, Any]) -> Any:
    """In the place of `RolloutService.beside`."""
    return await work


class Looking(Pipeline):
    """Asks for news, and whether the service answers, in the steps that are looked after.

    spent_s: processor seconds of the whole run at the end of each step. still_s: of each turn after the last step.
    """

    spent_s: ClassVar[dict[int, float]] = {}
    still_s: ClassVar[dict[int, float]] = {}

    async def _attended(self, version: int, work: Coroutine[Any, Any, Any], scores: bool = True) -> Any:
        return await (super()._attended(version, work, scores) if more(version) else work)

    async def _step(self, step: int) -> None:
        if not more(step):
            vars(self.rollout)["beside"] = straight
        await super()._step(step)
        vars(self.rollout).pop("beside", None)
        self.spent_s[step] = spent([psutil.Process()])

    async def _end(self, version: int) -> None:
        for turn in range(TURNS):
            await self.rollout.handle.asks.remote(more(turn))
            still, begun = asyncio.sleep(TURN_S), spent([psutil.Process()])
            await (self.rollout.beside(super()._attended(version, still)) if more(turn) else still)
            self.still_s[turn] = spent([psutil.Process()]) - begun
        await super()._end(version)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--whole", action="store_true")
    arguments = parser.parse_args()
    setattr(assembly, "RolloutActor", ray.remote(InTurns))  # noqa: B010
    setattr(start, "Pipeline", Looking)  # noqa: B010
    setattr(pipeline, "TeacherCheck", Checking)  # noqa: B010
    with tempfile.TemporaryDirectory() as temporary:
        recipe, settings = (LOCAL_SMOKE, WHOLE) if arguments.whole else (RECIPE, SMALL)
        made = load_recipe(recipe, [*settings, f"run.steps={arguments.steps}"])
        assert start.run_recipe(made, str(Path(temporary) / "run"), None) == 0
        records = read_steps(Path(temporary) / "run" / "metrics.jsonl")
    counted, at = [step for step in records if step >= WARM], Looking.spent_s
    say("step that is looked after over one that is not", {k: records[k].wall_s or 0.0 for k in counted}, "<= 1.005")
    took = {step: at[step] - at[step - 1] for step in counted}
    say("its processor seconds over those of one that is not", took, "<= 1.005")
    say_parts(
        made.faults.teacher_check_every, statistics.median(took.values()), [records[k].wall_s or 0.0 for k in counted]
    )


def say_parts(every: int, step_cpu_s: float, walls: list[float]) -> None:
    """every: steps from one check of the teacher to the next. walls: seconds of each step."""
    wall, still = statistics.median(walls), Looking.still_s
    more_s = [(still[turn] - still[turn ^ 1]) / TURN_S for turn in still if more(turn)]
    asking, error = statistics.mean(more_s), statistics.stdev(more_s) / len(more_s) ** 0.5
    note = f"{1000 * asking:.1f} ms each second, standard error {1000 * error:.1f}, of {os.cpu_count()} cores"
    Figure(
        "processor time of the questions, over that of the steps", asking * wall / step_cpu_s, "<= 0.005", note
    ).say()
    check = statistics.median(Checking.took_s[1:])
    note = f"{check:.3f} s each {every} steps, step {wall:.2f} s"
    Figure("time of the teacher's checks, over that of the steps", check / every / wall, "<= 0.005", note).say()


if __name__ == "__main__":
    main()
