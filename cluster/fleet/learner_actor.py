"""The Ray shell around one rank of the learner. Nothing is decided here."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from cluster.config import Recipe
from cluster.fleet.network import interface_towards, open_door
from cluster.fleet.processes import collect_seldom
from cluster.fleet.ray_cluster import Footprint, own_footprint, settle
from cluster.fleet.ray_quirks import local_rank
from cluster.models import resolve_model
from evidence.patience import retried, retried_within
from evidence.records import Floats, Ids, ShardInfo
from evidence.schema import train_rows
from evidence.shards import read_shard
from learner.sealed import SealedFile, faults
from rollout.cores import cpu_flags, has_bfloat16

if TYPE_CHECKING:
    from cluster.weights.delta import Pushes
    from cluster.weights.link import AdapterLink, WeightLink
    from cluster.weights.parts import Sent
    from learner.ema import Ema
    from learner.kept import KeptWeights

PART_BYTES = 64 << 20  # of a file that goes to another host
MARGIN_S = 60.0  # by which a deadline of the driver, which names the rank, comes before one of a collective


@dataclass(frozen=True)
class Place:
    """Where a learner rank is. `port` is its own there."""

    host: str  # its address
    port: int
    sees_run: bool


def _say_where(rank: int, places: Sequence[Place]) -> None:
    """Into the environment, where torch, DeepSpeed and gloo look for it."""
    hosts = [place.host for place in places]
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(len(places)), MASTER_ADDR=hosts[0], MASTER_PORT=str(places[0].port),
        LOCAL_RANK=str(local_rank(rank, hosts, os.environ)), LOCAL_SIZE=str(hosts.count(hosts[rank])),
    )  # fmt: skip
    # gloo would otherwise speak from the address of the host's name, which may be its loopback.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface_towards(hosts[0], places[0].port))


@ray.remote
class LearnerActor:
    """One rank of the learner. Every method is called on every rank; collectives need all of them."""

    def __init__(self, recipe: Recipe, model: str, teacher: str) -> None:
        self.log = settle("learner")
        os.umask(os.umask(0o077) | 0o022)  # a checkpoint that others may write to is not loaded again
        self._recipe, self._model, self._teacher = recipe, model, teacher
        self._door: socket | None = None

    def place(self, run_file: str) -> Place:
        """Where this rank is, and whether it sees a file of the run's folder."""
        address = ray.util.get_node_ip_address()
        if self._door is None:
            self._door = open_door(address)
            self._port = int(self._door.getsockname()[1])
        return Place(address, self._port, Path(run_file).is_file())

    def footprint(self) -> Footprint:
        """This rank's processes."""
        return own_footprint()

    def start(self, rank: int, places: Sequence[Place], secret: str) -> None:
        """Joins the other ranks, where rank 0 is, and loads the models. secret: that only they have."""
        _say_where(rank, places)
        self._join(rank, places, secret)
        from cluster.sizing.use import card_of
        from cluster.weights.source import export_groups
        from learner.config import needed_models
        from learner.ema import Ema
        from learner.engine import ZeroEngine
        from learner.frozen import FrozenModel
        from learner.products import widen_products
        from learner.train import Trainer

        collect_seldom()  # DeepSpeed has all garbage collected six times as it starts
        config, scoring = self._recipe.learner, self._recipe.teacher
        if config.dtype == "bfloat16" and not has_bfloat16(cpu_flags()):
            self._products = widen_products()
        self._model = resolve_model(self._model, weights=True)
        updates, patience_s = self._recipe.run.steps * config.updates_per_batch, self._recipe.faults.store_s
        self._engine = ZeroEngine(self._model, config, updates, patience_s)
        device = self._engine.device
        key = self._recipe.teacher_key
        teacher, base = needed_models(config.compares_distributions, config.beta_kl, scoring.is_base)
        self._trainer = Trainer(
            self._engine,
            config,
            FrozenModel(resolve_model(self._teacher, key, weights=True), config, device) if teacher else None,
            FrozenModel(self._model, config, device) if base else None,
            self._recipe.faults.nonfinite == "skip",
        )
        self._card = card_of(self._model, config.lora_rank > 0)
        self._groups, self._rank = export_groups(self._engine), rank
        self._ema = Ema(scoring.ema_rate, self._weights(), keep=rank == 0) if scoring.kind == "ema" else None
        self._kept = self._engine.keeper()
        self._links: dict[str, WeightLink | AdapterLink] = {}
        self._pushes: dict[str, Pushes] = {}  # longer than a link, which is opened anew where an engine is replaced

    def _join(self, rank: int, places: Sequence[Place], secret: str) -> None:
        import torch

        from learner.rendezvous import join, store_at

        assert self._door is not None
        if rank != 0:
            self._door.close()
        local = int(os.environ["LOCAL_RANK"])
        device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        config = self._recipe.learner
        store = store_at(places[0].host, places[0].port, config.start_deadline_s, self._door if rank == 0 else None)
        longest_s = max(config.start_deadline_s, config.step_deadline_s) + self._recipe.faults.store_s
        join(rank, len(places), store, secret, device, longest_s + MARGIN_S)

    def _weights(self) -> Any:
        """(name, full tensor) of every parameter; a collective under ZeRO-3."""
        return self._engine.full_tensors(self._groups)

    def open_transport(self, pool: str, transport: str, rollout: Any, workers: int, address: str) -> None:
        """Connects this rank to the `workers` of the engines of `pool`, "student" or "teacher", through the rollout
        service, whose handle this is. address: of rank 0."""
        from cluster.weights.delta import Pushes
        from cluster.weights.link import GRACE_S, AdapterLink, FleetClient, WeightLink
        from cluster.weights.source import TrainerSource
        from cluster.weights.transports import Meeting

        client = FleetClient(rollout, pool)
        if self._recipe.learner.lora_rank:
            self._links[pool] = AdapterLink(client, self._engine)
            return
        source = TrainerSource(self._engine, self._ema if pool == "teacher" else None)
        deadline_s = self._recipe.weights.deadline_s
        pushes = self._pushes.setdefault(pool, Pushes()) if self._recipe.weights.delta else None
        meeting = Meeting(self._rank, address, workers, deadline_s, source.largest_bytes(), pushes)
        with client.until(deadline_s + GRACE_S):  # so that only who is late to the rendezvous is late here
            self._links[pool] = WeightLink(transport, client, source, meeting)

    def step(self, shard: ShardInfo) -> Any:
        from learner.memory import forget_peak, peak_bytes

        forget_peak()
        try:
            read = partial(read_shard, shard.uri, expected=shard)
            table = retried_within(self._recipe.faults.store_s, shard.uri, read, (FileNotFoundError,))
            report = self._trainer.step(train_rows(table))
        except (RuntimeError, ValueError, OSError) as error:
            raise RuntimeError(f"learner at step {shard.step}: {error}") from error
        if self._ema is not None:
            self._ema.update(self._weights())
        if self._card is not None:
            report = self._card.add(report)
        export, left = self._recipe.export, self._recipe.run.steps - shard.step
        if export.choose == "average" and left <= export.average:
            self._kept.add()
        return replace(report, peak_bytes=peak_bytes())

    def keep(self) -> None:
        """The weights as they are now are those to end with, until it is called again."""
        self._kept.take()

    def put_kept(self) -> None:
        """The weights to end with are those of the learner from now on."""
        export = self._recipe.export
        self._kept.put(export.average if export.choose == "average" else 1)

    def release_cache(self) -> None:
        """Gives back the GPU memory that this process holds and does not use."""
        import torch

        torch.cuda.empty_cache()

    def push(self, pool: str, version: int, seconds: float) -> "Sent":
        """Sends the weights to every engine of `pool` as `version`, within `seconds`."""
        link = self._links[pool]
        with link.client.until(seconds):
            return link.push(version)

    def score(self, prompt_ids: Ids, response_ids: Ids) -> Floats:
        return np.asarray(self._trainer.score(prompt_ids, response_ids), np.float32)

    def checkpoint_bytes(self) -> int:
        return self._engine.checkpoint_bytes()

    def save(self, folder: str, step: int) -> list[SealedFile]:
        return self._engine.save(folder, {"step": step}, *self._beside())

    def verify(self, folder: str, files: Sequence[SealedFile]) -> list[str]:
        """What is wrong with this rank's share of a checkpoint's files, a line each."""
        share = files[self._rank :: self._recipe.learner.num_ranks]
        return retried(self._recipe.faults.store_s, partial(faults, Path(folder), share))

    def load(self, folder: str, step: int) -> None:
        self._engine.load(folder, step, *self._beside())

    def _beside(self) -> "list[Ema | KeptWeights]":
        return [self._kept] if self._ema is None else [self._kept, self._ema]

    def rehearse_export(self, folder: str) -> None:
        self._engine.rehearse_export(folder)

    def export(self, folder: str, prompt_ids: Ids, response_ids: Ids) -> None:
        import torch

        from learner.export import one_row

        ids = torch.from_numpy(np.concatenate([prompt_ids, response_ids])).long()
        self._engine.export(folder, self._groups, one_row(ids, len(prompt_ids)))

    def export_parts(self, prompt_ids: Ids, response_ids: Ids) -> Iterator[tuple[str, bytes]]:
        """(file name, the next part of its bytes) of the exported model, for a driver that does not share a folder;
        one rank writes, in a collective."""
        with tempfile.TemporaryDirectory(prefix="edge-opd-export-") as folder:
            self.export(folder, prompt_ids, response_ids)
            for path in sorted(Path(folder).iterdir()):
                with path.open("rb") as file:
                    while part := file.read(PART_BYTES):
                        yield path.name, part
