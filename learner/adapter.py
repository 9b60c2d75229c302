"""LoRA (arXiv 2106.09685): a linear layer computes W x + (alpha / rank) B A x, and W is frozen.

The only home of peft. An adapter leaves as PEFT's own two files, which vLLM and `peft` load.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel

from learner.config import LearnerConfig

_WRAPPED, _OWN = ".base_layer.", ".default."  # what peft puts into the names of what it wraps and of what it adds


def add_adapter(causal_lm: PreTrainedModel, config: LearnerConfig) -> None:
    """Adapters into the layers of `lora_targets`, in place; B is 0, so the model computes what it did. Every rank draws
    the same A. ValueError where the model has no such layers."""
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds, for nothing where there is no adapter

    settings = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=list(config.lora_targets))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inject_adapter_in_model(settings, causal_lm)


def adapter_files(named: Iterable[tuple[str, Tensor]], config: LearnerConfig) -> dict[str, bytes]:
    """The content of an adapter's folder.

    named: the adapter's parameters, by the names that they have in the student.
    """
    tensors = {f"base_model.model.{name.replace(_OWN, '.')}": tensor.cpu().contiguous() for name, tensor in named}
    described: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "target_modules": list(config.lora_targets),
    }
    return {"adapter_config.json": json.dumps(described).encode(), "adapter_model.safetensors": save(tensors)}


def merged(state: Mapping[str, Tensor], config: LearnerConfig) -> dict[str, Tensor]:
    """The ordinary model's parameters: W + (alpha / rank) B A, added in float32, under their Hugging Face names."""
    scaling = config.lora_alpha / config.lora_rank
    result = {}
    for name, tensor in state.items():
        if _OWN in name:
            continue
        layer, wrapped, kind = name.partition(_WRAPPED)
        if wrapped and kind == "weight":
            a, b = (state[f"{layer}.lora_{which}{_OWN}weight"].float() for which in "AB")
            tensor = (tensor.float() + scaling * (b @ a)).to(tensor.dtype)
        result[f"{layer}.{kind}" if wrapped else name] = tensor
    return result
