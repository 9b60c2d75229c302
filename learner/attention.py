"""Causal attention over packed rows: each row sees itself only, and no [S, S] score matrix is made.

Registered with transformers as "packed_rows"; the rows' boundaries travel as `cu_seq_lens_q`, the name that
transformers gives them. Legend: S = tokens of the packed sequence, R = rows in it, L = tokens of the longest row,
A = attention heads, D = head size.
"""

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "packed_rows"


def packed_rows(
    module: nn.Module,
    query_1ASD: Tensor,
    key_1ASD: Tensor,
    value_1ASD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention output [1, S, A, D]. `cu_seq_lens_q` [R+1] holds where rows begin, and S as its last element."""
    assert cu_seq_lens_q is not None and attention_mask is None and dropout == 0.0
    lengths_R = torch.diff(cu_seq_lens_q)
    longest = int(lengths_R.max())
    odd = [key for key in ("softcap", "s_aux") if kwargs.get(key) is not None]
    if odd or longest > (sliding_window or longest):
        raise ValueError(f"model.path: found {odd or 'rows longer than its sliding window'}, expected plain attention")
    row_S = torch.repeat_interleave(torch.arange(len(lengths_R), device=lengths_R.device), lengths_R)
    place_S = torch.arange(len(row_S), device=row_S.device) - cu_seq_lens_q[row_S]

    def unpack(packed_1ASD: Tensor) -> Tensor:
        """[R, A, L, D], zeros after each row's end: causal attention never lets a token see what follows it."""
        padded = packed_1ASD.new_zeros(len(lengths_R), longest, packed_1ASD.shape[1], packed_1ASD.shape[3])
        return padded.index_put((row_S, place_S), packed_1ASD[0].transpose(0, 1)).transpose(1, 2)

    # One call for all rows: on CPUs the backward of one small call a row took half of the whole backward pass.
    rows_RALD = nn.functional.scaled_dot_product_attention(
        unpack(query_1ASD),
        unpack(key_1ASD),
        unpack(value_1ASD),
        is_causal=True,
        scale=scaling,
        enable_gqa=query_1ASD.shape[1] != key_1ASD.shape[1],
    )
    return rows_RALD.transpose(1, 2)[row_S, place_S][None], None


def _no_mask(*args: object, **kwargs: object) -> None:
    return None


AttentionInterface.register(NAME, packed_rows)
AttentionMaskInterface.register(NAME, _no_mask)
