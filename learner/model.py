"""The student as the learner runs it: packed tokens in, log-probs (and divergences) at the needed positions out.

Legend: S = tokens of one packed sequence, N = response tokens, H = hidden size. The head works on the N needed
positions only: logits of the whole sequence never exist.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from learner.attention import PackedRows
from learner.divergence import Divergence
from learner.head import Distribution, LogprobHead
from learner.logits import head_of, logit_form


def checkpoint_layers(causal_lm: PreTrainedModel, zero_stage: int) -> None:
    """Each decoder layer keeps its input only, and runs again in the backward pass (arXiv 1604.06174).

    Reentrant under ZeRO-3, whose parameters have no shape between two runs of a layer, which the other kind compares.
    """
    checkpoint_with(causal_lm, use_reentrant=zero_stage == 3)


def checkpoint_with(causal_lm: PreTrainedModel, **told: object) -> None:
    """Each decoder layer runs under `torch.utils.checkpoint.checkpoint`, which is told this."""
    causal_lm.gradient_checkpointing_enable(told)
    for module in causal_lm.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True  # which transformers asks of a layer before it does so
            module._gradient_checkpointing_func = partial(_evaluated, module, module._gradient_checkpointing_func)


def _evaluated(layer: nn.Module, checkpoint: Callable[..., Any], run: Callable[..., Any], *inputs: Any) -> Any:
    """The checkpoint of a layer that runs as one that is not trained: some families' have dropout of their own."""

    def run_without_dropout(*inputs: Any) -> Any:
        layer.training = False
        try:
            return run(*inputs)
        finally:
            layer.training = True

    return checkpoint(run_without_dropout, *inputs)


def hidden_states(
    causal_lm: PreTrainedModel, input_ids_S: Tensor, position_ids_S: Tensor, packed: PackedRows
) -> Tensor:
    """[S, H] of packed rows, before the head."""
    return causal_lm.base_model(
        input_ids=input_ids_S[None], position_ids=position_ids_S[None], use_cache=False, packed=packed
    ).last_hidden_state[0]


class Trunk(nn.Module):
    """A Hugging Face causal LM up to its head."""

    def __init__(self, causal_lm: PreTrainedModel) -> None:
        super().__init__()
        self.causal_lm = causal_lm

    def forward(self, input_ids_S: Tensor, position_ids_S: Tensor, packed: PackedRows, needed_N: Tensor) -> Tensor:
        """Hidden states [N, H] at the needed positions; arguments as those of `Student.forward`."""
        return hidden_states(self.causal_lm, input_ids_S, position_ids_S, packed)[needed_N]


class Student(nn.Module):
    """A Hugging Face causal LM whose forward gives log-probs; parameter names stay the Hugging Face names.

    With a divergence it can be compared with a teacher, too.
    """

    def __init__(self, causal_lm: PreTrainedModel, chunk: int, divergence: Divergence | None = None) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        head = head_of(causal_lm)
        place = next(name for name, module in causal_lm.named_modules() if module is head)
        causal_lm.set_submodule(place, LogprobHead(head.weight, chunk, divergence, logit_form(causal_lm)))

    def forward(
        self,
        input_ids_S: Tensor,
        position_ids_S: Tensor,
        packed: PackedRows,
        needed_N: Tensor,
        targets_N: Tensor,
        teacher: Distribution | None = None,
    ) -> Tensor:
        """Log-probs of `targets_N` given what precedes them in their own packed row, as `LogprobHead` gives them.

        Args:
            input_ids_S: packed rows, prompt then response without its last token; a prompt that rows share stands once.
            position_ids_S: each token's place in its row.
            packed: which tokens each row consists of; rows do not see each other.
            needed_N: indices into S whose next token is a response token.
            targets_N: those next tokens.
            teacher: its distributions of the same N tokens, whatever its own prompts were.
        """
        hidden_SH = hidden_states(self.causal_lm, input_ids_S, position_ids_S, packed)
        return self.causal_lm.get_output_embeddings()(hidden_SH[needed_N], targets_N, teacher=teacher)
