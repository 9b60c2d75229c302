"""What log-probs and gradients are compared with: one row alone, full float32 logits, plain transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    table = torch.log_softmax(model(full[None], use_cache=False).logits[0].double(), dim=-1)
    return torch.stack([table[position - 1, full[position]] for position in range(len(prompt), len(full))])
