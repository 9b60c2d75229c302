"""Thin Ray shells around the services. Nothing is decided here."""

import gc
import os
import socket
import sys
import tempfile
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import ray

from cluster.config import Recipe
from cluster.fleet.network import interface_towards
from cluster.fleet.scheduler import EnginePool
from cluster.models import resolve_model
from evidence.records import EvidenceRecord, Floats, Ids, RolloutRequest, Sample, ShardInfo
from evidence.schema import to_table, train_rows
from evidence.shards import read_shard, write_shard
from rollout.config import AdapterConfig, EngineConfig, SamplingConfig
from rollout.worker import StepRollouts

if TYPE_CHECKING:
    from cluster.weights.link import AdapterLink, WeightLink

T = TypeVar("T")
LAST_LINES = 12
PART_BYTES = 64 << 20  # of a file that goes to another host


@dataclass(frozen=True)
class Place:
    """Where a learner rank is. `port` is free there."""

    host: str  # its address
    port: int
    sees_run: bool


def log_to_file(name: str) -> str:
    """Sends this process's output, and its children's, to a file of its own; returns the path."""
    folder = Path(tempfile.gettempdir()) / f"edge-opd-logs-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{os.getpid()}.log"
    sys.stdout.flush(), sys.stderr.flush()
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(target, 1), os.dup2(target, 2)
    os.close(target)
    return str(path)


def collect_seldom() -> None:
    """Lets this process look for cyclic garbage seldom. The rollouts under way are many small objects, which live long
    and have no cycles: by default each collection walks all of them, for a third of the controller's time."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


def last_lines(path: str, count: int = LAST_LINES) -> str:
    lines = [line for line in Path(path).read_text(errors="replace").splitlines() if line.strip()]
    return "\n".join(f"    {line}" for line in lines[-count:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


@ray.remote
class EngineActor:
    """One vLLM engine. Its output goes to a log, whose last lines come with any failure."""

    def __init__(
        self,
        name: str,
        model: str,
        config: EngineConfig,
        device: str,
        backend: str | None,
        in_flight: bool,
        adapter: AdapterConfig | None,
        sleeps: bool = False,
    ) -> None:
        self.name, self.log = name, log_to_file(name)
        self._arguments = (model, config, device, backend, in_flight, adapter, sleeps)

    async def start(self) -> str:
        """Builds the engine; returns the address of its host."""
        from rollout.engine import Engine

        model, config, device, backend, in_flight, adapter, sleeps = self._arguments
        try:
            extension = "cluster.weights.receiver.WeightReceiver" if backend else None
            self.engine = Engine(resolve_model(model), config, device, backend, extension, in_flight, adapter, sleeps)
        except (RuntimeError, ValueError, OSError, ImportError, AssertionError) as error:
            raise RuntimeError(
                f"{self.name} did not start: {error}\n  last lines of {self.log}:\n{last_lines(self.log)}"
            ) from None
        return str(ray.util.get_node_ip_address())

    async def sample(
        self, requests: list[RolloutRequest], sampling: SamplingConfig, seed: int, base: bool = False
    ) -> list[Sample]:
        return await self._told(self.engine.sample(requests, sampling, seed, base))

    async def texts(self, prompts: list[Ids], sampling: SamplingConfig, num_samples: int, seed: int) -> list[list[str]]:
        return await self._told(self.engine.texts(prompts, sampling, num_samples, seed))

    async def score(self, prompts: list[Ids], responses: list[Ids], base: bool = False) -> list[Floats]:
        return await self._told(self.engine.score(prompts, responses, base))

    async def load_adapter(self, files: dict[str, bytes], version: int) -> None:
        await self._told(self.engine.load_adapter(files, version))

    async def init_weight_transfer_engine(self, request: Any) -> None:
        await self._told(self.engine.init_weight_transfer_engine(request))

    async def start_weight_update(self) -> None:
        await self._told(self.engine.start_weight_update())

    async def update_weights(self, request: Any) -> None:
        await self._told(self.engine.update_weights(request))

    async def finish_weight_update(self) -> None:
        await self._told(self.engine.finish_weight_update())

    async def update_weight_version(self, version: str) -> None:
        await self._told(self.engine.update_weight_version(version))

    async def sleep(self) -> None:
        await self._told(self.engine.sleep())

    async def wake_up(self) -> None:
        await self._told(self.engine.wake_up())

    async def weight_state(self) -> tuple[int, str]:
        return await self._told(self.engine.weight_state())

    async def shutdown(self) -> None:
        self.engine.shutdown()

    async def _told(self, work: Coroutine[Any, Any, T]) -> T:
        """A dead engine core speaks through its log."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            return await work
        except EngineDeadError as error:
            raise RuntimeError(
                f"{self.name} died: {error}\n  last lines of {self.log}:\n{last_lines(self.log)}"
            ) from None


@ray.remote
class RolloutActor:
    """The rollout service: a stream of groups over pools of engines, writing to the run's storage."""

    def __init__(
        self,
        recipe: Recipe,
        model: str,
        students: list[Any],
        teachers: list[Any],
        storage: str,
        metadata: dict[str, str],
    ) -> None:
        self.log = log_to_file("rollout")
        collect_seldom()
        from cluster.requests import step_requests
        from rollout.stream import RolloutStream
        from rollout.tasks import build_task
        from rollout.worker import RolloutWorker, rewarder

        self._storage, self._metadata = storage, metadata
        self._digests: dict[int, str] = {}
        pools = {
            "student": EnginePool(students, recipe.student.max_num_seqs),
            "teacher": EnginePool(teachers, recipe.teacher.max_num_seqs)
            if recipe.teacher_engines
            else EnginePool(students, recipe.student.max_num_seqs, base=True),  # LoRA: without the adapter
        }
        requests, run = step_requests(recipe, resolve_model(model)), recipe.run
        self._worker = RolloutWorker(
            config=recipe.rollout,
            evidence=recipe.evidence,
            sampler=pools[recipe.rollout.sampler],
            scorer=pools["teacher"],
            write=self._write,
            reward=rewarder(requests, build_task(recipe.task).reward),
            student_scorer=pools["student"],
        )
        self._stream = RolloutStream(self._worker, requests, run.steps, run.max_policy_lag, recipe.rollout.deadline_s)

    async def resume(self, learned: list[str]) -> None:
        self._stream.resume(learned)

    async def advance(self, version: int, weights_digest: str) -> None:
        """The student's engines hold `version` with this digest."""
        self._digests[version] = weights_digest
        self._stream.advance(version)

    async def take(self, step: int) -> StepRollouts:
        return self._worker.write(await self._stream.take(step), step)

    async def pause_scoring(self) -> None:
        await self._stream.pause_scoring()

    async def resume_scoring(self, teacher_version: int) -> None:
        await self._stream.resume_scoring(teacher_version)

    def _write(self, records: Sequence[EvidenceRecord], step: int) -> ShardInfo:
        newest = max(record.scored.sample.policy_version_max for record in records)
        table = to_table(records, self._metadata | {"step": str(step), "weights_digest": self._digests[newest]})
        return write_shard(table, self._storage, f"step-{step:06d}.arrow")


@ray.remote
class LearnerActor:
    """One rank of the learner. Every method is called on every rank; collectives need all of them."""

    def __init__(self, recipe: Recipe, model: str, teacher: str) -> None:
        self.log = log_to_file("learner")
        self._recipe, self._model, self._teacher = recipe, model, teacher

    def place(self, run_file: str) -> Place:
        """Where this rank is, and whether it sees a file of the run's folder."""
        return Place(ray.util.get_node_ip_address(), _free_port(), Path(run_file).is_file())

    def start(self, rank: int, places: Sequence[Place]) -> None:
        """Joins the other ranks, where rank 0 is, and loads the models."""
        hosts = [place.host for place in places]
        os.environ.update(
            RANK=str(rank), WORLD_SIZE=str(len(places)), MASTER_ADDR=hosts[0], MASTER_PORT=str(places[0].port),
            LOCAL_RANK=str(hosts[:rank].count(hosts[rank])), LOCAL_SIZE=str(hosts.count(hosts[rank])),
        )  # fmt: skip
        if os.environ.get("CUDA_VISIBLE_DEVICES"):
            os.environ["LOCAL_RANK"] = "0"  # Ray shows each rank its own GPU only
        # gloo would otherwise speak from the address of the host's name, which may be its loopback.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface_towards(hosts[0], places[0].port))
        from cluster.weights.source import export_groups
        from learner.ema import Ema
        from learner.engine import ZeroEngine
        from learner.frozen import FrozenModel, needed_models
        from learner.train import Trainer

        config, scoring = self._recipe.learner, self._recipe.teacher
        self._model, teacher_model = resolve_model(self._model), resolve_model(self._teacher)
        self._engine = ZeroEngine(self._model, config)
        device = self._engine.device
        teacher, base = needed_models(config.compares_distributions, config.beta_kl, scoring.is_base)
        self._trainer = Trainer(
            self._engine,
            config,
            FrozenModel(teacher_model, config, device) if teacher else None,
            FrozenModel(self._model, config, device) if base else None,
        )
        self._groups, self._rank = export_groups(self._engine), rank
        self._ema = Ema(scoring.ema_rate, self._weights(), keep=rank == 0) if scoring.kind == "ema" else None
        self._links: dict[str, WeightLink | AdapterLink] = {}

    def _weights(self) -> Any:
        """(name, full tensor) of every parameter; a collective under ZeRO-3."""
        return self._engine.full_tensors(self._groups)

    def open_transport(self, pool: str, transport: str, engines: list[Any], address: str, port: int) -> None:
        """Connects this rank to the engines of `pool`, "student" or "teacher"."""
        from cluster.weights.link import AdapterLink, WeightLink
        from cluster.weights.source import TrainerSource
        from cluster.weights.table import Meeting

        if self._recipe.learner.lora_rank:
            self._links[pool] = AdapterLink(engines, self._engine)
            return
        config = self._recipe.student if pool == "student" else self._recipe.teacher
        workers, deadline_s = len(engines) * config.tensor_parallel_size, self._recipe.weights.deadline_s
        source = TrainerSource(self._engine, self._ema if pool == "teacher" else None)
        meeting = Meeting(self._rank, address, port, workers, deadline_s, source.largest_bytes())
        self._links[pool] = WeightLink(transport, engines, source, meeting)

    def step(self, shard: ShardInfo) -> Any:
        rows = train_rows(read_shard(shard.uri, expected=shard))
        try:
            report = self._trainer.step(rows)
        except RuntimeError as error:
            raise RuntimeError(f"learner at step {shard.step}: {error}") from error
        if self._ema is not None:
            self._ema.update(self._weights())
        return report

    def release_cache(self) -> None:
        """Gives back the GPU memory that this process holds and does not use."""
        import torch

        torch.cuda.empty_cache()

    def push(self, pool: str, version: int) -> str:
        """Sends the weights to every engine of `pool` as `version`; returns their digest."""
        return self._links[pool].push(version)

    def score(self, prompt_ids: Ids, response_ids: Ids) -> Floats:
        return np.asarray(self._trainer.score(prompt_ids, response_ids), np.float32)

    def save(self, folder: str, step: int) -> None:
        self._engine.save(folder, {"step": step}, self._ema)

    def load(self, folder: str) -> int:
        return int(self._engine.load(folder, self._ema)["step"])

    def export(self, folder: str) -> None:
        self._engine.export(folder, self._model, self._groups)

    def export_parts(self) -> Iterator[tuple[str, bytes]]:
        """(file name, the next part of its bytes) of the exported model, for a driver that does not share a folder;
        one rank writes, in a collective."""
        with tempfile.TemporaryDirectory(prefix="edge-opd-export-") as folder:
            self.export(folder)
            for path in sorted(Path(folder).iterdir()):
                with path.open("rb") as file:
                    while part := file.read(PART_BYTES):
                        yield path.name, part
