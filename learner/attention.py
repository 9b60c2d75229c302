"""Causal attention over packed rows: each row sees itself only, and no [S, S] score matrix is made.

Rows may begin with the same tokens, which are then packed once: what they hold depends on nothing that follows.
Registered with transformers as "packed_rows", which hands `packed` through. On a GPU a kernel takes rows of unequal
length one after another; elsewhere all rows are as long as the longest, for the time of one layer: what is kept for the
backward pass is packed. Legend: S = packed tokens, R = rows, L = tokens of the longest, U = tokens of all rows, A =
attention heads, D = head size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel

NAME = "packed_rows"
PLAIN = "plain attention"
VARLEN_DTYPES = (torch.bfloat16, torch.float16)  # those of flash attention
LARGEST_HEAD = 256  # of flash attention


class UnsupportedModel(ValueError):
    """A model that the learner does not compute; says what it has that the learner lacks."""


@dataclass(frozen=True, eq=False)
class PackedRows:
    """Which packed tokens rows consist of.

    rows_U: row after row; where rows share nothing, every token in its order. starts_R1: int32, where each begins
    there, and where the last ends. place_S: where a packed token stands in `rows_U`, in any of the rows that share it.
    longest: tokens of the longest row.
    """

    rows_U: Tensor
    starts_R1: Tensor
    place_S: Tensor
    longest: int

    def to(self, device: torch.device | str) -> "PackedRows":
        """The same on a device."""
        return PackedRows(self.rows_U.to(device), self.starts_R1.to(device), self.place_S.to(device), self.longest)

    @property
    def share_nothing(self) -> bool:
        """Whether packed tokens are the rows' already. No device is asked."""
        return len(self.rows_U) == len(self.place_S)

    @cached_property
    def padded(self) -> tuple[Tensor, Tensor]:
        """(which packed tokens a row consists of, [R, L], its own last one after its end; where a packed token stands
        in the flattened rows, [S])."""
        first_R1, end_R1 = self.starts_R1[:-1, None], self.starts_R1[1:, None]
        steps_L = torch.arange(self.longest, device=self.rows_U.device)
        rows_RL = self.rows_U[torch.minimum(first_R1 + steps_L, end_R1 - 1)]
        row_S = torch.searchsorted(self.starts_R1, self.place_S, right=True, out_int32=True) - 1
        return rows_RL, row_S * self.longest + self.place_S - self.starts_R1[row_S]


def packed_rows(
    module: nn.Module,
    query_1ASD: Tensor,
    key_1ASD: Tensor,
    value_1ASD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed: PackedRows | None = None,
    sliding_window: int | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention output [1, S, A, D]."""
    if packed is None or attention_mask is not None or dropout != 0.0:
        raise UnsupportedModel(
            f"model.path: found {type(module).__name__}, which the packed rows do not reach, expected {PLAIN}"
        )
    odd = [key for key in ("softcap", "s_aux") if kwargs.get(key) is not None]
    if odd or packed.longest > (sliding_window or packed.longest):
        raise UnsupportedModel(f"model.path: found {odd or 'rows longer than its sliding window'}, expected {PLAIN}")
    query_SAD, key_SAD, value_SAD = (stream[0].transpose(0, 1) for stream in (query_1ASD, key_1ASD, value_1ASD))
    attend = _by_kernel if takes_varlen(query_SAD, key_SAD, value_SAD) else _by_padding
    return attend(query_SAD, key_SAD, value_SAD, packed, scaling)[None].to(query_1ASD.dtype), None


def takes_varlen(query_SAD: Tensor, key_SAD: Tensor, value_SAD: Tensor) -> bool:
    """Whether flash attention has a kernel for them: on a GPU, in 16 bits, with heads of one size that is not large."""
    size = query_SAD.shape[-1]
    return (
        query_SAD.is_cuda
        and query_SAD.dtype in VARLEN_DTYPES
        and value_SAD.shape[-1] == size <= LARGEST_HEAD
        and size % 8 == 0
    )


def _by_kernel(
    query_SAD: Tensor, key_SAD: Tensor, value_SAD: Tensor, packed: PackedRows, scaling: float | None
) -> Tensor:
    """[S, A, D]; nothing is padded, and only rows that share a prompt are copied: the backward pass of a copy sorts its
    indices, for each of the three in each layer."""
    streams = (query_SAD, key_SAD, value_SAD)
    if packed.share_nothing:
        rows = [packed_SAD.contiguous() for packed_SAD in streams]
    else:
        rows = [packed_SAD[packed.rows_U] for packed_SAD in streams]
    starts, longest = packed.starts_R1, packed.longest
    named = {"scale": scaling, "window_size": (-1, 0), **grouped_heads(varlen_attn)}
    attended_UAD: Tensor = varlen_attn(*rows, starts, starts, longest, longest, **named)
    return attended_UAD if packed.share_nothing else _Picked.apply(attended_UAD, packed.place_S)


class _Picked(torch.autograd.Function):
    """Places of which none is picked twice: the backward pass writes to each what it got, and need not add up."""

    @staticmethod
    def forward(ctx: Any, from_UAD: Tensor, place_S: Tensor) -> Tensor:
        ctx.save_for_backward(place_S)
        ctx.places = len(from_UAD)
        return from_UAD[place_S]

    @staticmethod
    def backward(ctx: Any, grad_SAD: Tensor) -> tuple[Tensor, None]:
        (place_S,) = ctx.saved_tensors
        return grad_SAD.new_zeros(ctx.places, *grad_SAD.shape[1:]).index_copy_(0, place_S, grad_SAD), None


@cache
def grouped_heads(kernel: Callable[..., Any]) -> dict[str, bool]:
    """What torch's kernel is told of fewer heads of keys than of queries.

    From 2.12 on it asks for it. That of 2.11, which GPU images have, lacks the argument and hands any heads to the
    same operator.
    """
    return {"enable_gqa": True} if "enable_gqa" in signature(kernel).parameters else {}


def _by_padding(
    query_SAD: Tensor, key_SAD: Tensor, value_SAD: Tensor, packed: PackedRows, scaling: float | None
) -> Tensor:
    """[S, A, D]; one call for all rows: on CPUs the backward of one small call a row took half of the whole backward
    pass."""
    rows_RL, place_S = packed.padded
    if not query_SAD.is_cuda and query_SAD.shape[-1] == value_SAD.shape[-1]:
        return _OnCpu.apply(query_SAD, key_SAD, value_SAD, rows_RL, place_S, scaling)
    query_RALD, *others = (_unpacked(packed_SAD, rows_RL) for packed_SAD in (query_SAD, key_SAD, value_SAD))
    # Told of grouped heads, torch would take its plain products here, with a matrix of scores for each head: of its
    # kernels for GPUs only flash attention knows such heads, and it has no float32.
    key_RALD, value_RALD = (one.repeat_interleave(query_RALD.shape[1] // one.shape[1], 1) for one in others)
    attend = nn.functional.scaled_dot_product_attention
    return _repacked(attend(query_RALD, key_RALD, value_RALD, is_causal=True, scale=scaling), place_S)


def _unpacked(packed_SAD: Tensor, rows_RL: Tensor) -> Tensor:
    """[R, A, L, D], anything after each row's end: causal attention never lets a token see what follows it.

    On CPUs in float32: many small products in bfloat16 take twice as long in the backward pass.
    """
    rows_RALD = packed_SAD[rows_RL].transpose(1, 2)
    return rows_RALD if rows_RALD.is_cuda else rows_RALD.float()


def _repacked(rows_RALD: Tensor, place_S: Tensor) -> Tensor:
    return rows_RALD.transpose(1, 2).flatten(0, 1)[place_S]


def _attended_rows(
    query_SAD: Tensor, key_SAD: Tensor, value_SAD: Tensor, rows_RL: Tensor, place_S: Tensor, scaling: float | None
) -> tuple[Tensor, Tensor]:
    """(float32 [S, A, D], the normalizer of each padded token and head) of torch's own attention of CPUs."""
    rows = (_unpacked(packed_SAD, rows_RL) for packed_SAD in (query_SAD, key_SAD, value_SAD))
    out_RALD, normalizer_RAL = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *rows, 0.0, True, scale=scaling
    )
    return _repacked(out_RALD, place_S), normalizer_RAL


# Has a name of its own among operators, by which `learner.recompute` keeps what it gives.
attended_rows = torch.library.custom_op("edge_opd::attended_rows", _attended_rows, mutates_args=())


class _OnCpu(torch.autograd.Function):
    """torch's own attention of CPUs over padded rows, of which packed tensors are kept for the backward pass.

    Calls what `scaled_dot_product_attention` calls: tests/unit/test_attention.py compares the two, bit by bit.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_SAD: Tensor,
        key_SAD: Tensor,
        value_SAD: Tensor,
        rows_RL: Tensor,
        place_S: Tensor,
        scaling: float | None,
    ) -> Tensor:
        streams = (query_SAD, key_SAD, value_SAD)
        out_SAD, normalizer_RAL = attended_rows(*streams, rows_RL, place_S, scaling)
        ctx.save_for_backward(*streams, out_SAD, normalizer_RAL, rows_RL, place_S)
        ctx.scaling = scaling
        return out_SAD

    @staticmethod
    def backward(ctx: Any, grad_SAD: Tensor) -> tuple[Tensor | None, ...]:
        *streams, out_SAD, normalizer_RAL, rows_RL, place_S = ctx.saved_tensors
        spots = rows_RL.numel()

        def spread(packed_SAD: Tensor) -> Tensor:
            """Where each packed token stands; nothing elsewhere, where no gradient comes from."""
            flat = packed_SAD.new_zeros(spots, *packed_SAD.shape[1:]).index_copy_(0, place_S, packed_SAD)
            return flat.view(*rows_RL.shape, *packed_SAD.shape[1:]).transpose(1, 2)

        rows = (_unpacked(packed_SAD, rows_RL) for packed_SAD in streams)
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        grads = kernel(spread(grad_SAD), *rows, spread(out_SAD), normalizer_RAL, 0.0, True, scale=ctx.scaling)
        return *(_folded(grad, stream, rows_RL) for grad, stream in zip(grads, streams, strict=True)), None, None, None


def _folded(grad_RALD: Tensor, like_SAD: Tensor, rows_RL: Tensor) -> Tensor:
    """What each packed token gets of the rows that it stands in, added up in float32."""
    total_SAD = grad_RALD.new_zeros(like_SAD.shape)
    return total_SAD.index_put_((rows_RL,), grad_RALD.transpose(1, 2), accumulate=True).to(like_SAD.dtype)


@contextmanager
def own_attention(causal_lm: PreTrainedModel) -> Iterator[None]:
    """Within it the model attends as its authors wrote it, one row at a time."""
    causal_lm.set_attn_implementation("eager")
    try:
        yield
    finally:
        causal_lm.set_attn_implementation(NAME)


# No mask is registered: transformers then makes none, and does not ask a GPU whether one is needed.
AttentionInterface.register(NAME, packed_rows)
