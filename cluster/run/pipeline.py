"""The loop. Strictly on-policy is this loop with a staleness bound of 0.

    before step 1: the probe, and the gap (what the teacher says with r); after the last: `export.choose`, the probe

    rollout service (owns the engines)                     learner service
    ----------------------------------                     ---------------
    the groups of every step <= version + lag:
    sample (x, r) and x, score as each is done
    take: judge, write a shard ----------> shard --------> ZeRO step (engines that share its GPU sleep)
            ^                                              push weights, check version, digest, canary (with a lag
            |________________ advance(version) <__________ beside the next rollouts; refresh a teacher that follows)

The rollout service works on while the learner does, as far as the bound allows. Version v is the policy after v steps.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cluster.config import Recipe
from cluster.errors import Preempted
from cluster.faults import Skipped
from cluster.fleet.assembly import Services
from cluster.fleet.calls import Died
from cluster.fleet.roster import GRACE_S, News
from cluster.observe.sinks import MetricsSink
from cluster.run.asking import Asker
from cluster.run.checkpoints import Checkpoints
from cluster.run.choice import Choice
from cluster.run.figures import Pushed
from cluster.run.handover import Handover, canary_texts
from cluster.run.record import END, append_step, step_record
from cluster.run.replay import Resumed, require_same_weights
from cluster.run.rundir import RunDir
from cluster.run.stop import Stop
from cluster.run.teacher_check import TeacherCheck
from evidence.manifest import Manifest
from evidence.patience import retried_beside
from evidence.sidecar import write_student
from rollout.render import Renderer
from rollout.stages import StageTime, StepTime, Stopwatch
from rollout.tasks.base import Task

T = TypeVar("T")
NEWS_S = 5.0  # for which the rollout service is asked for news at a time


class Pipeline:
    """One run over started services.

    choice: of the weights to end with; knows what was learned before. engines_sleep: while the learner works, on the
    GPU that they share with it.
    """

    def __init__(
        self,
        recipe: Recipe,
        services: Services,
        run_dir: RunDir,
        sink: MetricsSink,
        renderer: Renderer,
        task: Task,
        stop: Stop,
        choice: Choice,
        engines_sleep: bool = False,
    ) -> None:
        self.recipe, self.run_dir, self.sink = recipe, run_dir, sink
        self.rollout, self.learner = services.rollout, services.learner
        self._engines_sleep, self._stop, self._choice = engines_sleep, stop, choice
        self.manifest = Manifest(run_dir.manifest)
        self.checkpoints = Checkpoints(run_dir.checkpoints, recipe.faults.store_s, sink.say)
        self.texts = canary_texts(task.training_prompts(), renderer)
        self._handover = Handover(services, self.texts, recipe.weights, sink.say)
        self._teacher_check = TeacherCheck(recipe, run_dir, *self.texts[0])
        self.asker = Asker(recipe, task, renderer, services.rollout, run_dir, sink, self._attended)
        self.pushed, self._skipped = Pushed("", 0.0), Skipped(recipe.faults)
        self._first: tuple[int, float] | None = None  # step of this process, and when it began
        # Lines about lost engines; the student version whose weights the teacher holds.
        self._lines_seen, self._teacher_version = 0, 0

    async def run(self, resumed: Resumed) -> int:
        """The steps from what the learner holds to the recipe's last, or to where nothing rises any more, with a probe
        before, between and after. Returns the version that it ended with.

        Raises:
            Preempted: the run was asked to stop between two steps, and has a checkpoint.
        """
        steps, version = self.recipe.run.steps, resumed.version
        self._handover.go_on(resumed.bound)
        # It also proves the hand-off, before anything is learned.
        self.pushed = await self._handover.push("student", version)
        same = partial(require_same_weights, resumed, self.pushed.digest, self.run_dir, self.sink.say)
        await self._stored(self.run_dir.metrics, same)
        await self._teacher_check.run(self.rollout, self.learner, version, partial(self._attended, version))
        if version == 0:
            await self.asker.measure_gap(await self.asker.probe(0))
        elif self._choice.lacks(version):  # the run ended between the step and its probe
            await self._choice.see(await self.asker.probe(version))
        await self._refresh_teacher(version)
        with self._stop.between_steps():
            while version < steps and not self._choice.is_level(version):
                await self._step(version)
                version += 1
                if self._stop.asked:
                    await self._save(version)
                    why = f"stopped by {self._stop.asked} after step {version}"
                    raise Preempted(f"{why}: --resume continues from there")
        await self._end(version)
        return version

    async def _step(self, step: int) -> None:
        """From version `step` to the next."""
        run, begun = self.recipe.run, time.perf_counter()
        if self._teacher_check.is_due(step):
            await self._teacher_check.run(self.rollout, self.learner, step)
        self.sink.stage(f"step {step + 1}: sampling and scoring")
        await self.rollout.advance(step, self.pushed.digest)
        produced = await self._attended(step, self.rollout.take(step))
        await self._stored(self.run_dir.manifest, partial(self.manifest.append_written, produced.shard))
        clock, stages = Stopwatch(), dict[str, StageTime]()
        if self._engines_sleep:
            await self.rollout.sleep()
            stages["sleep"] = clock.stage(0)
        self.sink.stage(f"step {step + 1}: learning")
        learned = await self.learner.learn(produced.shard)
        student = self.run_dir.student
        await self._stored(student, partial(write_student, learned.logprobs, str(student), step))
        trained = partial(self.manifest.ensure_trained, produced.shard.uri, step)
        await self._stored(self.run_dir.manifest, trained)
        stages["learn"] = clock.stage(learned.row_tokens)
        if self._engines_sleep:
            await self.learner.release_cache()
            await self.rollout.wake_up()
            stages["wake"] = clock.stage(0)
        version = step + 1
        stages |= await self._hand_on(version)
        took = StepTime(time.perf_counter() - begun, stages, self._pace(step, begun))
        record = step_record(step, produced, learned, took, self.pushed, self.recipe.rollout.sampler)
        await self._stored(self.run_dir.metrics, partial(append_step, self.run_dir.metrics, record))
        self.sink.show_step(record)
        self._skipped.add(produced.nonfinite + learned.nonfinite_updates)
        if run.checkpoint_every and version % run.checkpoint_every == 0:
            await self._save(version)
        if self._choice.probes(version):
            await self._choice.see(await self.asker.probe(version))

    def _pace(self, step: int, begun: float) -> float:
        """Seconds a step since the first one of this process, with what was between them; `step` began at `begun`."""
        first, since = self._first = self._first or (step, begun)
        return (time.perf_counter() - since) / (step - first + 1)

    async def _end(self, version: int) -> None:
        """The weights to end with after `version` steps, and their probe."""
        if self._choice.is_level(version):
            self.sink.say(self._choice.why(version))
        held = version
        if await self._choice.put():
            self.sink.stage("pushing the weights to end with")
            held = version + 1  # not those of `version`
            self.pushed = await self._handover.push("student", held)
        # Other answers than those that chose the best weights, or the end.
        seed = version + 1 if self._choice.probes(version) else version
        await self.asker.probe(version, END, seed=seed, held=held)
        self._say(await self.rollout.news(0.0, self._lines_seen, {}))

    async def _save(self, version: int) -> None:
        self.sink.stage(f"step {version}: saving a checkpoint")
        await self.checkpoints.save(self.learner, version, self.recipe.run.keep_checkpoints)

    async def _stored(self, path: Path, work: Callable[[], object]) -> None:
        """A write to the run's folder, which is whole or nothing, or a look there: a disk that is full or read-only for
        a while costs time."""
        await retried_beside(self.recipe.faults.store_s, path, work)

    async def _attended(self, version: int, work: Coroutine[Any, Any, T], scores: bool = True) -> T:
        """`work` of the rollout service, while the learner holds `version`, which engines are given that were replaced
        meanwhile. scores: whether the work needs a teacher."""
        task = asyncio.create_task(work)
        # Where the learner has no more what the teacher holds, one is enough until the teacher takes other weights.
        teachers = self.recipe.teacher_engines if self._teacher_version == version else int(scores)
        wanted = {"student": self.recipe.student.num_engines, "teacher": teachers}
        try:
            while not task.done():
                news = asyncio.create_task(self.rollout.news(NEWS_S, self._lines_seen, wanted))
                await asyncio.wait({task, news}, return_when=asyncio.FIRST_COMPLETED)
                if not task.done():
                    await self._attend(version, await news, task)
                news.cancel()
            return await task
        finally:
            task.cancel()

    def _say(self, news: News) -> None:
        self._lines_seen += len(news.lines)
        for line in news.lines:
            self.sink.say(line)

    async def _attend(self, version: int, news: News, work: "asyncio.Task[Any]") -> None:
        self._say(news)
        if "student" in news.pools:
            pushed = await self._handover.push("student", version)
            assert pushed.digest == self.pushed.digest, f"weights of version {version} changed: {pushed} {self.pushed}"
        if "teacher" not in news.pools:
            return
        held = self._teacher_version
        if held == version:
            await self._hand_teacher(version)
        elif not (await asyncio.wait({work}, timeout=GRACE_S))[0]:  # it has what it needs of the teacher otherwise
            raise Died(f"a teacher engine was lost, which held version {held}: found the learner at version {version}")

    async def _hand_teacher(self, version: int) -> None:
        # The learner does not run the average, so it cannot say what it scores.
        await self._handover.push("teacher", version, canary=self.recipe.teacher.kind != "ema")

    def _teacher_follows(self, version: int) -> bool:
        """Whether the teacher takes the weights of `version`, after which there are steps to come."""
        return version < self.recipe.run.steps and self.recipe.teacher.due(self._teacher_version, version)

    async def _hand_on(self, version: int) -> dict[str, StageTime]:
        """The stages in which the engines take `version`, which the learner has just made."""
        clock, run = Stopwatch(), self.recipe.run
        self.sink.stage(f"step {version}: pushing weights")
        follows = self._teacher_follows(version)
        # With a lag rollouts go on anyway; without one no sequence is beside another that was not there before.
        begin = partial(self.rollout.advance, version) if run.max_policy_lag else None
        # No rollout begins before its teacher is there: a short one would be scored by that of the version before.
        self.pushed = await self._handover.push("student", version, begin=None if follows else begin)
        stages = {"push": clock.stage(0)}
        if follows:
            stages |= await self._refresh_teacher(version)
            if begin is not None:
                await begin(self.pushed.digest)
        return stages

    async def _refresh_teacher(self, version: int) -> dict[str, StageTime]:
        """The stage, if the teacher takes the weights of `version`."""
        if not self._teacher_follows(version):
            return {}
        clock = Stopwatch()
        self.sink.stage(f"refreshing the teacher with version {version}")
        await self._attended(version, self.rollout.pause_scoring())  # between one group's scores and the next's
        self._teacher_version = version
        await self._hand_teacher(version)
        await self.rollout.resume_scoring(version)
        return {"refresh": clock.stage(0)}
