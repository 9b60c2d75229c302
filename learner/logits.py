"""What a model makes of hidden @ weight before it calls the result logits: a factor, and a soft cap.

Legend as in `learner.head`: C = positions of a chunk, V = vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from learner.attention import UnsupportedModel, own_attention


@dataclass(frozen=True)
class LogitForm:
    """logit(z) = cap tanh(scale z / cap), or scale z without a cap (Gemma's final_logit_softcapping, arXiv 2408.00118).

    `scale` is Granite's 1 / logits_scaling, HyperCLOVA X's logits_scaling or Cohere's logit_scale; 1: none.
    """

    scale: float = 1.0
    cap: float | None = None

    def apply_(self, product_CV: Tensor) -> Tensor:
        """The logits, in the place of hidden @ weight."""
        if self.scale != 1.0:
            product_CV *= self.scale
        return product_CV if self.cap is None else product_CV.div_(self.cap).tanh_().mul_(self.cap)

    def slope(self, logits_CV: Tensor) -> Tensor | float:
        """d logit / d z, from the logits: d tanh = 1 - tanh^2."""
        return self.scale if self.cap is None else (logits_CV / self.cap).square_().neg_().add_(1).mul_(self.scale)


AS_IT_IS = LogitForm()
SMALL, LARGE = 2.0**-10, 2.0**20  # where any soft cap is still a straight line, and where it is all cap
PROBED = torch.tensor([0.0, SMALL, LARGE, *(sign * 2.0**k for sign in (-1, 1) for k in (-3, 0, 2, 3, 4, 5, 7))])


def head_of(causal_lm: PreTrainedModel) -> nn.Module:
    """The module whose weight [V, H] turns hidden states into logits; ValueError where there is none, or a bias too."""
    head, name = causal_lm.get_output_embeddings(), type(causal_lm).__name__
    if head is None or not isinstance(getattr(head, "weight", None), nn.Parameter):
        raise UnsupportedModel(f"model.path: {name}: found no output embeddings, expected a head with one weight")
    if getattr(head, "bias", None) is not None:
        raise UnsupportedModel(f"model.path: {name}: an lm_head with a bias is not supported")
    return head


def logit_form(causal_lm: PreTrainedModel) -> LogitForm:
    """Measured, since families disagree on the name of a scale and on whether it divides: the model's own forward,
    with known numbers in the place of its head's output, shows what becomes of each.

    Raises:
        ValueError: they become something else than a scaled and capped number.
    """
    found = _after_head(causal_lm)
    scale = float(found[1]) / SMALL
    form = LogitForm(scale, None if torch.isclose(found[2], torch.tensor(scale * LARGE)) else float(found[2]))
    if not torch.allclose(form.apply_(PROBED.clone()), found, rtol=1e-5, atol=1e-6):
        raise UnsupportedModel(
            f"model.path: found {type(causal_lm).__name__}, which makes {found[4]:g} of a logit of {PROBED[4]:g} and "
            f"{found[-1]:g} of {PROBED[-1]:g}, expected logits that are scaled or soft-capped at most"
        )
    return form


def _after_head(causal_lm: PreTrainedModel) -> Tensor:
    """The logits that the model returns where its head gives `PROBED`."""

    def instead(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        return torch.zeros(output.shape).index_copy_(
            -1, torch.arange(len(PROBED)), PROBED.expand(*output.shape[:-1], -1)
        )

    hook = head_of(causal_lm).register_forward_hook(instead)
    try:
        with torch.no_grad(), own_attention(causal_lm):
            logits = causal_lm(input_ids=torch.arange(2)[None], use_cache=False).logits
    finally:
        hook.remove()
    return logits[0, -1, : len(PROBED)].float()
