"""The student as the learner runs it: packed tokens in, log-probs (and divergences) at the needed positions out.

Legend: S = tokens of one packed sequence, R = rows in it, L = tokens of the longest, N = response tokens, H = hidden
size. The head works on the N needed positions only: logits of the whole sequence never exist.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from learner import attention
from learner.divergence import Divergence
from learner.head import Distribution, LogprobHead


def load_causal_lm(path: str, dtype: torch.dtype) -> PreTrainedModel:
    """A Hugging Face causal language model from a local folder or a hub id.

    ValueError when the folder is missing, and where the model would mix packed rows.
    """
    if path.startswith((".", "/")) and not (Path(path) / "config.json").is_file():
        raise ValueError(f"model.path: {path} holds no config.json, expected a Hugging Face model folder")
    config = AutoConfig.from_pretrained(path)
    causal_lm = AutoModelForCausalLM.from_pretrained(
        path, config=config, dtype=dtype, attn_implementation=attention.NAME
    )
    if mixes_rows(causal_lm):
        raise ValueError(
            f"model.path: {path}: found {type(causal_lm).__name__}, in which packed rows see each other, expected a "
            "model whose tokens meet in attention only (no state-space, convolution or linear-attention layers)"
        )
    return causal_lm


def mixes_rows(causal_lm: PreTrainedModel) -> bool:
    """Whether a packed row sees another in some layer: `learner.attention` keeps them apart in attention only.

    Two rows share a prompt, and the first one's response enters as NaN, which comes out of whatever has read it. So the
    answer needs no tolerance, in any dtype, and no list of layers.
    """
    prompt, first, second = torch.arange(12).split(4)
    rows_RL = torch.stack([torch.cat([prompt, first]), torch.cat([prompt, second])])
    place_S = torch.cat([prompt + 8, first, second + 4])  # the prompt in the second row
    position_ids_S = torch.cat([prompt, first, first])
    poisoned = causal_lm.get_input_embeddings().register_forward_hook(
        lambda module, arguments, embedded_1SH: embedded_1SH.index_fill(1, first, math.nan)
    )
    try:
        with torch.no_grad():
            hidden_SH = _hidden_states(causal_lm, torch.arange(12), position_ids_S, rows_RL, place_S)
    finally:
        poisoned.remove()
    assert hidden_SH[first].isnan().all()
    return bool(hidden_SH[torch.cat([prompt, second])].isnan().any())


def checkpoint_layers(causal_lm: PreTrainedModel, zero_stage: int) -> None:
    """Each decoder layer keeps its input only, and runs again in the backward pass (arXiv 1604.06174).

    Reentrant under ZeRO-3, whose parameters have no shape between two runs of a layer, which the other kind compares.
    """
    causal_lm.gradient_checkpointing_enable({"use_reentrant": zero_stage == 3})
    for module in causal_lm.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True  # of a layer itself transformers asks this; what it holds has no dropout still


def head_weight(causal_lm: PreTrainedModel) -> nn.Parameter:
    """The (possibly tied) weight [V, H] of the head; ValueError where there is a bias too."""
    if getattr(causal_lm.lm_head, "bias", None) is not None:
        raise ValueError(f"{type(causal_lm).__name__}: an lm_head with a bias is not supported")
    return causal_lm.lm_head.weight


def _hidden_states(
    causal_lm: PreTrainedModel, input_ids_S: Tensor, position_ids_S: Tensor, rows_RL: Tensor, place_S: Tensor
) -> Tensor:
    """[S, H] of packed rows, before the head."""
    return causal_lm.model(
        input_ids=input_ids_S[None],
        position_ids=position_ids_S[None],
        use_cache=False,
        rows_RL=rows_RL,
        place_S=place_S,
    ).last_hidden_state[0]


class Trunk(nn.Module):
    """A Hugging Face causal LM up to its head."""

    def __init__(self, causal_lm: PreTrainedModel) -> None:
        super().__init__()
        self.causal_lm = causal_lm

    def forward(
        self, input_ids_S: Tensor, position_ids_S: Tensor, rows_RL: Tensor, place_S: Tensor, needed_N: Tensor
    ) -> Tensor:
        """Hidden states [N, H] at the needed positions; arguments as those of `Student.forward`."""
        return _hidden_states(self.causal_lm, input_ids_S, position_ids_S, rows_RL, place_S)[needed_N]


class Student(nn.Module):
    """A Hugging Face causal LM whose forward gives log-probs; parameter names stay the Hugging Face names.

    With a divergence it can be compared with a teacher, too.
    """

    def __init__(self, causal_lm: PreTrainedModel, chunk: int, divergence: Divergence | None = None) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        causal_lm.lm_head = LogprobHead(head_weight(causal_lm), chunk, divergence)

    def forward(
        self,
        input_ids_S: Tensor,
        position_ids_S: Tensor,
        rows_RL: Tensor,
        place_S: Tensor,
        needed_N: Tensor,
        targets_N: Tensor,
        teacher: Distribution | None = None,
    ) -> Tensor:
        """Log-probs of `targets_N` given what precedes them in their own packed row, as `LogprobHead` gives them.

        Args:
            input_ids_S: packed rows, prompt then response without its last token; a prompt that rows share stands once.
            position_ids_S: each token's place in its row.
            rows_RL, place_S: which tokens a row consists of, as in `learner.attention`; rows do not see each other.
            needed_N: indices into S whose next token is a response token.
            targets_N: those next tokens.
            teacher: its distributions of the same N tokens, whatever its own prompts were.
        """
        hidden_SH = _hidden_states(self.causal_lm, input_ids_S, position_ids_S, rows_RL, place_S)
        return self.causal_lm.lm_head(hidden_SH[needed_N], targets_N, teacher=teacher)
