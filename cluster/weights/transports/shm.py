"""Weights through shared memory, between processes of one host."""

import os
from collections.abc import Sequence

import torch

from cluster.weights.transports import Meeting, Meta, Source
from cluster.weights.transports.cpu import CpuSender, described


class ShmSender(CpuSender):
    """Writes the weights once into a memory file that every engine on this host maps."""

    _path: str

    def _meet(self, at: Meeting) -> None:
        # Kept from push to push, since new pages take longer than what is written to them; it goes with this object,
        # and with this process, however that ends.
        self._file = open(os.memfd_create("edge-opd-weights"), "r+b")  # noqa: SIM115
        self._path = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        self.client.init_weight_transfer_engine({})

    def _send(self, source: Source, metas: Sequence[Meta]) -> None:
        sizes = [torch.Size(meta.shape).numel() * meta.dtype.itemsize for meta in metas]
        offsets = _aligned_offsets(sizes)
        os.truncate(self._path, offsets[-1])
        buffer = torch.from_file(self._path, shared=True, size=offsets[-1], dtype=torch.uint8)
        places = {meta.name: (offset, size) for meta, offset, size in zip(metas, offsets, sizes, strict=False)}
        for name, tensor in source:
            offset, size = places[name]
            buffer[offset : offset + size].copy_(tensor.contiguous().view(-1).view(torch.uint8))
        self.client.start_weight_update()
        self.client.update_weights(described(metas) | {"path": self._path, "offsets": offsets})
        self.client.finish_weight_update()


def _aligned_offsets(sizes: list[int], alignment: int = 64) -> list[int]:
    """Where each block starts, and the total as the last element."""
    offsets = [0]
    for size in sizes:
        offsets.append(offsets[-1] + -(-size // alignment) * alignment)
    return offsets


sender = ShmSender
