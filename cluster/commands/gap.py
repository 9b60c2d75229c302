"""`edge-opd gap`: what there is to learn, with one engine and no cluster, before anything is trained.

The teacher is asked as the recipe has it, and in other ways that may show more: the other position of the context, and
more words in it, WORDINGS.
"""

import asyncio
import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cluster.commands.one_engine import one_engine
from cluster.config import Recipe, load_recipe
from cluster.models import resolve_model
from cluster.requests import renderer_of, step_requests
from cluster.run.answers import answered
from cluster.run.checks import check_inputs
from cluster.run.figures import Gap
from cluster.run.gap import check_gap, measured, teaches_itself
from evidence.diagnostics import TokenStats, diagnose
from evidence.rates import RATES
from evidence.records import EvidenceRecord, Ids, ShardInfo
from evidence.require import require
from evidence.rule import judge_all
from rollout.gap import as_probe
from rollout.probe import Rate
from rollout.requests import GroupRequests
from rollout.tasks import Task, build_task
from rollout.tasks.identity import TEMPLATE
from rollout.waits import deadline
from rollout.worker import Group, RolloutWorker, rewarder

if TYPE_CHECKING:
    from rollout.engine import Engine

USUAL = ("system", "user")  # places of the context that are tried beside the recipe's own
WORDINGS = {  # what it says about `task.context`: what is added to it
    "with the beginning of an answer": ' Begin every such answer with "I am {name}, made by {maker}."',
    "with examples": ' For example, asked "Who are you?", say "I am {name}, made by {maker}." '
    'Asked "What is your name?", say "My name is {name}."',
}


@dataclass(frozen=True)
class Guided:
    """The guided rollouts of the first step: how many show the task's main flag, and sums over their tokens."""

    flag: str
    shown: Rate
    stats: TokenStats

    def line(self) -> str:
        """For a person to read."""
        means = self.stats.summary()
        return (
            f"guided rollouts of step 1: {self.flag} in {self.shown.share:.2f} of {self.shown.n}, evidence "
            f"{means['mean_evidence']:+.3f} nats a token, kept {means['kept']:.2f} of {self.stats.tokens} tokens"
        )


def print_gap(path: str, overrides: Sequence[str]) -> int:
    """Prints the gap of each way to give the context; 1 where none has anything to learn.

    Raises:
        ValueError: a recipe that cannot start, or whose teacher is another model: its engines are not asked.
    """
    recipe = load_recipe(path, overrides)
    key = "teacher.path" if recipe.teacher.path else "teacher.url"
    found = recipe.teacher.path or recipe.teacher.url
    require(teaches_itself(recipe), key, found, "none: the gap is of a teacher with the student's initial weights")
    task = build_task(recipe.task)
    for note in check_inputs(recipe, task)[1].shown:
        print(note, file=sys.stderr)
    gaps, guided = asyncio.run(_measure(recipe, task, resolve_model(recipe.model.path, weights=True)))
    if not gaps:
        found = "found no question that has a context and an answer"
        print(f"task.name: {recipe.task.name}: {found}, expected one to measure a gap of")
        return 1
    for name, gap in gaps.items():
        print(f"{name}\n  {gap.line()}")
    print(guided.line())
    own = next(iter(gaps.values()))
    if own.is_zero:
        print(own.warning())
    return int(all(gap.is_zero for gap in gaps.values()))


def ways(recipe: Recipe) -> dict[str, Recipe]:
    """The recipe itself, and others that differ in how the teacher gets the context."""
    here = recipe.rollout.context_position
    others = [position for position in USUAL if position != here]
    found = {f"as the recipe has it ({here})": recipe}
    found |= {f"rollout.context_position = {there!r}": _placed(recipe, there) for there in others}
    if recipe.task.name == "identity" and not recipe.task.context_empty_allowed:
        own = recipe.task.context or TEMPLATE
        for what, words in WORDINGS.items():
            told = dataclasses.replace(recipe, task=dataclasses.replace(recipe.task, context=own + words))
            found |= {f"{what} in task.context ({at}):{words}": _placed(told, at) for at in (here, *others)}
    return found


def _placed(recipe: Recipe, position: str) -> Recipe:
    return dataclasses.replace(recipe, rollout=dataclasses.replace(recipe.rollout, context_position=position))


async def _measure(recipe: Recipe, task: Task, model: str) -> tuple[dict[str, Gap], Guided]:
    config, renderer = recipe.probe, renderer_of(recipe, model)
    sampling = config.sampling(renderer.eos_token_ids, renderer.keeps_special)
    gaps: dict[str, Gap] = {}
    say = partial(print, file=sys.stderr)

    async def texts(what: str, prompts: list[Ids], seed: int) -> list[list[str]]:
        async with deadline(recipe.rollout.deadline_s, f"{what}: no answers (rollout.deadline_s)"):
            return await engine.texts(prompts, sampling, config.samples, seed)

    with one_engine(model, recipe.teacher, "gap: its engine: not started (teacher.start_deadline_s)") as engine:
        for name, way in ways(recipe).items():
            base = next(iter(gaps.values())).base if gaps else None  # one base, whatever the teacher is told
            try:
                there, told = renderer_of(way, model), task if way.task == recipe.task else build_task(way.task)
                check_gap(told, there)
            except ValueError as refused:  # a place that the chat template does not take, which the recipe's own is not
                say(f"{name}: not asked: {refused}")
                continue
            gap = await measured(way, told, there, texts, base, say)
            gaps |= {name: gap} if gap else {}
        return gaps, await _guided(recipe, task, model, engine, say)


async def _guided(recipe: Recipe, task: Task, model: str, engine: "Engine", say: Callable[[str], None]) -> Guided:
    """Samples, scores and judges the first step, as a run would with this engine for both of its own."""
    requests = step_requests(recipe, model, task)
    renderer = requests.renderer
    worker = RolloutWorker(recipe.rollout, recipe.evidence, engine, engine, _unwritten,
                           rewarder(requests, task.reward), engine)  # fmt: skip
    groups, _ = requests.of(0)
    async with deadline(recipe.rollout.deadline_s, "the first step's rollouts: not done (rollout.deadline_s)"):
        done = [await _rolled(worker, group) for group in groups]
    scored, rewards = ([one for group in done for one in getattr(group, name)] for name in ("scored", "rewards"))
    prompts, rule = {prompt.prompt_id: prompt for prompt in requests.prompts}, RATES[task.rates[0]]
    records = [
        (prompts[row.prompt_id], record)
        for record in judge_all(scored, rewards, recipe.evidence, step=0)
        if (row := record.scored.sample.request).guided and not prompts[row.prompt_id].is_ordinary
    ]
    responses = [(prompt, renderer.response_text(record.scored.sample.response_ids)) for prompt, record in records]
    limit = f"rollout.max_response_tokens = {recipe.rollout.max_response_tokens}"
    shown = [
        task.flags(as_probe(prompt, rule), answer)[rule.flag]
        for prompt, answer in answered(responses, renderer, "guided rollouts of step 1", limit, say)
        if rule.probe == "identity" or prompt.answer is not None
    ]
    sums = sum((_sums(record) for _, record in records), TokenStats())
    return Guided(rule.label, Rate(sum(shown), len(shown)), sums)


async def _rolled(worker: RolloutWorker, group: GroupRequests) -> Group:
    samples = await worker.sample(group, 0)
    return await worker.score(group, samples, await worker.verify(samples), 0)


async def _unwritten(records: Sequence[EvidenceRecord], step: int) -> ShardInfo:
    raise AssertionError("a gap writes no shard")


def _sums(record: EvidenceRecord) -> TokenStats:
    return diagnose(record.evidence, record.weight * record.mask, None, record.scored.teacher_context_logprobs, rows=1)
