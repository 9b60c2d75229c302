"""Causal attention over packed rows: each row sees itself only, and no [S, S] score matrix is made.

Rows may begin with the same tokens, which are then packed once: what they hold depends on nothing that follows.
Registered with transformers as "packed_rows", which hands `rows_RL` and `place_S` through. Legend: S = packed tokens,
R = rows, L = tokens of the longest row, A = attention heads, D = head size.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

NAME = "packed_rows"
PLAIN = "plain attention"


def packed_rows(
    module: nn.Module,
    query_1ASD: Tensor,
    key_1ASD: Tensor,
    value_1ASD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    rows_RL: Tensor | None = None,
    place_S: Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention output [1, S, A, D].

    rows_RL: which packed tokens a row consists of, and any of them after its end. place_S: where a packed token stands
    in the flattened rows, in any of those that share it.
    """
    if rows_RL is None or place_S is None or attention_mask is not None or dropout != 0.0:
        raise ValueError(
            f"model.path: found {type(module).__name__}, which the packed rows do not reach, expected {PLAIN}"
        )
    longest = rows_RL.shape[1]
    odd = [key for key in ("softcap", "s_aux") if kwargs.get(key) is not None]
    if odd or longest > (sliding_window or longest):
        raise ValueError(f"model.path: found {odd or 'rows longer than its sliding window'}, expected {PLAIN}")
    # One call for all rows: on CPUs the backward of one small call a row took half of the whole backward pass.
    rows_RALD = nn.functional.scaled_dot_product_attention(
        *(_unpacked(packed_1ASD, rows_RL) for packed_1ASD in (query_1ASD, key_1ASD, value_1ASD)),
        is_causal=True,
        scale=scaling,
        enable_gqa=query_1ASD.shape[1] != key_1ASD.shape[1],
    )
    return rows_RALD.transpose(1, 2).flatten(0, 1)[place_S][None].to(query_1ASD.dtype), None


def _unpacked(packed_1ASD: Tensor, rows_RL: Tensor) -> Tensor:
    """[R, A, L, D], anything after each row's end: causal attention never lets a token see what follows it.

    On CPUs in float32: many small products in bfloat16 take twice as long in the backward pass.
    """
    rows_RALD = packed_1ASD[0].transpose(0, 1)[rows_RL].transpose(1, 2)
    return rows_RALD if rows_RALD.is_cuda else rows_RALD.float()


@contextmanager
def own_attention(causal_lm: PreTrainedModel) -> Iterator[None]:
    """Within it the model attends as its authors wrote it, one row at a time."""
    causal_lm.set_attn_implementation("eager")
    try:
        yield
    finally:
        causal_lm.set_attn_implementation(NAME)


def _no_mask(*args: object, **kwargs: object) -> None:
    return None


AttentionInterface.register(NAME, packed_rows)
AttentionMaskInterface.register(NAME, _no_mask)
