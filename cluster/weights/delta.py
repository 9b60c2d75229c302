"""Pushes of what changed: of 16-bit weights, the elements whose bits differ from those of the last push.

Both ends keep those bits, 2 bytes a parameter. A push goes in batches of tensors, and a batch in two messages: a head,
the sizes of each chunk's codes and values in bytes, then a body, those codes and values.

    no codes, no values     nothing changed
    no codes, but values    the whole chunk: not held yet, not of 16 bits, or shorter so
    codes and values        which elements change, and to what

Bits are compared, not numbers: -0 is not 0, and a NaN may be what it was. Whole weights are loaded and digested at each
push.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from cluster.weights.transports import Meta

SKIP = 255  # a code of this value passes over as many elements; a smaller one over as many, and changes the next
CHUNK = 1 << 20  # elements that are encoded at one time
BATCH = 1 << 26  # bytes of whole tensors, of which one head says what comes


def codes_of(positions_K: Tensor) -> Tensor:
    """uint8 [C], C >= K, of ascending positions, int64 [K]."""
    passed_K = positions_K.diff(prepend=positions_K.new_tensor([-1])) - 1
    skips_K = passed_K // SKIP
    codes_C = torch.full((len(positions_K) + int(skips_K.sum()),), SKIP, dtype=torch.uint8)
    codes_C[(skips_K + 1).cumsum(0) - 1] = (passed_K % SKIP).to(torch.uint8)
    return codes_C


def positions_of(codes_C: Tensor) -> Tensor:
    """The positions that `codes_of` was given, int64 [K]."""
    changes_C = codes_C != SKIP
    return (codes_C.long() + changes_C).cumsum(0)[changes_C] - 1


def encode(now_N: Tensor, then_N: Tensor) -> tuple[Tensor, Tensor]:
    """(codes, values) that make `now` of `then`, both int16 [N]: not longer than all of `now`."""
    changed_K = (now_N != then_N).nonzero().flatten()
    codes_C = codes_of(changed_K)
    if len(codes_C) + changed_K.numel() * now_N.itemsize < now_N.nbytes:
        return codes_C, now_N[changed_K]
    return codes_C[:0], now_N


def decode(then_N: Tensor, codes_C: Tensor, values_K: Tensor) -> None:
    """`then` becomes what `encode` was given as `now`."""
    if len(codes_C):
        then_N[positions_of(codes_C)] = values_K
    elif len(values_K):
        then_N.copy_(values_K)


class Held:
    """The bits that one end holds. mark: names the push that they are of, alike at both ends; 0: of none, or of one
    that did not come to its end."""

    def __init__(self) -> None:
        self.mark, self._words = 0, dict[str, Tensor]()

    def words(self, meta: Meta) -> Tensor:
        """Of a tensor, flat: int16 that stay, or, where it is not of 16 bits, uint8 that do not."""
        if meta.dtype.itemsize != 2:
            return torch.empty(_num_words(meta), dtype=torch.uint8)
        if meta.name not in self._words:
            self._words[meta.name] = torch.empty(_num_words(meta), dtype=torch.int16)
        return self._words[meta.name]

    @property
    def is_empty(self) -> bool:
        return not self._words


class Pushes:
    """The learner's end of the pushes to one pool. num_bytes, whole: of the last: what went, and why it was whole
    weights, "" where it was not and for the first, which must be."""

    def __init__(self) -> None:
        self.held, self.num_bytes, self.whole = Held(), 0, ""

    def messages(
        self, marks: Sequence[int], metas: Sequence[Meta], tensors: Iterator[tuple[str, Tensor]]
    ) -> Iterator[Tensor]:
        """Of one push. marks: of what each end holds, the learner's own first. Its bits have no mark then, until the
        caller says that the push came to its end."""
        is_first = self.held.is_empty
        self.num_bytes, self.whole = 0, "" if is_first else self._why_whole(marks)
        knows = not (is_first or self.whole)
        self.held.mark = 0
        for batch in batches(metas):
            parts = list[tuple[Tensor, Tensor]]()
            for meta, (name, tensor) in zip(batch, islice(tensors, len(batch)), strict=True):
                assert (name, tensor.dtype) == (meta.name, meta.dtype), f"{name} {tensor.dtype}: expected {meta}"
                parts += self._parts(meta, tensor, knows)
            head = torch.tensor([[part.nbytes for part in pair] for pair in parts], dtype=torch.int64)
            body = torch.cat([part.view(torch.uint8) for pair in parts for part in pair])
            for message in (head, body) if len(body) else (head,):
                self.num_bytes += message.nbytes
                yield message

    def _parts(self, meta: Meta, tensor: Tensor, knows: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """(codes, values) of each chunk, in memory of our own: a gathered tensor goes as the next one is asked for."""
        then, now = self.held.words(meta), tensor.detach().to("cpu").contiguous().view(-1)
        now = now.view(then.dtype)
        for then_N, now_N in zip(_chunks(then), _chunks(now), strict=True):
            if knows and then.dtype == torch.int16:
                codes, values = encode(now_N, then_N)
                then_N.copy_(now_N)
                yield codes, values if len(codes) else values.clone()
            else:
                yield torch.empty(0, dtype=torch.uint8), then_N.copy_(now_N)

    def _why_whole(self, marks: Sequence[int]) -> str:
        if not marks[0]:
            return "the push before it did not come to its end"
        others = [str(worker) for worker, mark in enumerate(marks) if mark != marks[0]]
        if not others:
            return ""
        return f"worker {', '.join(others)} of {len(marks) - 1} of the engines does not hold the push before it"


def arriving(held: Held, metas: Sequence[Meta], receive: Callable[[Tensor], None]) -> Iterator[tuple[str, Tensor]]:
    """The engines' end of `Pushes.messages`: (name, tensor) of every tensor, whole. receive: the next message into a
    tensor of its size."""
    for batch in batches(metas):
        head = torch.empty(sum(-(-_num_words(meta) // CHUNK) for meta in batch), 2, dtype=torch.int64)
        receive(head)
        body = torch.empty(int(head.sum()), dtype=torch.uint8)
        if len(body):
            receive(body)
        parts = iter(body.split(head.flatten().tolist()))
        for meta in batch:
            words = held.words(meta)
            for chunk in _chunks(words):
                codes, values = next(parts), next(parts)
                decode(chunk, codes, values.clone().view(words.dtype))  # aligned
            yield meta.name, words.view(meta.dtype).view(meta.shape)


def batches(metas: Sequence[Meta]) -> Iterator[list[Meta]]:
    """Consecutive tensors of together about `BATCH` bytes or less, at least one."""
    batch, size = list[Meta](), 0
    for meta in metas:
        batch.append(meta)
        size += meta.dtype.itemsize * math.prod(meta.shape)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _num_words(meta: Meta) -> int:
    return math.prod(meta.shape) * (1 if meta.dtype.itemsize == 2 else meta.dtype.itemsize)


def _chunks(words: Tensor) -> list[Tensor]:
    return [words[start : start + CHUNK] for start in range(0, len(words), CHUNK)]
