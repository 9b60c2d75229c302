"""RUN/gap.json: what there is to learn, as the teacher showed it before step 1."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cluster.config import Recipe
from evidence.files import write_whole
from evidence.rates import RATES
from evidence.records import Ids
from rollout.gap import Asked, asks_the_probe, gap_questions
from rollout.probe import Rate, summarise
from rollout.render import Renderer
from rollout.requests import step_seed
from rollout.tasks.base import ProbePrompt, Task

HELP = "another rollout.context_position, other words in the context, or examples in it (`edge-opd gap` shows each)"
# (what for, prompts, seed) to decoded answers a prompt
Texts = Callable[[str, list[Ids], int], Awaitable[list[list[str]]]]


@dataclass(frozen=True)
class Gap:
    """The rates of the teacher with the context, and of the base without it, over the same questions.

    Example:
        Gap(time=1795834800.0, probe="identity", teacher={"selfname": Rate(k=33, n=96)}, base={"selfname": Rate(0, 96)})
    """

    time: Annotated[float, "s", "Unix time at which it was measured"]
    probe: Annotated[str, "", "the task's name"]
    teacher: Annotated[Mapping[str, Rate], "", "with the context, the task's main rate first"]
    base: Annotated[Mapping[str, Rate], "", "without it"]

    @property
    def main(self) -> str:
        """The name of the task's main rate."""
        return next(iter(self.teacher))

    @property
    def is_zero(self) -> bool:
        """Whether the teacher shows no more of it than the base."""
        return self.teacher[self.main].share <= self.base[self.main].share

    def line(self) -> str:
        """Every rate, the teacher's beside the base's."""
        shown = (
            f"{RATES[name].short} {rate.share:.2f} ({self.base[name].share:.2f})" for name, rate in self.teacher.items()
        )
        answers = self.teacher[self.main].n
        return f"gap: teacher with the context (base without it), {answers} answers: {'  '.join(shown)}"

    def warning(self) -> str:
        """What to do where there is nothing to learn; empty where there is."""
        if not self.is_zero:
            return ""
        told, base = self.teacher[self.main], self.base[self.main]
        return (
            f"gap: found {RATES[self.main].label} in {told.share:.2f} of the teacher's {told.n} answers with the "
            f"context and in {base.share:.2f} without it, expected more with it: there is nothing to learn. Try {HELP}"
        )


def teaches_itself(recipe: Recipe) -> bool:
    """Whether the student's initial weights are the teacher's, so that the student's engines answer for it."""
    return not (recipe.teacher.path or recipe.teacher.url)


async def measured(
    recipe: Recipe, task: Task, renderer: Renderer, texts: Texts, base: Mapping[str, Rate] | None
) -> Gap | None:
    """The gap as `texts`, of an engine with the initial weights, answers; None where there is nothing to ask.

    base: the rates of the probe at step 0, where it has been asked.
    """
    questions = [asked for asked in gap_questions(task) if _fits(asked, recipe, renderer)]
    if not questions:
        return None
    prompts = [probe for probe, _ in questions]
    seed = step_seed(recipe.run.seed, 0)
    told = await texts("gap: teacher", [renderer.context_prompt_ids(p.turns, r) for p, r in questions], seed)
    if base is None or not asks_the_probe(questions, task):
        alone = await texts("gap: base", [renderer.prompt_ids(p.turns) for p in prompts], seed)
        base = await _rates(prompts, alone, task, renderer)
    return Gap(time.time(), task.name, await _rates(prompts, told, task, renderer), base)


def _fits(asked: Asked, recipe: Recipe, renderer: Renderer) -> bool:
    """With room for one token of an answer."""
    return len(renderer.context_prompt_ids(asked[0].turns, asked[1])) < recipe.window


async def _rates(
    prompts: Sequence[ProbePrompt], responses: Sequence[Sequence[str]], task: Task, renderer: Renderer
) -> Mapping[str, Rate]:
    """Those over any answers: training prompts have no tags."""
    pairs = [
        (prompt, renderer.answer(text)) for prompt, texts in zip(prompts, responses, strict=True) for text in texts
    ]
    rates = (await asyncio.to_thread(summarise, pairs, task)).rates  # a verifier may take its time
    return {name: rate for name, rate in rates.items() if rate.n}


def required(recipe: Recipe, gap: Gap | None) -> float:
    """The least main rate that the run is to end with.

    Raises:
        RuntimeError: a share of the teacher's rate is required, and the run has not measured that.
    """
    share = recipe.probe.require_of_teacher
    if not share:
        return recipe.probe.require
    if gap is None:
        raise RuntimeError(f"probe.require_of_teacher: found {share} and no gap.json, expected the run's own gap")
    return max(recipe.probe.require, share * gap.teacher[gap.main].share)


def write_gap(path: Path, gap: Gap) -> None:
    """In the place of any that was there."""
    rates = {name: {key: [r.k, r.n] for key, r in getattr(gap, name).items()} for name in ("teacher", "base")}
    write_whole(path, json.dumps({"format": 1, "time": gap.time, "probe": gap.probe} | rates) + "\n")


def read_gap(path: Path) -> Gap | None:
    """None where there is no file: an older run. ValueError names a file that is none."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        teacher, base = ({key: Rate(*pair) for key, pair in found[name].items()} for name in ("teacher", "base"))
        return Gap(float(found["time"]), str(found["probe"]), teacher, base)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: found no gap ({error}), expected what a run wrote") from None
