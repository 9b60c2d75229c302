"""The two services that the driver speaks to, and nothing behind them: every call has a deadline and a name.

`RolloutService` is one actor, which owns the engines. `LearnerService` is one actor a rank, which all do the same.
"""

import asyncio
import secrets
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray

from cluster.config import Recipe
from cluster.fleet.arriving import arrive
from cluster.fleet.calls import all_within, ask, beside, each_within, within
from cluster.fleet.canary import CanaryText
from cluster.fleet.fleet import ENDING_S, STOP_DEADLINE_S
from cluster.fleet.learner_actor import Place
from cluster.fleet.ray_cluster import Footprint
from cluster.fleet.roster import GRACE_S, News
from cluster.weights.parts import Sent
from evidence.files import TRANSFER_S
from evidence.records import Floats, Ids, ShardInfo
from evidence.telemetry import Sample, Span
from learner.report import LearnedStep, StepReport, over_ranks, rank_name, rank_spans
from learner.sealed import SealedFile
from rollout.config import SamplingConfig
from rollout.stages import SERVICE as ROLLOUT
from rollout.worker import StepRollouts

T = TypeVar("T")
STARTING = "start_deadline_s", "footprint", "start"  # while it reads models and rows it answers nothing else
Watch = Callable[[str], AbstractContextManager[None]]  # around each call, by the method's name
Note = Callable[[Iterable[Span]], None]  # what a service says of its own time


class RolloutService:
    """The driver's end of the rollout service.

    handle: of a `RolloutActor`.
    """

    def __init__(self, handle: Any, recipe: Recipe) -> None:
        self.handle, self._recipe = handle, recipe
        self.watch: Watch = nullcontext  # type: ignore[assignment]
        self._footprint: Footprint | None = None
        self._start_s = recipe.student.start_deadline_s  # of the engines

    async def start(self) -> dict[str, str]:
        """The address of each engine's host, by the engine's name."""
        own = self._recipe.student.start_deadline_s
        self._start_s = await self._ask(own, f"start of the {ROLLOUT}", "start_deadline_s")
        self._footprint = await self._ask(own, f"processes of the {ROLLOUT}", "footprint")
        return dict(await self._ask(own + self._start_s + 2 * GRACE_S, "start of the engines", "start"))

    async def resume(self, learned: list[str]) -> None:
        """Reports which groups the steps so far have learned from."""
        await self._ask(self._recipe.rollout.deadline_s, f"{ROLLOUT}, resumed", "resume", learned)

    async def advance(self, version: int, digest: str) -> None:
        """Reports which version the student's engines hold."""
        await self._ask(self._recipe.rollout.deadline_s, f"{ROLLOUT} at version {version}", "advance", version, digest)

    async def take(self, step: int) -> StepRollouts:
        """The step's rollouts; each group of them has its own deadline, and so has one that is sampled again, and their
        shard."""
        group_s = self._recipe.rollout.deadline_s * (self._recipe.run.max_policy_lag + 1)
        seconds = 2 * self._recipe.faults.outlived_s(group_s, self._start_s) + self._recipe.faults.store_s + TRANSFER_S
        rollouts: StepRollouts = await self._ask(seconds, f"{ROLLOUT} at step {step}", "take", step)
        return rollouts

    async def texts(
        self, what: str, prompts: list[Ids], sampling: SamplingConfig, num_samples: int, seed: int
    ) -> list[list[str]]:
        """`num_samples` decoded answers a prompt, by the student's engines."""
        seconds = self._recipe.faults.outlived_s(self._recipe.rollout.deadline_s, self._start_s) + GRACE_S
        return list(await self._ask(seconds, what, "texts", what, prompts, sampling, num_samples, seed))

    async def pause_scoring(self) -> None:
        """Lets what is being scored finish, and nothing new start."""
        seconds = self._recipe.faults.outlived_s(self._recipe.rollout.deadline_s, self._start_s)
        await self._ask(seconds, "pausing the scoring", "pause_scoring")

    async def resume_scoring(self, teacher_version: int) -> None:
        """Scores by the teacher of `teacher_version`."""
        await self._ask(self._recipe.rollout.deadline_s, "resuming the scoring", "resume_scoring", teacher_version)

    async def sleep(self) -> None:
        """Every engine gives back its GPU's memory."""
        await self._engines("engines that fall asleep", "sleep")

    async def wake_up(self) -> None:
        """Every engine takes its memory again."""
        await self._engines("engines that wake up", "wake_up", rounds=2)  # then a frozen teacher is checked

    async def news(self, seconds: float, seen: int, wanted: dict[str, int]) -> News:
        """See `Roster.news`."""
        asked = ask(ROLLOUT, self.handle, "news", seconds, seen, wanted)  # beside another call: nothing to watch
        news: News = await within(seconds + self._recipe.faults.silent_s, f"{ROLLOUT}: news of the engines", asked)
        return news

    async def enlist(self, pool: str) -> int:
        """Every engine of `pool` that has started takes part in the pushes that follow; at least one is waited for.
        Returns the number of their workers where the transport has to be opened to them, otherwise 0."""
        seconds = self._recipe.faults.outlived_s(GRACE_S, self._start_s)  # the fleet gives up before
        return int(await self._ask(seconds, f"{pool} engines for a weight push", "enlist", pool))

    async def admit(self, pool: str) -> int:
        """The engines of `pool` that the last push has proven get work. Returns how many there are."""
        return int(await self._ask(self._recipe.weights.deadline_s, f"{ROLLOUT}: proven engines", "admit", pool))

    async def prove(self, pool: str, version: int, digest: str) -> None:
        """RuntimeError names an engine of `pool` that does not hold `version` with this digest."""
        await self._engines(f"weight push of version {version}", "prove_weights", pool, version, digest)

    async def canary(self, pool: str, version: int, text: CanaryText) -> dict[str, float]:
        """The mean |engine - learner| of each engine of `pool` by its name, in nats a token."""
        return dict(await self._engines(f"canary at version {version}", "canary", pool, version, text))

    async def teacher_scores(self, prompt_ids: Ids, response_ids: Ids) -> Floats:
        """What the frozen teacher says of a text, float32 [T]."""
        seconds = self._recipe.faults.outlived_s(self._recipe.rollout.deadline_s, self._start_s)
        what = "first score of the frozen teacher"
        return np.asarray(await self._ask(seconds, what, "teacher_scores", prompt_ids, response_ids))

    async def prove_teacher(self, text: CanaryText, tolerance: float) -> None:
        """Every engine of the frozen teacher scores `text` as expected, or is replaced by one that does."""
        await self._engines("check of the frozen teacher", "prove_teacher", text, tolerance)

    async def _engines(self, what: str, method: str, *arguments: Any, rounds: int = 1) -> Any:
        """What is asked of engines: the fleet has the deadline, and names the one that is late. rounds: of questions,
        each of which has it."""
        seconds = self._recipe.weights.deadline_s
        return await self._ask(rounds * seconds + GRACE_S, what, method, *arguments, seconds)

    async def beside(self, work: Coroutine[Any, Any, T]) -> T:
        """`work` that waits for the service, maybe long, since engines may start again meanwhile; Late as soon as the
        service itself does not answer."""
        seconds = self._recipe.faults.silent_s
        return await beside(work, lambda: within(seconds, ROLLOUT, ask(ROLLOUT, self.handle, "ping")))

    async def _ask(self, seconds: float, what: str, method: str, *arguments: Any) -> Any:
        work = within(seconds, what, ask(ROLLOUT, self.handle, method, *arguments))
        with self.watch(method):
            return await (work if method in STARTING else self.beside(work))

    async def observe(self, seconds: float) -> tuple[Sample, list[Span]]:
        """The service now, and what its engines did since the last call; an engine has `seconds` to answer."""
        sample, spans = await within(seconds + GRACE_S, ROLLOUT, ask(ROLLOUT, self.handle, "observe", seconds))
        return sample, spans

    def stop(self) -> None:
        """Ends the engines, then the service."""
        ray.wait([self.handle.stop.remote()], timeout=STOP_DEADLINE_S + GRACE_S)
        ray.kill(self.handle)
        if self._footprint is not None:
            self._footprint.end(ENDING_S)


class LearnerService:
    """The driver's end of the learner.

    handles: of a `LearnerActor` a rank. run_file: a file of the run's folder, which a rank may see or not.
    """

    def __init__(self, handles: Sequence[Any], recipe: Recipe, run_file: Path) -> None:
        self.handles, self._recipe, self._run_file = list(handles), recipe, run_file
        self.watch: Watch = nullcontext  # type: ignore[assignment]
        self.note: Note = lambda _: None
        self._footprints: list[Footprint] = []

    async def places(self) -> list[Place]:
        """Where each rank is, with a port that is free there now."""
        seconds = self._recipe.learner.start_deadline_s
        return await self._ask(seconds, "places of the learner's ranks", "place", str(self._run_file))

    async def start(self, places: Sequence[Place]) -> None:
        """Every rank joins the others and loads its models."""
        seconds = self._recipe.learner.start_deadline_s
        secret = secrets.token_hex()
        answers = {
            name: ask(name, handle, "start", rank, places, secret)
            for rank, (name, handle) in enumerate(zip(self._names(), self.handles, strict=True))
        }
        await all_within(seconds, "start of the learner", answers)
        self._footprints = await self._ask(seconds, "processes of the learner's ranks", "footprint")

    async def open_transport(self, pool: str, transport: str, rollout: Any, workers: int) -> None:
        """Connects the ranks to the `workers` of the engines of `pool`, through the rollout service's handle."""
        seconds, what = self._recipe.weights.deadline_s, f"opening the weight transport to the {pool} engines"
        arguments = (pool, transport, rollout, workers, (await self.places())[0].host)
        await self._ask(2 * (seconds + GRACE_S), what, "open_transport", *arguments)

    async def learn(self, shard: ShardInfo) -> LearnedStep:
        """One step of all ranks over a shard."""
        seconds = self._recipe.learner.step_deadline_s + self._recipe.faults.store_s
        begun = time.time()
        reports: list[StepReport] = await self._ask(seconds, f"learner at step {shard.step}", "step", shard)
        self.note(rank_spans(reports, begun))
        return over_ranks(reports)

    async def push(self, pool: str, version: int) -> Sent:
        """Sends the weights to the engines of `pool` as `version`; returns what rank 0 says of it, their digest too."""
        recipe = self._recipe
        seconds = recipe.weights.deadline_s
        has_others_first = recipe.learner.lora_rank or not recipe.weights.in_flight
        if pool == "student" and recipe.run.max_policy_lag and has_others_first:
            seconds += recipe.rollout.deadline_s  # for the rollouts under way, which end first
        begun, what = time.time(), f"weight push of version {version}"
        sent: list[Sent] = await self._ask(2 * seconds + GRACE_S, what, "push", pool, version, seconds)
        self.note(sent[0].spans(begun))
        return sent[0]

    async def score(self, what: str, prompt_ids: Ids, response_ids: Ids) -> Floats:
        """The learner's own log-probs of a response under a prompt, float32 [T]."""
        scores: list[Floats] = await self._ask(self._recipe.weights.deadline_s, what, "score", prompt_ids, response_ids)
        return scores[0]

    async def release_cache(self) -> None:
        """Every rank gives back the GPU memory that it holds and does not use."""
        await self._ask(self._recipe.weights.deadline_s, "memory that the learner gives back", "release_cache")

    async def checkpoint_bytes(self) -> int:
        """About what a checkpoint takes."""
        seconds = self._recipe.learner.step_deadline_s
        return int((await self._ask(seconds, "size of a checkpoint", "checkpoint_bytes"))[0])

    async def save(self, folder: Path, step: int) -> list[SealedFile]:
        """Every rank's files of a checkpoint, which then are on the disk."""
        files = await self._ask(self._writing_s, "saving a checkpoint", "save", str(folder), step)
        return [file for of_rank in files for file in of_rank]

    async def verify(self, folder: Path, files: Sequence[SealedFile]) -> list[str]:
        """What is wrong with the files of the checkpoint in `folder`, a line each; the ranks share them out."""
        found = await self._ask(self._reading_s, "verifying a checkpoint", "verify", str(folder), list(files))
        return [fault for of_rank in found for fault in of_rank]

    async def load(self, folder: Path, step: int) -> None:
        """Every rank loads the checkpoint at `step`."""
        await self._ask(self._reading_s, "loading a checkpoint", "load", str(folder), step)

    async def keep(self) -> None:
        """The weights as they are now are those to end with, until it is called again."""
        await self._ask(self._recipe.learner.step_deadline_s, "keeping the weights", "keep")

    async def put_kept(self) -> None:
        """The weights to end with are the learner's from now on."""
        await self._ask(self._recipe.learner.step_deadline_s, "taking the weights that were kept", "put_kept")

    async def rehearse_export(self, folder: Path) -> None:
        """Before the first step: everything but the weights is written beside `folder` and read again."""
        place = folder if (await self.places())[0].sees_run else Path(tempfile.gettempdir()) / folder.name
        await self._ask(self._recipe.learner.start_deadline_s, "rehearsing the export", "rehearse_export", str(place))

    async def export(self, folder: Path, text: tuple[Ids, Ids]) -> None:
        """The model of rank 0 as a Hugging Face folder here, whichever host the ranks are on. text: (prompt, response)
        of which it gives the learner's log-probs."""
        seconds, what = self._writing_s, "exporting the model"
        if (await self.places())[0].sees_run:
            await self._ask(seconds, what, "export", str(folder), *text)
            return
        first, *others = self.handles
        stream = first.export_parts.options(num_returns="streaming").remote(*text)
        rest = asyncio.gather(*(handle.export.remote(str(folder), *text) for handle in others))
        parts = each_within(seconds, self._names()[0], what, stream)
        await arrive(parts, partial(within, seconds, what, rest), folder, self._recipe.faults.store_s)

    @property
    def _writing_s(self) -> float:
        """Of a disk that may refuse for a while; so for what is read."""
        return self._recipe.learner.step_deadline_s + self._recipe.faults.store_s

    @property
    def _reading_s(self) -> float:
        return self._recipe.learner.start_deadline_s + self._recipe.faults.store_s

    def _names(self) -> list[str]:
        return [rank_name(rank) for rank in range(len(self.handles))]

    async def _ask(self, seconds: float, what: str, method: str, *arguments: Any) -> list[Any]:
        """What every rank's `method` answers, all of them asked at once."""
        answers = {
            name: ask(name, handle, method, *arguments)
            for name, handle in zip(self._names(), self.handles, strict=True)
        }
        with self.watch(method):
            return await all_within(seconds, what, answers)

    def stop(self) -> None:
        """Ends every rank."""
        for handle in self.handles:
            ray.kill(handle)
        for footprint in self._footprints:
            footprint.end(ENDING_S)
