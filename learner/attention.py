"""Causal attention over packed rows: each row sees itself only, and no [S, S] score matrix is made.

Registered with transformers as "packed_rows"; the rows' boundaries travel as `cu_seq_lens_q`, the name that
transformers gives them. Legend: S = tokens of the packed sequence, R = rows in it, A = attention heads, D = head size.
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
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention output [1, S, A, D]. `cu_seq_lens_q` [R+1] holds where rows begin, and S as its last element."""
    assert cu_seq_lens_q is not None and attention_mask is None and dropout == 0.0
    grouped = query_1ASD.shape[1] != key_1ASD.shape[1]
    lengths = torch.diff(cu_seq_lens_q).tolist()
    odd = [key for key in ("softcap", "s_aux") if kwargs.get(key) is not None]
    if odd or max(lengths) > (kwargs.get("sliding_window") or max(lengths)):
        raise ValueError(f"model.path: found {odd or 'rows longer than its sliding window'}, expected plain attention")
    rows = [
        nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
        for q, k, v in zip(*(torch.split(t, lengths, dim=2) for t in (query_1ASD, key_1ASD, value_1ASD)), strict=True)
    ]
    return torch.cat(rows, dim=2).transpose(1, 2).contiguous(), None


def _no_mask(*args: object, **kwargs: object) -> None:
    return None


AttentionInterface.register(NAME, packed_rows)
AttentionMaskInterface.register(NAME, _no_mask)
