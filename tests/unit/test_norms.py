"""RMSNorm by torch's kernel, which a GPU has: what it computes, and which layers of a model it is for."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from learner.norms import fuse_norms, is_rms_norm, rms_norm
from tests.families import FAMILIES, SIZES

EPSILON = 1e-5


def own_norm(size: int = 96, dtype: torch.dtype = torch.float32) -> LlamaRMSNorm:
    norm = LlamaRMSNorm(size, EPSILON).to(dtype)
    norm.weight.data.copy_(torch.randn(size, generator=torch.Generator().manual_seed(1)) + 1)
    return norm


def numbers(dtype: torch.dtype = torch.float32) -> Tensor:
    drawn = torch.randn(50, 96, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 1, 50)[:, None]
    return drawn.to(dtype).requires_grad_()


def outcome(compute: Any, norm: nn.Module, dtype: torch.dtype) -> list[Tensor]:
    """What comes out, and the gradients of the numbers and the weight."""
    x, factors = numbers(dtype), torch.randn(50, 96, generator=torch.Generator().manual_seed(2))
    out = compute(x)
    gradients = torch.autograd.grad((out.double() * factors.double()).sum(), [x, norm.weight])
    return [out.detach().double(), *(one.double() for one in gradients)]


def test_the_kernel_gives_what_a_familys_own_norm_does_and_its_gradients() -> None:
    norm = own_norm()
    expected = outcome(norm, norm, torch.float32)
    found = outcome(lambda x: rms_norm(x, norm.weight, EPSILON), norm, torch.float32)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def test_in_bfloat16_it_is_nearer_to_the_truth_than_a_familys_own() -> None:
    """Which is rounded before the weight, too. The truth: the formula in float64, of the same bfloat16 numbers."""
    norm = own_norm(dtype=torch.bfloat16)

    def formula(x: Tensor) -> Tensor:
        wide = x.double()
        return wide / (wide.pow(2).mean(-1, keepdim=True) + EPSILON).sqrt() * norm.weight.double()

    exact = outcome(formula, norm, torch.bfloat16)
    own = outcome(norm, norm, torch.bfloat16)
    found = outcome(lambda x: rms_norm(x, norm.weight, EPSILON), norm, torch.bfloat16)
    apart = [
        [float((one - true).norm() / true.norm()) for one, true in zip(way, exact, strict=True)] for way in (found, own)
    ]
    assert apart[0][0] < 0.8 * apart[1][0]
    assert all(mine < 1.05 * theirs and mine < 0.01 for mine, theirs in zip(*apart, strict=True)), apart


# Of two layers each, by family: how many norms are x / rms(x) * weight.
COUNTS = {
    "llama": 5,
    "qwen3_moe": 9,
    "granite": 5,
    "phi3": 5,
    "olmoe": 9,
    "gemma3": 0,
    "cohere": 0,
    "gpt2": 0,
    "gpt_neox": 0,
    "nanochat": 0,
}


@pytest.mark.parametrize("family", COUNTS)
def test_which_layers_are_such_norms_is_measured(family: str) -> None:
    name, config, own = FAMILIES[family]
    ending = "Model" if name.endswith("LMHead") else "ForCausalLM"
    causal_lm = getattr(transformers, name + ending)(getattr(transformers, config + "Config")(**SIZES | own)).eval()
    tokens = torch.arange(8)[None]
    before = causal_lm(tokens, use_cache=False).logits
    assert fuse_norms(causal_lm) == COUNTS[family]
    assert torch.equal(causal_lm(tokens, use_cache=False).logits, before)  # a CPU computes them as they are
    assert not any(name.endswith("forward") for name in causal_lm.state_dict())


def test_a_norm_of_another_formula_is_none() -> None:
    class Twice(LlamaRMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            return 2 * super().forward(hidden_states)

    class Gated(LlamaRMSNorm):
        def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
            return super().forward(hidden_states)

    class Other(LlamaRMSNorm):
        def __init__(self, size: int, epsilon: float) -> None:
            super().__init__(size, 3 * epsilon)
            self.variance_epsilon, self._own = epsilon, 3 * epsilon

        def forward(self, hidden_states: Tensor) -> Tensor:
            return hidden_states * (hidden_states.pow(2).mean(-1, keepdim=True) + self._own).rsqrt() * self.weight

    assert is_rms_norm(own_norm()) and is_rms_norm(nn.RMSNorm(96, eps=1e-6))
    for other in (Twice(96, EPSILON), Gated(96, EPSILON), Other(96, EPSILON), Gemma3RMSNorm(96), nn.LayerNorm(96),
                  nn.LayerNorm(96, bias=False), nn.Linear(96, 1, bias=False), nn.RMSNorm(96)):  # fmt: skip
        assert not is_rms_norm(other), other


def test_a_gpu_has_the_kernel_where_numbers_and_weight_are_of_one_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which device numbers are on is invented here."""

    class OnGpu(torch.Tensor):
        is_cuda = True

    asked = list[Tensor]()

    def kernel(x: Tensor, weight: Tensor, epsilon: float | None) -> Tensor:
        assert epsilon == EPSILON
        asked.append(x)
        return x

    model = nn.Sequential(own_norm())
    fuse_norms(model)  # type: ignore[arg-type]
    monkeypatch.setattr("learner.norms.rms_norm", kernel)
    there = torch.ones(2, 96).as_subclass(OnGpu)
    assert model(there) is there and len(asked) == 1
    model(there.to(torch.bfloat16).as_subclass(OnGpu))
    model(torch.ones(2, 96))
    assert len(asked) == 1
