"""The loop. Strictly on-policy is this loop with a staleness bound of 0.

    rollout service                       queue            learner service
    ---------------                       -----            ---------------
    wait until version >= step - lag
    refresh a teacher that follows the student
    sample (x, r) and x                                    take a shard
    score, judge, write a shard --------> [shards] -->     ZeRO step
            ^                                              push weights, check version, digest, canary
            |______________ Gate(version) <_______________ advance the version

Two coroutines that never wait for each other longer than the bound demands. Version v is the policy after v steps.
"""

import asyncio
import time
from dataclasses import dataclass, replace

from transformers import AutoTokenizer

from cluster.config import Recipe
from cluster.metrics import MetricsSink
from cluster.rundir import RunDir
from cluster.services import LearnedStep, Services, canary_text, within
from evidence.diagnostics import split_summary
from evidence.manifest import Manifest
from evidence.sidecar import write_student
from rollout.config import SamplingConfig
from rollout.probe import summarise, to_json
from rollout.render import Renderer
from rollout.tasks import build_task
from rollout.worker import StageTime, StepRollouts, Stopwatch, step_seed


class Gate:
    """The policy version, and who waits for it."""

    def __init__(self, version: int) -> None:
        self.version = version
        self._changed = asyncio.Condition()

    async def reached(self, version: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.version >= version)

    async def advance(self, version: int) -> None:
        async with self._changed:
            self.version = version
            self._changed.notify_all()


@dataclass(frozen=True)
class Pushed:
    """The weights that the engines hold."""

    digest: str
    canary: float


class Pipeline:
    """One run over started services."""

    def __init__(self, recipe: Recipe, services: Services, run_dir: RunDir, sink: MetricsSink) -> None:
        self.recipe, self.services, self.run_dir, self.sink = recipe, services, run_dir, sink
        self.manifest = Manifest(run_dir.manifest)
        self.task = build_task(recipe.task)
        tokenizer = AutoTokenizer.from_pretrained(services.model)
        self.renderer = Renderer(tokenizer, recipe.rollout.context_position, services.model)
        first = self.task.training_prompts()[0]
        self._canary = canary_text(tokenizer, self.renderer.prompt_ids(first.question), first.context or first.question)
        self.pushed = Pushed("", 0.0)
        self._teacher_version = 0  # the student version whose weights the teacher holds

    async def run(self, first_step: int) -> None:
        """Steps `first_step` to the recipe's last, with a probe before, between and after."""
        steps, lag = self.recipe.run.steps, self.recipe.run.max_policy_lag
        self.gate = Gate(first_step)
        self.pushed = await self.push(first_step)  # also proves the hand-off before anything is learned
        if first_step in (0, steps):  # a resumed run may have ended between its last step and its last probe
            await self.probe(first_step)
        self._clock = time.perf_counter()
        shards: asyncio.Queue[StepRollouts] = asyncio.Queue(maxsize=lag + 1)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._produce(range(first_step, steps), lag, shards))
            group.create_task(self._consume(range(first_step, steps), shards))

    async def _produce(self, steps: range, lag: int, shards: "asyncio.Queue[StepRollouts]") -> None:
        for step in steps:
            # The learner's own deadlines bound this wait: its failure cancels it.
            await self.gate.reached(step - lag)
            refresh = await self._refresh_teacher(self.gate.version)
            self.sink.stage(f"step {step + 1}: sampling and scoring")
            versions = (self.gate.version, self._teacher_version)
            produced = await self.services.produce(step, self.pushed.digest, *versions)
            produced = replace(produced, stages=refresh | produced.stages)
            self.manifest.append_written(produced.shard)
            await shards.put(produced)

    async def _consume(self, steps: range, shards: "asyncio.Queue[StepRollouts]") -> None:
        run = self.recipe.run
        for step in steps:
            produced = await within(self.recipe.rollout.deadline_s * 2, f"shard of step {step}", shards.get())
            self._check_lag(produced, step)
            clock = Stopwatch()
            self.sink.stage(f"step {step + 1}: learning")
            learned = await self.services.learn(produced.shard)
            write_student(learned.logprobs, str(self.run_dir.student), step)
            self.manifest.append_trained(produced.shard.uri, step)
            stages = dict(produced.stages) | {"learn": clock.stage(learned.computed_tokens)}
            self.sink.stage(f"step {step + 1}: pushing weights")
            self.pushed = await self.push(step + 1)
            stages["push"] = clock.stage(0)
            self._record(step, produced, learned, stages)
            version = step + 1
            if run.checkpoint_every and version % run.checkpoint_every == 0:
                await self.services.save(self.run_dir.checkpoints, version)
            if version == run.steps or (run.probe_every and version % run.probe_every == 0):
                await self.probe(version)
            self._clock = time.perf_counter()
            await self.gate.advance(version)

    def _check_lag(self, produced: StepRollouts, step: int) -> None:
        if produced.version_min < step - self.recipe.run.max_policy_lag:
            raise RuntimeError(
                f"step {step}: found a rollout of policy version {produced.version_min}, expected at least "
                f"{step - self.recipe.run.max_policy_lag}"
            )

    async def push(self, version: int) -> Pushed:
        digest = await self.services.push("student", version)
        return Pushed(digest, await self.services.canary("student", *self._canary, version))

    async def _refresh_teacher(self, version: int) -> dict[str, StageTime]:
        """Between two steps' scoring, so that both views of a rollout are the same teacher's; the stage if there is
        one."""
        if not self.recipe.teacher.due(self._teacher_version, version):
            return {}
        clock = Stopwatch()
        self.sink.stage(f"refreshing the teacher with version {version}")
        await self.services.push("teacher", version)
        if self.recipe.teacher.kind != "ema":  # the learner does not run the average
            await self.services.canary("teacher", *self._canary, version)
        self._teacher_version = version
        return {"refresh": clock.stage(0)}

    async def probe(self, step: int) -> None:
        """The task's probe on the student engines, without r; appended to probes.jsonl."""
        self.sink.stage(f"probe at step {step}")
        config, prompts = self.recipe.probe, self.task.probe_prompts()
        sampling = SamplingConfig(config.temperature, config.max_tokens, config.top_p, config.top_k)
        questions = [self.renderer.prompt_ids(prompt.question) for prompt in prompts]
        seed = step_seed(self.recipe.run.seed, step)
        work = self.services.student_pool.texts(questions, sampling, config.samples, seed)
        answers = await within(self.recipe.rollout.deadline_s, f"probe at step {step}", work)
        pairs = [(prompt, text) for prompt, texts in zip(prompts, answers, strict=True) for text in texts]
        self.sink.write_probe(to_json(summarise(pairs, self.task), step, self.task.name))
        self.run_dir.write_answers(step, [(prompt.probe, prompt.question, text) for prompt, text in pairs])

    def _record(self, step: int, produced: StepRollouts, learned: LearnedStep, stages: dict[str, StageTime]) -> None:
        wall = time.perf_counter() - self._clock
        by_group = split_summary(learned.stats)
        self.sink.write_step(
            {
                "step": step,
                "wall_s": wall,
                # The stages follow each other at lag 0; what is missing from 1 is hidden waiting.
                "busy_fraction": sum(stage.seconds for stage in stages.values()) / wall,
                "stages": {name: _stage(stage) for name, stage in stages.items()},
                "kept": by_group["all"]["kept"],
                "k1": by_group["all"].get("k1", 0.0),
                "loss": learned.loss,
                **learned.metrics,
                "grad_norm": learned.grad_norm,
                "rows": produced.shard.rows,
                "refused": produced.refused,
                **produced.reward_figures(),
                "skipped_rows": learned.skipped_rows,
                "policy_version_min": produced.version_min,
                "policy_version_max": produced.version_max,
                "weights_digest": self.pushed.digest,
                "canary": self.pushed.canary,
                "diagnostics": by_group,
            }
        )


def _stage(stage: StageTime) -> dict[str, float]:
    return {
        "seconds": stage.seconds,
        "tokens": stage.tokens,
        "tokens_per_s": stage.tokens / stage.seconds if stage.seconds else 0.0,
    }
