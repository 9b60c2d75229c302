"""What log-probs and gradients are compared with: one row alone, full float32 logits, plain transformers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from evidence.records import Ids


def plain_model(path: Path) -> Any:
    """A Hugging Face folder's causal LM in float32, with transformers' own attention."""
    return AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32, attn_implementation="eager")


def logprobs_of(model: Any, prompt: Ids | Sequence[int], response: Ids | Sequence[int]) -> Tensor:
    """log p(y_t | prompt, y_<t), float64 [T] with its graph; position i of the logits speaks of token i + 1."""
    full = torch.tensor([*map(int, prompt), *map(int, response)])
    before = model(full[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(before.double(), dim=-1).gather(1, full[len(prompt) :, None])[:, 0]


@contextmanager
def kept_for_backward() -> Iterator[dict[int, int]]:
    """Bytes of each storage that autograd keeps of what runs within it, by its address."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def require_columns(shard: pa.Table, model: Any) -> None:
    """The log-probs in a shard of the frozen model's first rollouts are the model's, token by token: the teacher's to
    1e-3, those of the engine that sampled, which may compute in bfloat16, to 0.05 on average. Evidence is the float32
    difference."""
    sampler: list[float] = []
    for row in shard.to_pylist():
        plain = logprobs_of(model, row["prompt_ids"], row["response_ids"]).numpy()
        context = logprobs_of(model, row["context_prompt_ids"], row["response_ids"]).numpy()
        assert np.abs(np.array(row["teacher_logprobs"]) - plain).max() < 1e-3
        assert np.abs(np.array(row["teacher_context_logprobs"]) - context).max() < 1e-3
        evidence = np.array(row["teacher_context_logprobs"], np.float32) - np.array(row["teacher_logprobs"], np.float32)
        assert np.array_equal(np.array(row["evidence"], np.float32), evidence)
        sampler.extend(np.abs(np.array(row["sampler_logprobs"]) - (context if row["guided"] else plain)))
    assert np.mean(sampler) < 0.05
