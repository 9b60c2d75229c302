"""What layers on a CPU keep for the backward pass: what took long to make. The rest is made again there.

Legend as in `learner.model`.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from learner.load import IDS, ONE_ROW
from learner.model import checkpoint_with, hidden_states

ATEN = torch.ops.aten
KEPT = [getattr(ATEN, name).default for name in ("mm", "addmm", "bmm", "baddbmm")]
KEPT.append(torch.ops.edge_opd.attended_rows.default)  # of `learner.attention`


def keep_products(causal_lm: PreTrainedModel) -> bool:
    """Each decoder layer keeps its input, and what came of its matrix products and of its attention. Norms,
    activations, rotations and sums run again in the backward pass (the idea: arXiv 2205.05198, section 5): every bit of
    a gradient is what it was.

    Returns:
        False, and leaves all as it was, for a family whose layers write into what would be kept: from that a layer
        would go on where it ended before. A few tokens show it.
    """
    if not causal_lm.supports_gradient_checkpointing:
        return False
    with torch.no_grad(), _Writes() as writes:
        hidden_states(causal_lm, IDS, IDS, ONE_ROW)
    if writes.found:
        return False
    contexts = partial(create_selective_checkpoint_contexts, KEPT)
    checkpoint_with(causal_lm, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return True


class _Writes(TorchDispatchMode):
    """Whether anything within it writes into what an operator of `KEPT` gave. torch looks for that too, and cannot see
    it behind the view that a linear layer makes of a product."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False
        self._kept: list[Tensor] = []  # held, so that no other tensor gets their memory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | (kwargs or {})
        for argument in func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.found |= any(_place(one) in map(_place, self._kept) for one in _tensors(given.get(argument.name)))
        made = func(*args, **(kwargs or {}))
        if func in KEPT:
            self._kept += _tensors(made)
        return made


def _tensors(tree: Any) -> list[Tensor]:
    """Those among an operator's arguments or results."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
