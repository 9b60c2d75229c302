"""What a run's engines are asked before, between and after its steps: the probe, and once what there is to learn."""

import asyncio
from collections.abc import Awaitable, Coroutine
from functools import partial
from typing import Any, Protocol

from cluster.config import Recipe
from cluster.fleet.services import RolloutService
from cluster.observe.sinks import MetricsSink
from cluster.run.answers import answered, paired
from cluster.run.gap import measured, required, teaches_itself
from cluster.run.record import STEP, Answer, ProbeRecord, append_probe, probe_record, write_answers, write_gap
from cluster.run.rundir import RunDir
from evidence.patience import retried_beside
from evidence.records import Ids
from rollout.probe import summarise
from rollout.render import Renderer
from rollout.requests import step_seed
from rollout.tasks.base import Task
from rollout.tasks.boxed import verdicts
from rollout.tasks.boxed_pool import Verdicts

Texts = list[list[str]]


class Attended(Protocol):
    """See `Pipeline._attended`."""

    def __call__(self, version: int, work: Coroutine[Any, Any, Texts], scores: bool = True) -> Awaitable[Texts]: ...


class Asker:
    """Of one run.

    attended: gives weights to who is replaced while the engines answer.
    """

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        renderer: Renderer,
        rollout: RolloutService,
        run_dir: RunDir,
        sink: MetricsSink,
        attended: Attended,
    ) -> None:
        self._recipe, self._task, self._renderer, self._rollout = recipe, task, renderer, rollout
        self._run_dir, self._sink, self._attended = run_dir, sink, attended

    async def measure_gap(self, base: ProbeRecord) -> None:
        """What there is to learn. RuntimeError where something is required of a run that has nothing to learn."""
        config = self._recipe.probe
        if not config.gap or not teaches_itself(self._recipe):
            return
        self._sink.stage("asking the teacher what there is to learn")

        async def texts(what: str, prompts: list[Ids], seed: int) -> list[list[str]]:
            sampling = config.sampling(self._renderer.eos_token_ids, self._renderer.keeps_special)
            asked = self._rollout.texts(what, prompts, sampling, config.samples, seed)
            return await self._attended(0, asked)

        gap = await measured(self._recipe, self._task, self._renderer, texts, base.rates, self._sink.say)
        required(self._recipe, gap)  # can be reached
        if gap is None:
            return
        await retried_beside(self._recipe.faults.store_s, self._run_dir.gap, partial(write_gap, self._run_dir.gap, gap))
        self._sink.say(gap.line())
        if gap.is_zero and (config.require or config.require_of_teacher):
            raise RuntimeError(gap.warning())
        if gap.is_zero:
            self._sink.say(gap.warning())

    async def probe(
        self, step: int, weights: str = STEP, seed: int | None = None, held: int | None = None
    ) -> ProbeRecord:
        """The task's probe on the student engines, without r but for the questions that come with it; appended to
        probes.jsonl.

        weights: STEP or END. seed, held: where they are not `step`; held: the version that the engines hold.
        """
        self._sink.stage(f"probe at step {step}")
        config, prompts = self._recipe.probe, self._task.probe_prompts()
        questions = [self._renderer.context_prompt_ids(prompt.turns, prompt.context) for prompt in prompts]
        seed = step_seed(self._recipe.run.seed, step if seed is None else seed)
        sampling = config.sampling(self._renderer.eos_token_ids, self._renderer.keeps_special)
        asked = self._rollout.texts(f"probe at step {step}", questions, sampling, config.samples, seed)
        responses = list(paired(prompts, await self._attended(step if held is None else held, asked, scores=False)))
        limit = f"probe.max_tokens = {config.max_tokens}"
        rated = answered(responses, self._renderer, f"probe at step {step}", limit, self._sink.say)
        before = verdicts()
        result = await asyncio.to_thread(summarise, rated, self._task)  # a verifier may take its time
        judged = verdicts() - before
        record = probe_record(result, step, self._task.name, judged if judged != Verdicts() else None, weights)
        told = [Answer(prompt.probe, prompt.question, text) for prompt, text in responses]
        answers = self._run_dir.answers_of(step)
        # First, since a probe that has its line is not asked again.
        store_s, probes = self._recipe.faults.store_s, self._run_dir.probes
        await retried_beside(store_s, answers, partial(write_answers, answers, told))
        await retried_beside(store_s, probes, partial(append_probe, probes, record))
        self._sink.show_probe(record)
        return record
