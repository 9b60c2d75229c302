"""The student as the learner runs it: packed tokens in, log-probs at the needed positions out.

Legend: S = tokens of one packed sequence, N = response tokens in it, H = hidden size, V = vocabulary.
[S, V] logits never exist: the head works on the N needed positions, a chunk at a time, and recomputes each chunk's
logits in the backward pass.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from learner import attention


def load_causal_lm(path: str, dtype: torch.dtype) -> PreTrainedModel:
    """A Hugging Face causal language model from a local folder (ValueError when it is missing) or a hub id."""
    if path.startswith((".", "/")) and not (Path(path) / "config.json").is_file():
        raise ValueError(f"model.path: {path} holds no config.json, expected a Hugging Face model folder")
    config = AutoConfig.from_pretrained(path)
    return AutoModelForCausalLM.from_pretrained(path, config=config, dtype=dtype, attn_implementation=attention.NAME)


class _ChunkedLogprob(torch.autograd.Function):
    """log softmax(hidden @ weight.T)[target], float32, with logits of one chunk of positions at a time."""

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, chunk: int) -> Tensor:
        logprobs_N = hidden_NH.new_empty(len(targets_N), dtype=torch.float32)
        head_VH = _head_operand(weight_VH)
        for start in range(0, len(targets_N), chunk):
            part = slice(start, start + chunk)
            logits = _logits(hidden_NH[part], head_VH)
            picked = logits.gather(1, targets_N[part, None]).squeeze(1)
            logprobs_N[part] = picked - torch.logsumexp(logits, dim=1)
        ctx.save_for_backward(hidden_NH, weight_VH, targets_N)
        ctx.chunk = chunk
        return logprobs_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_NH, weight_VH, targets_N = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden_NH)
        grad_weight = torch.zeros_like(weight_VH, dtype=torch.float32)
        head_VH = _head_operand(weight_VH)
        for start in range(0, len(targets_N), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            hidden = hidden_NH[part]
            # d logprob / d logits = onehot - softmax
            grad_logits = torch.softmax(_logits(hidden, head_VH), dim=1).neg_()
            rows = torch.arange(len(hidden), device=hidden.device)
            grad_logits[rows, targets_N[part]] += 1.0
            grad_logits *= grad_N[part, None]
            grad_logits = grad_logits.to(weight_VH.dtype)
            grad_hidden[part] = grad_logits @ weight_VH
            grad_weight += (grad_logits.T @ hidden).float()
        return grad_hidden, grad_weight.to(weight_VH.dtype), None, None


def _head_operand(weight_VH: Tensor) -> Tensor:
    """The head's weight as `_logits` wants it: on CPU, which has no bf16 product with a float32 result, widened."""
    return weight_VH if weight_VH.is_cuda else weight_VH.float()


def _logits(hidden: Tensor, head_VH: Tensor) -> Tensor:
    """float32 logits, never rounded to a narrower type: at |logit| of 16, bfloat16 steps by 0.125."""
    if head_VH.dtype == torch.float32:
        return hidden.float() @ head_VH.T
    return torch.mm(hidden, head_VH.T, out_dtype=torch.float32)


class LogprobHead(nn.Module):
    """lm_head that returns the targets' log-probs. Owns the (possibly tied) weight, so ZeRO-3 gathers it here."""

    def __init__(self, weight: nn.Parameter, chunk: int) -> None:
        super().__init__()
        self.weight = weight
        self.chunk = chunk

    def forward(self, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
        return _ChunkedLogprob.apply(hidden_NH, self.weight, targets_N, self.chunk)


class Student(nn.Module):
    """A Hugging Face causal LM whose forward gives log-probs; parameter names stay the Hugging Face names."""

    def __init__(self, causal_lm: PreTrainedModel, chunk: int) -> None:
        super().__init__()
        if getattr(causal_lm.lm_head, "bias", None) is not None:
            raise ValueError(f"{type(causal_lm).__name__}: an lm_head with a bias is not supported")
        self.causal_lm = causal_lm
        causal_lm.lm_head = LogprobHead(causal_lm.lm_head.weight, chunk)

    def forward(self, input_ids_S: Tensor, position_ids_S: Tensor, needed_N: Tensor, targets_N: Tensor) -> Tensor:
        """float32 [N] log-probs of `targets_N` given what precedes them in their own packed row.

        Args:
            input_ids_S: packed rows, prompt then response without its last token.
            position_ids_S: restarts at 0 in each row; rows do not see each other.
            needed_N: indices into S whose next token is a response token.
            targets_N: those next tokens.
        """
        starts = torch.nonzero(position_ids_S == 0).squeeze(1)
        boundaries = torch.cat([starts, starts.new_tensor([len(position_ids_S)])])
        hidden = self.causal_lm.model(
            input_ids=input_ids_S[None],
            position_ids=position_ids_S[None],
            use_cache=False,
            cu_seq_lens_q=boundaries,
        ).last_hidden_state[0]
        return self.causal_lm.lm_head(hidden[needed_N], targets_N)
