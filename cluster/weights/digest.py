"""One digest for what was sent and what was received."""

import functools
import hashlib

import torch
from torch import Tensor

_CHUNK = 1 << 20  # words summed at one time


class WeightsDigest:
    """Order-independent digest of a set of named tensors, computed where they live.

    Per tensor: name, dtype, shape, and two sums over its bytes as 64-bit words, plain and with the word's place as an
    odd factor, modulo 2^64; SHA-256 of the sorted lines. It finds what is missing, stale, swapped or damaged; it is not
    a cryptographic proof.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}  # by the line's beginning; read at the end, all at once

    def add(self, name: str, tensor: Tensor) -> None:
        words, factors = _words(tensor.detach()), _factors(tensor.device)
        plain = weighted = torch.zeros((), dtype=torch.int64, device=tensor.device)
        for start in range(0, len(words), _CHUNK):
            part = words[start : start + _CHUNK]
            total = part.sum()
            plain = plain + total
            weighted = weighted + (part * factors[: len(part)]).sum() + 2 * start * total
        self._sums[f"{name} {tensor.dtype} {tuple(tensor.shape)}"] = plain, weighted

    def hexdigest(self) -> str:
        if not self._sums:
            return ""
        sums = torch.stack([torch.stack(pair) for pair in self._sums.values()]).tolist()  # a GPU is asked once
        lines = [f"{line} {plain} {weighted}" for line, (plain, weighted) in zip(self._sums, sums, strict=True)]
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def _words(tensor: Tensor) -> Tensor:
    """The tensor's bytes as int64, the last word filled up with zeros."""
    flat = tensor.contiguous().view(-1).view(torch.uint8)
    missing = -len(flat) % 8
    if missing or flat.storage_offset() % 8:
        flat = torch.cat([flat, flat.new_zeros(missing)])
    return flat.view(torch.int64)


@functools.cache
def _factors(device: torch.device) -> Tensor:
    """1, 3, 5, ... for the words of a chunk."""
    return torch.arange(1, 2 * _CHUNK, 2, dtype=torch.int64, device=device)
