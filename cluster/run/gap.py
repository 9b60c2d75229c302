"""What there is to learn, as the teacher shows it before step 1: RUN/gap.json."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from cluster.config import Recipe
from cluster.requests import window_keys
from cluster.run.answers import answered, paired
from cluster.run.figures import Gap
from evidence.records import Ids
from rollout.gap import Asked, asks_the_probe, gap_questions
from rollout.probe import Rate, summarise
from rollout.render import Renderer
from rollout.requests import step_seed
from rollout.tasks.base import ProbePrompt, Task

# (what for, prompts, seed) to decoded answers a prompt
Texts = Callable[[str, list[Ids], int], Awaitable[list[list[str]]]]


def teaches_itself(recipe: Recipe) -> bool:
    """Whether the student's initial weights are the teacher's, so that the student's engines answer for it."""
    return not (recipe.teacher.path or recipe.teacher.url)


def check_gap(task: Task, renderer: Renderer) -> None:
    """ValueError for a question in which the context does not arrive that the teacher is asked it with."""
    for probe, context in gap_questions(task):
        try:
            renderer.require_arrival(probe.turns, context)
        except ValueError as error:
            raise ValueError(f"a question of the gap ({probe.question[:60]!r}): {error}") from error


async def measured(
    recipe: Recipe,
    task: Task,
    renderer: Renderer,
    texts: Texts,
    base: Mapping[str, Rate] | None,
    say: Callable[[str], None],
) -> Gap | None:
    """The gap as `texts`, of an engine with the initial weights, answers; None where there is nothing to ask.

    base: the rates of the probe at step 0, where it has been asked. say: is told how many questions are left out, and
    how many responses have no answer.
    """
    asked = gap_questions(task)
    of_probe = asks_the_probe(asked, task)
    questions = [one for one in asked if _fits(one, recipe, renderer)]
    if left_out := len(asked) - len(questions):
        window = f"{window_keys(recipe)} = {recipe.window}"
        say(f"gap: {left_out} of {len(asked)} questions do not fit {window} with their context, and are not asked")
    if not questions:
        return None
    probes = [probe for probe, _ in questions]

    async def rates(what: str, asked: Sequence[Asked]) -> Mapping[str, Rate]:
        prompts = [renderer.context_prompt_ids(probe.turns, context) for probe, context in asked]
        responses = list(paired(probes, await texts(what, prompts, step_seed(recipe.run.seed, 0))))
        limit = f"probe.max_tokens = {recipe.probe.max_tokens}"
        return await _rates(answered(responses, renderer, what, limit, say), task, of_probe)

    told = await rates("gap: teacher", questions)
    if base is None or not asks_the_probe(questions, task):
        base = await rates("gap: base", [(probe, probe.context) for probe in probes])
    return Gap(time.time(), task.name, told, base, "probe" if of_probe else "training")


def _fits(asked: Asked, recipe: Recipe, renderer: Renderer) -> bool:
    """With room for one token of an answer."""
    return len(renderer.context_prompt_ids(asked[0].turns, asked[1])) < recipe.window


async def _rates(answers: Sequence[tuple[ProbePrompt, str]], task: Task, of_probe: bool) -> Mapping[str, Rate]:
    """Those over any answers. Training prompts count for the main rate only: what they teach is what that is of."""
    rates = (await asyncio.to_thread(summarise, answers, task)).rates  # a verifier may take its time
    return {name: rate for name, rate in rates.items() if rate.n and (of_probe or name == task.rates[0])}


def required(recipe: Recipe, gap: Gap | None) -> float:
    """The least main rate that the run is to end with.

    Raises:
        RuntimeError: a share of the teacher's rate is required, and the run has not measured that; or it is above 1.
    """
    share = recipe.probe.require_of_teacher
    if not share:
        return recipe.probe.require
    if gap is None:
        raise RuntimeError(f"probe.require_of_teacher: found {share} and no gap.json, expected the run's own gap")
    rate = gap.teacher[gap.main].share
    if share * rate > 1:
        raise RuntimeError(
            f"probe.require_of_teacher: found {share} of the teacher's {rate:.2f}, which is {share * rate:.2f}, "
            "expected at most 1"
        )
    return max(recipe.probe.require, share * rate)
