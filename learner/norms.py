"""RMSNorm (arXiv 1910.07467) in one kernel on a GPU, where a model's own takes eight, in float32.

Legend: H = hidden size, or that of a head.
"""

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

EPSILONS = ("variance_epsilon", "eps")  # as families name it
SCALES = torch.logspace(-4, 2, 4)  # of numbers, from those that epsilon rules to those that it does not change
CLOSE = 1e-5  # of float32 numbers


def fuse_norms(causal_lm: PreTrainedModel) -> int:
    """Has every layer of the model that is x / rms(x) * weight compute it by torch's kernel on a GPU. It multiplies
    in float32 and rounds once, where families round before the weight too. What runs on a CPU stays as it is.

    Which layers these are is measured: families write it with other names, and some with weight + 1.

    Returns:
        how many.
    """
    norms = [module for module in causal_lm.modules() if is_rms_norm(module)]
    for module in norms:
        module.forward = partial(_by_device, module, module.forward)
    return len(norms)


def is_rms_norm(module: nn.Module) -> bool:
    """Whether it is x / sqrt(mean(x^2) + epsilon) * weight, whatever the weight, of numbers small and large."""
    parameters, epsilon = dict(module.named_parameters()), _epsilon(module)
    if epsilon is None or [*parameters] != ["weight"] or parameters["weight"].ndim != 1:
        return False
    if len(signature(module.forward).parameters) != 1:
        return False
    size, draw = len(parameters["weight"]), torch.Generator().manual_seed(0)
    weight = torch.randn(size, generator=draw)
    x = torch.randn(len(SCALES), size, generator=draw) * SCALES[:, None]
    try:
        with torch.no_grad():
            own = torch.func.functional_call(module, {"weight": weight}, (x,))
    except (RuntimeError, ValueError, TypeError, LookupError):  # it takes something else than rows of numbers
        return False
    return own.shape == x.shape and torch.allclose(own, rms_norm(x, weight, epsilon), CLOSE, CLOSE)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float | None) -> Tensor:
    """[..., H] of x [..., H] and weight [H]."""
    return nn.functional.rms_norm(x, weight.shape, weight, epsilon)


def _epsilon(module: nn.Module) -> float | None:
    return next((value for name in EPSILONS if isinstance(value := getattr(module, name, None), float)), None)


def _by_device(module: Any, own: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    is_fused = x.is_cuda and x.dtype == module.weight.dtype
    return rms_norm(x, module.weight, _epsilon(module)) if is_fused else own(x)
