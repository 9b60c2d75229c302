"""What a layer on a CPU keeps, and that its gradients are those of a layer that keeps everything, to the last bit."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from learner import attention
from learner.model import Student, checkpoint_layers
from learner.recompute import keep_products
from tests.reference import logprobs_of
from tests.unit.test_student import ROWS, forward

SIZES: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, query_pre_attn_scalar=16)),
    "experts": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **EXPERTS)),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two add some sums up in either order, of large tensors: then no two backward passes are the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Alive(TorchDispatchMode):
    """Bytes that were made within it and are still held; a view is not made."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in before:
                storage = leaf.untyped_storage()
                self._made[StorageWeakRef(storage)] = storage.nbytes()
        return made

    @property
    def bytes(self) -> int:
        return sum(size for storage, size in self._made.items() if not storage.expired())


def student_of(family: Callable[[], PreTrainedModel], dtype: torch.dtype) -> Student:
    torch.manual_seed(0)
    causal_lm = family().to(dtype).eval()
    causal_lm.set_attn_implementation(attention.NAME)
    return Student(causal_lm, 8)


def gradients(student: Student) -> tuple[Tensor, dict[str, Tensor | None], int]:
    """Log-probs, gradients by parameter, and bytes that the forward pass has left."""
    with Alive() as alive:
        logprobs = forward(student, ROWS)
        left = alive.bytes
    factors = torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(1))
    (logprobs * factors).sum().backward()
    return logprobs.detach(), {name: one.grad for name, one in student.named_parameters()}, left


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_bit_of_a_gradient_is_what_it_was_and_half_of_the_bytes_are_kept(family: str, dtype: torch.dtype) -> None:
    whole, again = (student_of(FAMILIES[family], dtype) for _ in range(2))
    assert keep_products(again.causal_lm)
    assert all(parameter.grad is None for parameter in again.parameters())
    (logprobs, expected, all_bytes), (same, found, kept_bytes) = gradients(whole), gradients(again)
    assert torch.equal(logprobs, same)
    for name, grad in expected.items():
        assert (grad is None) == (found[name] is None), name
        assert grad is None or torch.equal(grad, found[name]), name
    print(f"{family} {dtype}: {kept_bytes / all_bytes:.2f} of {all_bytes} bytes")
    assert kept_bytes < 0.6 * all_bytes


@pytest.mark.parametrize("stage", [None, 2, 3])
def test_a_layer_with_dropout_of_its_own_drops_nothing(stage: int | None) -> None:
    """transformers checkpoints layers that are trained only, in which OPT's calls of dropout would draw."""
    sizes = {"vocab_size": 2048, "hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 192, "num_hidden_layers": 3}
    model = partial(OPTForCausalLM, OPTConfig(**sizes, num_attention_heads=4, dropout=0.5))
    whole, again = (student_of(model, torch.float32) for _ in range(2))
    keep_products(again.causal_lm) if stage is None else checkpoint_layers(again.causal_lm, stage)
    (logprobs, expected, _), (same, found, _) = gradients(whole), gradients(again)
    assert torch.equal(logprobs, same)
    for name, grad in expected.items():
        assert grad is not None and torch.equal(grad, found[name]), name


def test_a_float32_reference_has_these_log_probs_and_gradients() -> None:
    """Of rows alone, with full logits, the first and the last token of a response among them."""
    student = student_of(FAMILIES["llama"], torch.float32)
    torch.manual_seed(0)
    plain = FAMILIES["llama"]().eval()
    assert keep_products(student.causal_lm)
    found = forward(student, ROWS)
    expected = torch.cat([logprobs_of(plain, row.prompt_ids, row.response_ids) for row in ROWS])
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    found.sum().backward()
    expected.sum().backward()
    mine = dict(student.causal_lm.named_parameters())
    for name, parameter in plain.named_parameters():
        assert torch.allclose(mine[name].grad, parameter.grad, rtol=1e-4, atol=1e-4 * parameter.grad.abs().max()), name


def halved(module: torch.nn.Module, arguments: Any, output: Tensor) -> Tensor:
    return output.mul_(0.5)  # behind the view that a linear layer makes of its product


def straight(module: torch.nn.Module, arguments: Any, output: Tensor) -> Tensor:
    return torch.mm(arguments[0][0], module.weight.T).mul_(0.5)[None]


def clipping() -> PreTrainedModel:
    """OLMo clips queries, keys and values in place; these numbers are far from its bounds."""
    sizes = {key: value for key, value in SIZES.items() if key != "head_dim"}
    return OlmoForCausalLM(OlmoConfig(**sizes, clip_qkv=8.0, eos_token_id=1))


@pytest.mark.parametrize("written", ["halved", "straight", "clipped"])
def test_layers_that_write_into_a_product_keep_everything_as_before(written: str) -> None:
    family = clipping if written == "clipped" else FAMILIES["llama"]
    whole, again = (student_of(family, torch.float32) for _ in range(2))
    if written != "clipped":
        for student in (whole, again):
            student.causal_lm.get_submodule("model.layers.1.mlp.up_proj").register_forward_hook(globals()[written])
    assert not keep_products(again.causal_lm)
    layers = [module for module in again.causal_lm.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert layers and not any(layer.gradient_checkpointing for layer in layers)
    (_, expected, all_bytes), (_, found, kept_bytes) = gradients(whole), gradients(again)
    assert all(torch.equal(grad, found[name]) for name, grad in expected.items() if grad is not None)
    assert kept_bytes == all_bytes


def test_a_product_is_still_what_linear_layers_are_made_of(tiny_model: Path) -> None:
    """Otherwise all of a layer would run again."""
    causal_lm = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation=attention.NAME)
    student, products = Student(causal_lm, 8), list[int]()

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            products.append(func in (torch.ops.aten.mm.default, torch.ops.edge_opd.attended_rows.default))
            return func(*args, **(kwargs or {}))

    counts = []
    for again in (False, True):
        if again:
            assert keep_products(causal_lm)
        products.clear()
        with Products():
            forward(student, ROWS).sum().backward()
        counts.append(sum(products))
    assert counts[0] == counts[1] > 0
