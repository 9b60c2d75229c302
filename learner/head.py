"""The language model's head, a chunk of positions at a time: each chunk's logits are recomputed in the backward pass.

Legend: N = response tokens of one packed sequence, C = positions of a chunk, H = hidden size, V = vocabulary,
K = what is read at each position: the target's log-prob and, with a teacher, the divergence from it.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from learner.divergence import Divergence


@dataclass(frozen=True, eq=False)
class Distribution:
    """A frozen model's next-token distributions at N positions, kept as hidden states: logits would be too large."""

    hidden_NH: Tensor  # H is that model's own
    weight_VH: Tensor  # of its head
    whole: Callable[[], AbstractContextManager[Any]] = nullcontext  # within it the weight is not sharded


class _ChunkedHead(torch.autograd.Function):
    """Reads a head at N positions, with float32 logits of one chunk of them at a time, forward and backward.

    Row 0 is log softmax(hidden @ weight.T)[target]; row 1, with a teacher only, the divergence between the two.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        targets_N: Tensor,
        chunk: int,
        divergence: Divergence | None,
        teacher: Distribution | None,
    ) -> Tensor:
        readings_KN = hidden_NH.new_empty(1 if teacher is None else 2, len(targets_N), dtype=torch.float32)
        for part, logits, teacher_logits in _logit_chunks(hidden_NH, weight_VH, teacher, chunk):
            picked = logits.gather(1, targets_N[part, None]).squeeze(1)
            readings_KN[0, part] = picked - torch.logsumexp(logits, dim=1)
            if teacher is not None:
                assert divergence is not None
                readings_KN[1, part] = divergence(teacher_logits, logits)
        ctx.save_for_backward(hidden_NH, weight_VH, targets_N)
        ctx.chunk, ctx.divergence, ctx.teacher = chunk, divergence, teacher
        return readings_KN

    @staticmethod
    def backward(ctx: Any, grad_KN: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, targets_N = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden_NH)
        # A frozen head, as under an adapter, needs none.
        grad_weight = torch.zeros_like(weight_VH, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for part, logits, teacher_logits in _logit_chunks(hidden_NH, weight_VH, ctx.teacher, ctx.chunk):
            hidden = hidden_NH[part]
            # d logprob / d logits = onehot - softmax
            grad_logits = torch.softmax(logits, dim=1).neg_()
            rows = torch.arange(len(hidden), device=hidden.device)
            grad_logits[rows, targets_N[part]] += 1.0
            grad_logits *= grad_KN[0, part, None]
            if ctx.teacher is not None:
                grad_logits += _pull_back(ctx.divergence, teacher_logits, logits, grad_KN[1, part])
            grad_logits = grad_logits.to(weight_VH.dtype)
            grad_hidden[part] = grad_logits @ weight_VH
            if grad_weight is not None:
                grad_weight += (grad_logits.T @ hidden).float()
        return grad_hidden, grad_weight if grad_weight is None else grad_weight.to(weight_VH.dtype), *[None] * 4


def _logit_chunks(
    hidden_NH: Tensor, weight_VH: Tensor, teacher: Distribution | None, chunk: int
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """(which positions, their logits, the teacher's logits there), a chunk of positions at a time."""
    head_VH = _head_operand(weight_VH)
    with nullcontext() if teacher is None else teacher.whole():
        teacher_head_VH = None if teacher is None else _head_operand(teacher.weight_VH)
        for start in range(0, len(hidden_NH), chunk):
            part = slice(start, start + chunk)
            theirs = None if teacher is None else _logits(teacher.hidden_NH[part], teacher_head_VH)
            yield part, _logits(hidden_NH[part], head_VH), theirs


def _pull_back(divergence: Divergence, teacher_logits: Tensor, logits: Tensor, grad_C: Tensor) -> Tensor:
    """grad times d divergence / d logits."""
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        return torch.autograd.grad(divergence(teacher_logits, leaf), leaf, grad_C)[0]


def _head_operand(weight_VH: Tensor) -> Tensor:
    """The head's weight as `_logits` wants it: on CPU, which has no bf16 product with a float32 result, widened."""
    return weight_VH if weight_VH.is_cuda else weight_VH.float()


def _logits(hidden: Tensor, head_VH: Tensor) -> Tensor:
    """float32 logits, never rounded to a narrower type: at |logit| of 16, bfloat16 steps by 0.125."""
    if head_VH.dtype == torch.float32:
        return hidden.float() @ head_VH.T
    return torch.mm(hidden, head_VH.T, out_dtype=torch.float32)


class LogprobHead(nn.Module):
    """lm_head that returns log-probs. Owns the (possibly tied) weight, so ZeRO-3 gathers it here."""

    def __init__(self, weight: nn.Parameter, chunk: int, divergence: Divergence | None = None) -> None:
        super().__init__()
        self.weight = weight
        self.chunk, self.divergence = chunk, divergence

    def forward(self, hidden_NH: Tensor, targets_N: Tensor, teacher: Distribution | None = None) -> Tensor:
        """float32 [1, N] log-probs of the targets or, with a teacher, [2, N] with the divergences from it.

        One tensor: ZeRO-3 hooks on each output and, where a loss ignores one on some ranks, their collectives differ.
        """
        return _ChunkedHead.apply(hidden_NH, self.weight, targets_N, self.chunk, self.divergence, teacher)
