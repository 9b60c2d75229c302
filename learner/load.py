"""Loads a model, and finds out whether the learner computes what the model does: nothing is asked by name.

Of a mixture of experts the log-probs are trained and no more: a router's load-balancing loss is not added.

Legend as in `learner.model`; V = vocabulary.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from evidence.require import first_line
from learner import attention
from learner.attention import PackedRows, UnsupportedModel, own_attention
from learner.folder import check_model_folder
from learner.logits import head_of, logit_form
from learner.model import hidden_states
from learner.norms import fuse_norms

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}  # as `LearnerConfig.dtype` names them
TOLERANCE = 5e-3  # nats between two float32 forwards of one model, at the worst token of the vocabulary
VOCABULARY_CHUNK = 4096
IDS = torch.arange(12)
ONE_ROW = PackedRows(IDS, torch.tensor([0, len(IDS)], dtype=torch.int32), IDS, len(IDS))


def load_causal_lm(path: str, dtype: torch.dtype) -> PreTrainedModel:
    """A Hugging Face causal language model from a folder.

    ValueError when the folder is missing or lacks a tensor, where the model cannot run packed rows or would mix them,
    and where the learner's log-probs would not be the model's.
    """
    check_model_folder(path)
    config = AutoConfig.from_pretrained(path)
    _require_pluggable(path, config)
    causal_lm = _read_whole(path, config, dtype)
    with _in_one_line(path, causal_lm):
        _require_computed(path, causal_lm)
    fuse_norms(causal_lm)
    freeze_beside_text(causal_lm)
    return causal_lm


def freeze_beside_text(causal_lm: PreTrainedModel) -> None:
    """What a wrapper of a text model has for images or sound: no text reaches it, and without a gradient an optimizer
    would only let it decay."""
    text = (causal_lm.get_decoder(), head_of(causal_lm), causal_lm.get_input_embeddings())
    read = {parameter for module in text for parameter in module.parameters()}
    for parameter in set(causal_lm.parameters()) - read:
        parameter.requires_grad_(False)


def _require_pluggable(path: str, config: PreTrainedConfig) -> None:
    """ValueError unless the family's attention can be replaced and hears which tokens a row has."""
    family = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if family is None:
        raise ValueError(f"model.path: {path}: found {config.model_type!r}, expected a causal language model")
    if not family._can_set_attn_implementation():
        raise ValueError(
            f"model.path: {path}: found {family.__name__}, whose attention cannot be replaced, expected a model that "
            "attends through transformers' AttentionInterface"
        )


def _read_whole(path: str, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a folder; ValueError for a tensor that its files lack, or have in another shape: transformers draws
    such at random and goes on. What a family leaves out of its files, such as a tied head, it does not report."""
    try:
        causal_lm, found = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=dtype, attn_implementation=attention.NAME,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except (RuntimeError, LookupError, EOFError, UnpicklingError) as error:
        said = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"model.path: {path}: found weights that cannot be read ({said})") from error
    missing, other = sorted(found["missing_keys"]), sorted(found["mismatched_keys"])
    rest = f" (and {len(missing) + len(other) - 1} more)" if len(missing) + len(other) > 1 else ""
    if missing:
        expected = f"expected every tensor of {type(causal_lm).__name__}"
        raise ValueError(f"model.path: {path}: found no {missing[0]} in its files{rest}, {expected}")
    if other:
        name, shape, asked = other[0]
        raise ValueError(f"model.path: {path}: {name}: found {tuple(shape)}{rest}, expected {tuple(asked)}")
    return causal_lm


def _require_computed(path: str, causal_lm: PreTrainedModel) -> None:
    """UnsupportedModel unless the learner's forward of packed rows is the model's own of each, and a number."""
    if mixes_rows(causal_lm):
        with torch.no_grad():
            alone_SH = hidden_states(causal_lm, IDS, IDS, ONE_ROW)
        if alone_SH.isnan().any():
            raise UnsupportedModel(f"model.path: {path}: found weights that make NaN of a text, expected numbers")
        raise UnsupportedModel(
            f"model.path: {path}: found {type(causal_lm).__name__}, in which packed rows see each other, expected a "
            "model whose tokens meet in attention only (no state-space, convolution or linear-attention layers)"
        )
    apart = distance_from_own_forward(causal_lm)
    if not apart < TOLERANCE:
        raise UnsupportedModel(
            f"model.path: {path}: found {type(causal_lm).__name__}, whose own log-probs differ from those of its "
            f"hidden states and its head by {apart:.3g} nats, expected less than {TOLERANCE:g}"
        )


@contextmanager
def _in_one_line(path: str, causal_lm: PreTrainedModel) -> Iterator[None]:
    """A forward that fails, in whatever way its family has, becomes a ValueError that names the family."""
    try:
        yield
    except UnsupportedModel:
        raise
    except (AttributeError, TypeError, RuntimeError, ValueError, LookupError) as error:
        raise ValueError(
            f"model.path: {path}: found {type(causal_lm).__name__}, which cannot be run on packed rows "
            f"({type(error).__name__}: {first_line(error)}), expected a model that takes what Llama takes"
        ) from error


def mixes_rows(causal_lm: PreTrainedModel) -> bool:
    """Whether a packed row sees another in some layer: `learner.attention` keeps them apart in attention only.

    Two rows share a prompt, and the first one's response enters as NaN, which comes out of whatever has read it. So the
    answer needs no tolerance, in any dtype, and no list of layers.
    """
    prompt, first, second = IDS.split(4)
    rows_U = torch.cat([prompt, first, prompt, second])
    place_S = torch.cat([prompt + 8, first, second + 4])  # the prompt in the second row
    packed = PackedRows(rows_U, torch.tensor([0, 8, 16], dtype=torch.int32), place_S, longest=8)
    position_ids_S = torch.cat([prompt, first, first])
    poisoned = causal_lm.get_input_embeddings().register_forward_hook(
        lambda module, arguments, embedded_1SH: embedded_1SH.index_fill(1, first, math.nan)
    )
    try:
        with torch.no_grad():
            hidden_SH = hidden_states(causal_lm, IDS, position_ids_S, packed)
    finally:
        poisoned.remove()
    assert hidden_SH[first].isnan().all()
    return bool(hidden_SH[torch.cat([prompt, second])].isnan().any())


def distance_from_own_forward(causal_lm: PreTrainedModel) -> float:
    """The largest difference in nats between the model's own float32 log-probs of a few tokens and the learner's, over
    every token of the vocabulary. Finds a layer between hidden states and logits, whatever it is called."""
    form = logit_form(causal_lm)
    with torch.no_grad(), in_float32(causal_lm):
        hidden_SH = hidden_states(causal_lm, IDS, IDS, ONE_ROW)
        parts = head_of(causal_lm).weight.split(VOCABULARY_CHUNK)
        mine_SV = form.apply_(torch.cat([hidden_SH @ part.float().T for part in parts], -1))
        with own_attention(causal_lm):
            own_SV = causal_lm(input_ids=IDS[None], use_cache=False).logits[0]
    mine_SV, own_SV = mine_SV.log_softmax(-1), own_SV.float().log_softmax(-1)
    return float((mine_SV - own_SV).abs().max())


@contextmanager
def in_float32(module: nn.Module) -> Iterator[None]:
    """Within it the module computes in float32, with one submodule's parameters widened at a time, all in the same
    memory: new memory for each takes longer than the arithmetic of a few tokens."""
    own = {submodule: list(submodule.parameters(recurse=False)) for submodule in module.modules()}
    sizes = {submodule: [parameter.numel() for parameter in parameters] for submodule, parameters in own.items()}
    room = torch.empty(max(map(sum, sizes.values())))
    narrow: dict[nn.Parameter, Tensor] = {}

    def widen(submodule: nn.Module, arguments: Any) -> None:
        held = torch.empty_like(room) if narrow else room  # new where a submodule is within one that has parameters too
        wide = held[: sum(sizes[submodule])].split(sizes[submodule])
        for parameter, part in zip(own[submodule], wide, strict=True):
            if parameter not in narrow:
                narrow[parameter] = parameter.data
                parameter.data = part.view(parameter.shape).copy_(parameter.data)

    def restore(submodule: nn.Module, arguments: Any, output: Any) -> None:
        for parameter in own[submodule]:
            parameter.data = narrow.pop(parameter, parameter.data)

    hooks = []
    for submodule in filter(own.get, own):
        hooks.append(submodule.register_forward_pre_hook(widen))
        hooks.append(submodule.register_forward_hook(restore))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, data in narrow.items():
            parameter.data = data
