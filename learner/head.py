"""The language model's head, a chunk of logits at a time: each chunk is recomputed in the backward pass.

Legend: N = response tokens of one packed sequence, C = positions of a chunk, H = hidden size, V = vocabulary, W = words
of a part of it, K = what is read at each position: the target's log-prob and, with a teacher, the divergence from it.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from learner.divergence import Divergence
from learner.logits import AS_IT_IS, LogitForm


@dataclass(frozen=True, eq=False)
class Distribution:
    """A frozen model's next-token distributions at N positions, kept as hidden states: logits would be too large."""

    hidden_NH: Tensor  # H is that model's own
    weight_VH: Tensor  # of its head
    form: LogitForm = AS_IT_IS
    whole: Callable[[], AbstractContextManager[Any]] = nullcontext  # within it the weight is not sharded


WIDENED = 8192  # words whose weights, and their gradients, a CPU holds in float32 at one time


class _ChunkedHead(torch.autograd.Function):
    """Reads a head at N positions, with float32 logits of one chunk of them at a time, forward and backward.

    Row 0 is log softmax(form(hidden @ weight.T))[target]; row 1, with a teacher only, the divergence between the two.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        targets_N: Tensor,
        form: LogitForm,
        chunk: int,
        divergence: Divergence | None,
        teacher: Distribution | None,
    ) -> Tensor:
        readings_KN = hidden_NH.new_zeros(1 if teacher is None else 2, len(targets_N), dtype=torch.float32)
        normalizer_N = torch.full_like(readings_KN[0], -torch.inf)
        for words, factor_WH in _factors(weight_VH, teacher):
            for part, logits, teacher_logits in _logit_chunks(hidden_NH, factor_WH, form, teacher, chunk):
                readings_KN[0, part] += _picked(logits, targets_N[part], words)
                if teacher is not None:
                    assert divergence is not None
                    readings_KN[1, part] = divergence(teacher_logits, logits)
                normalizer_N[part] = normalizer_N[part].logaddexp(_logsumexp_(logits))
        readings_KN[0] -= normalizer_N
        ctx.save_for_backward(hidden_NH, weight_VH, targets_N, normalizer_N)
        ctx.form, ctx.chunk, ctx.divergence, ctx.teacher = form, chunk, divergence, teacher
        return readings_KN

    @staticmethod
    def backward(ctx: Any, grad_KN: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, targets_N, normalizer_N = ctx.saved_tensors
        grad_hidden = torch.zeros_like(hidden_NH, dtype=torch.float32)
        # A frozen head, as under an adapter, needs none.
        grad_weight = torch.empty_like(weight_VH) if ctx.needs_input_grad[1] else None
        for words, factor_WH in _factors(weight_VH, ctx.teacher):
            grad_WH = None if grad_weight is None else torch.zeros_like(factor_WH, dtype=torch.float32)
            for part, logits, teacher_logits in _logit_chunks(hidden_NH, factor_WH, ctx.form, ctx.teacher, ctx.chunk):
                grad_C1, slope = grad_KN[0, part, None], ctx.form.slope(logits)
                pulled = _pull_back(ctx.divergence, teacher_logits, logits, grad_KN[1, part]) if ctx.teacher else None
                # d logprob / d logits = onehot - softmax
                grad_logits = logits.sub_(normalizer_N[part, None]).exp_().mul_(-grad_C1)
                _add_picked_(grad_logits, targets_N[part], words, grad_C1)
                if pulled is not None:
                    grad_logits += pulled
                if ctx.form != AS_IT_IS:
                    grad_logits *= slope
                narrow = _factor(grad_logits.to(weight_VH.dtype))
                _add_product_(grad_hidden[part], narrow, factor_WH)
                if grad_WH is not None:
                    _add_product_(grad_WH, narrow.T, hidden_NH[part])
            if grad_weight is not None:
                grad_weight[words] = grad_WH
        return grad_hidden.to(hidden_NH.dtype), grad_weight, *[None] * 5


def _factors(weight_VH: Tensor, teacher: Distribution | None) -> Iterator[tuple[slice, Tensor]]:
    """(which words, their weights as a product takes them): all of them on a GPU, which widens nothing, and where whole
    distributions are compared."""
    size = len(weight_VH) if weight_VH.is_cuda or teacher is not None else WIDENED
    with _instructions_of(weight_VH.dtype):
        for start in range(0, len(weight_VH), size):
            words = slice(start, min(start + size, len(weight_VH)))
            yield words, _factor(weight_VH[words])


def _logit_chunks(
    hidden_NH: Tensor, factor_WH: Tensor, form: LogitForm, teacher: Distribution | None, chunk: int
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """(which positions, their logits, the teacher's logits there), a chunk of positions at a time."""
    with nullcontext() if teacher is None else teacher.whole():
        other = None if teacher is None else (teacher.hidden_NH, _factor(teacher.weight_VH), teacher.form)
        for start in range(0, len(hidden_NH), chunk):
            part = slice(start, start + chunk)
            theirs = None if other is None else other[2].apply_(_product(other[0][part], other[1].T))
            yield part, form.apply_(_product(hidden_NH[part], factor_WH.T)), theirs


def _picked(logits_CW: Tensor, targets_C: Tensor, words: slice) -> Tensor:
    """[C]: each target's logit; 0 where it is not among the words."""
    at_C, here_C = _places(targets_C, words)
    return logits_CW.gather(1, at_C[:, None]).squeeze(1).where(here_C, 0.0)


def _add_picked_(total_CW: Tensor, targets_C: Tensor, words: slice, added_C1: Tensor) -> None:
    """Adds to each target that is among the words."""
    at_C, here_C = _places(targets_C, words)
    total_CW.scatter_add_(1, at_C[:, None], added_C1 * here_C[:, None])


def _places(targets_C: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """(where each target is among the words, whether it is): any place where it is not."""
    at_C = targets_C - words.start
    return at_C.clamp(0, words.stop - words.start - 1), (at_C >= 0) & (targets_C < words.stop)


def _logsumexp_(logits_CV: Tensor) -> Tensor:
    """[C]; overwrites the logits: a copy of them would cost more than the sum."""
    largest_C1 = logits_CV.amax(1, keepdim=True)
    return logits_CV.sub_(largest_C1).exp_().sum(1).log_() + largest_C1.squeeze(1)


def _pull_back(divergence: Divergence, teacher_logits: Tensor, logits: Tensor, grad_C: Tensor) -> Tensor:
    """grad times d divergence / d logits."""
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        return torch.autograd.grad(divergence(teacher_logits, leaf), leaf, grad_C)[0]


# Products of bfloat16 matrices with a float32 result, never rounded to a narrower type: at |logit| of 16, bfloat16
# steps by 0.125. CUDA has a call for them. A CPU multiplies widened matrices, with bfloat16 instructions where it has
# them: what the matrices hold is exact in these, and sums are float32 either way, so that it only takes half the time.


def _factor(matrix: Tensor) -> Tensor:
    """A matrix as a product takes it."""
    return matrix if matrix.is_cuda else matrix.float()


def _product(left: Tensor, right: Tensor) -> Tensor:
    """float32 left @ right; `right` is a factor already."""
    left = _factor(left)
    return left @ right if right.dtype == torch.float32 else torch.mm(left, right, out_dtype=torch.float32)


def _add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """float32 total += left @ right."""
    left, right = _factor(left), _factor(right)
    if right.dtype == torch.float32:
        total.addmm_(left, right)
    else:
        total += torch.mm(left, right, out_dtype=torch.float32)


@contextmanager
def _instructions_of(dtype: torch.dtype) -> Iterator[None]:
    """Within it a CPU multiplies float32 matrices with the instructions of that type."""
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "bf16" if dtype == torch.bfloat16 else before
    try:
        yield
    finally:
        settings.fp32_precision = before


class LogprobHead(nn.Module):
    """lm_head that returns log-probs. Owns the (possibly tied) weight, so ZeRO-3 gathers it here."""

    def __init__(
        self, weight: nn.Parameter, chunk: int, divergence: Divergence | None = None, form: LogitForm = AS_IT_IS
    ) -> None:
        super().__init__()
        self.weight = weight
        self.chunk, self.divergence, self.form = chunk, divergence, form

    def forward(self, hidden_NH: Tensor, targets_N: Tensor, teacher: Distribution | None = None) -> Tensor:
        """float32 [1, N] log-probs of the targets or, with a teacher, [2, N] with the divergences from it.

        One tensor: ZeRO-3 hooks on each output and, where a loss ignores one on some ranks, their collectives differ.
        """
        return _ChunkedHead.apply(hidden_NH, self.weight, targets_N, self.form, self.chunk, self.divergence, teacher)
