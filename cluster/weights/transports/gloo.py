"""Weights over gloo, between hosts."""

import secrets
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroupGloo

from cluster.fleet.network import open_door, own_address
from cluster.weights.delta import Held
from cluster.weights.transports import Meeting, Meta, Source
from cluster.weights.transports.cpu import SENDER, CpuSender, described
from learner.rendezvous import new_secret, prove, store_at


def open_group(
    address: str, port: int, rank: int, size: int, timeout_s: float, secret: str, door: socket.socket | None = None
) -> ProcessGroupGloo:
    """A process group beside torch's default one, each member of which has the secret. It speaks from the interface
    that leads to `address`: a host's name may stand for its loopback. door: the sender's, at that port.

    Raises:
        RuntimeError: somebody does not come, or does not have the secret.
    """
    store = store_at(address, port, timeout_s, door)
    options = ProcessGroupGloo._Options()
    options._timeout = timedelta(seconds=timeout_s)
    options._devices = [ProcessGroupGloo.create_device(hostname=own_address(address, port))]
    group = ProcessGroupGloo(store, rank, size, options)
    prove(secret, rank, lambda own: _gathered(group, own, size))
    return group


def _gathered(group: ProcessGroupGloo, own: Tensor, size: int) -> list[Tensor]:
    every = [torch.empty_like(own) for _ in range(size)]
    group.allgather([every], [own]).wait()
    return every


def broadcast(group: ProcessGroupGloo, tensor: Tensor) -> None:
    """The sender's tensor to everyone, as bytes: gloo does not know every dtype."""
    group.broadcast(tensor.view(-1).view(torch.uint8), root=SENDER).wait()


def held_by_each(group: ProcessGroupGloo, held: Held) -> list[int]:
    """The marks of what the sender and each worker hold, by rank; every member calls it."""
    return [int(mark) for mark in _gathered(group, torch.tensor([held.mark]), group.size())]


class GlooSender(CpuSender):
    """Broadcasts the weights tensor by tensor, so that neither side holds more than one beside the model; or what
    changed of them."""

    _group: ProcessGroupGloo

    def _meet(self, at: Meeting) -> None:
        self._pushes = at.pushes
        door, secret, size = open_door(at.address), new_secret(), at.num_workers + 1
        port = int(door.getsockname()[1])
        theirs: dict[str, Any] = {
            "master_address": at.address,
            "master_port": port,
            "rank_offset": SENDER + 1,
            "world_size": size,
            "timeout_s": at.timeout_s,
            "secret": secret,
        }
        with ThreadPoolExecutor(1) as beside:  # all meet in the rendezvous
            joined = beside.submit(self.client.init_weight_transfer_engine, theirs)
            self._group = open_group(at.address, port, SENDER, size, at.timeout_s, secret, door)
            joined.result()

    def _send(self, source: Source, metas: Sequence[Meta]) -> None:
        tensors, pushes = iter(source), self._pushes
        mark = secrets.randbelow(1 << 62) + 1 if pushes else 0
        with ThreadPoolExecutor(1) as beside:
            try:
                self.client.start_weight_update()
                received = beside.submit(self.client.update_weights, described(metas) | {"mark": mark})
                for message in self._messages(metas, tensors):
                    broadcast(self._group, message)
                received.result()
            except RuntimeError:
                for _ in tensors:  # which the other ranks gather with this one
                    pass
                raise
        self.client.finish_weight_update()
        if pushes:
            pushes.held.mark = mark

    def _messages(self, metas: Sequence[Meta], tensors: Iterator[tuple[str, Tensor]]) -> Iterator[Tensor]:
        if self._pushes:
            yield from self._pushes.messages(held_by_each(self._group, self._pushes.held), metas, tensors)
            assert next(tensors, None) is None, "more tensors than were described"
            return
        for meta, (name, tensor) in zip(metas, tensors, strict=True):
            assert (name, tensor.dtype) == (meta.name, meta.dtype), f"{name} {tensor.dtype}: expected {meta}"
            yield tensor.contiguous()


sender = GlooSender
