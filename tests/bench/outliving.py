"""What it costs to outlive faults that do not come: one real run, of which half of the steps are not looked after.

    python -m tests.bench.outliving [--steps 240] [--whole]

Of each two steps chance leaves one alone. In the other the rollout service asks each engine whether it answers and gets
on, the driver asks that service whether it answers and what is new of the engines, and in one pair of five the frozen
teacher is checked. With --whole the steps are those of local-smoke; otherwise the default model has few and short
rollouts, so that a step is short and what is asked in it a large part. What is written to the run's folder is the same
in both. The figures are ratios of a step that is looked after to the other of its pair.
"""

import argparse
import tempfile
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
from tests.bench.recovery import spent
from tests.bench.turns import more, say
from tests.bench.watching import LOCAL_SMOKE, WARM, WHOLE
from tests.runs import RECIPE, SMALL

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

    async def advance(self, version: int, weights_digest: str) -> None:
        self._asks = more(version)
        await super().advance(version, weights_digest)


class Checking(TeacherCheck):
    """As often as in the recipe, and in steps that are looked after."""

    def is_due(self, version: int) -> bool:
        pairs = self._recipe.faults.teacher_check_every // 2
        return more(version) and version // 2 % pairs == 0


async def straight(work: Coroutine[Any, Any, Any]) -> Any:
    """In the place of `RolloutService.beside`."""
    return await work


class Looking(Pipeline):
    """Asks for news, and whether the service answers, in the steps that are looked after.

    spent_s: processor seconds of the whole run at the end of each step.
    """

    spent_s: ClassVar[dict[int, float]] = {}

    async def _attended(self, version: int, work: Coroutine[Any, Any, Any], scores: bool = True) -> Any:
        return await (super()._attended(version, work, scores) if more(version) else work)

    async def _step(self, step: int) -> None:
        if not more(step):
            vars(self.rollout)["beside"] = straight
        await super()._step(step)
        vars(self.rollout).pop("beside", None)
        self.spent_s[step] = spent([psutil.Process()])


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


if __name__ == "__main__":
    main()
