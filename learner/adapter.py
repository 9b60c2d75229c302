"""LoRA (arXiv 2106.09685): a linear layer computes W x + (alpha / rank) B A x, and W is frozen.

The only home of peft. An adapter leaves as PEFT's own two files, which vLLM and `peft` load.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from learner.config import ALL_LINEAR, LearnerConfig

_WRAPPED, _OWN = ".base_layer.", ".default."  # what peft puts into the names of what it wraps and of what it adds


def adapted_names(model: str, config: LearnerConfig) -> tuple[str, ...]:
    """The names of the layers that get an adapter, from the model's config.json alone: what an engine is started with.

    Raises:
        ValueError: `lora_targets` names one that the model lacks.
    """
    with torch.device("meta"):
        causal_lm = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    return tuple(dict.fromkeys(layer.rsplit(".", 1)[-1] for layer in target_layers(causal_lm, config)))


def trained_parameters(model: str, config: LearnerConfig) -> int:
    """How many numbers the adapter has, from the model's config.json alone: rank * (in + out) a layer."""
    with torch.device("meta"):
        causal_lm = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    layers = (causal_lm.get_submodule(name) for name in target_layers(causal_lm, config))
    return sum(config.lora_rank * sum(layer.weight.shape) for layer in layers)


def target_layers(causal_lm: PreTrainedModel, config: LearnerConfig) -> list[str]:
    """Full names of the linear layers of `lora_targets`; "all-linear": all before the head. ValueError where one is
    not there: experts that are fused have none. A router that is more than a linear layer, and a gate of one number,
    are none."""
    head = causal_lm.get_output_embeddings()
    layers = [
        name
        for name, module in causal_lm.named_modules()
        if type(module) is nn.Linear and module.out_features > 1 and module is not head
    ]
    there = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in layers))
    wanted = there if config.lora_targets == (ALL_LINEAR,) else config.lora_targets
    missing = [target for target in wanted if target not in there]
    if missing or not there:
        raise ValueError(
            f"learner.lora_targets: found {', '.join(missing) or ALL_LINEAR}, expected linear layers of "
            f"{type(causal_lm).__name__}: {', '.join(there) or 'it has none'}"
        )
    return [name for name in layers if name.rsplit(".", 1)[-1] in wanted]


def add_adapter(causal_lm: PreTrainedModel, config: LearnerConfig) -> None:
    """Adapters into the layers of `lora_targets`, in place; B is 0, so the model computes what it did. Every rank draws
    the same A. ValueError where the model has no such layers."""
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds, for nothing where there is no adapter

    # Within a module that has no configuration: peft 0.21 would read there that the model has experts, and wrap what is
    # fused in them as soon as any other layer is called gate_proj.
    layers = [f"inner.{name}" for name in target_layers(causal_lm, config)]
    settings = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=layers)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inject_adapter_in_model(settings, nn.ModuleDict({"inner": causal_lm}))


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
        "target_modules": list(dict.fromkeys(name.split(".lora_")[0].rsplit(".", 1)[-1] for name in tensors)),
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
