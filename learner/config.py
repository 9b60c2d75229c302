"""What the learner can be told. Checked on construction."""

import math
from dataclasses import dataclass

from learner.objectives import DENOMINATORS, OBJECTIVES

ALL_LINEAR = "all-linear"


def _require(ok: bool, key: str, found: object, expected: str) -> None:
    if not ok:
        raise ValueError(f"learner.{key}: found {found!r}, expected {expected}")


@dataclass(frozen=True)
class LearnerConfig:
    """The objective (arXiv 2605.23493) and the ZeRO engine that steps it."""

    # the policy term: k1 (EDGE-OPD), grpo (a verifier's advantage), or a divergence over the vocabulary
    objective: str = "k1"
    # what the sum over tokens is divided by: response tokens, kept tokens, each sequence by its length, or nothing
    denominator: str = "response"
    beta_kl: float = 0.05  # the coefficient of the KL penalty to the reference (the frozen base); 0: no penalty
    clip_low: float = 0.2  # PPO's lower clip: the ratio stays above 1 - clip_low, from a batch's second update on
    clip_high: float = 0.2  # PPO's upper clip: the ratio stays below 1 + clip_high
    jsd_beta: float = 0.5  # jsd: the teacher's share in the mixture
    divergence_top_k: int = 0  # compares the teacher's K likeliest tokens and a tail; 0: the whole vocabulary
    divergence_clip: float = 0.0  # the most that one token of the vocabulary can contribute, in nats; 0: no bound
    updates_per_batch: int = 1  # optimizer steps on one step's rollouts
    lr: float = 5e-6  # AdamW's learning rate, constant after the warm-up
    warmup_steps: int = 0  # optimizer steps over which lr rises linearly: AdamW's first steps are full-size otherwise
    betas: tuple[float, float] = (0.9, 0.999)  # AdamW's
    weight_decay: float = 0.0  # AdamW's
    grad_clip: float = 1.0  # the largest global norm of a gradient; 0: no clipping
    lora_rank: int = 0  # the rank of a LoRA adapter; 0: every parameter is trained
    lora_alpha: int = 32  # the adapter's product is scaled by lora_alpha / lora_rank
    # names of the linear layers that have an adapter, never the head; all-linear: every one
    lora_targets: tuple[str, ...] = (ALL_LINEAR,)
    num_ranks: int = 1  # learner processes
    zero_stage: int = 1  # DeepSpeed ZeRO: what is split over the ranks
    dtype: str = "bfloat16"  # of compute; master weights are float32
    micro_batch_tokens: int = 1024  # tokens of one packed sequence
    head_chunk_tokens: int = 256  # response positions whose logits exist at one time
    gradient_checkpointing: bool = False  # runs each layer again in the backward pass: less memory, more time
    start_deadline_s: float = 300.0  # seconds for the start of the ranks
    step_deadline_s: float = 900.0  # seconds for a learner step, a checkpoint or the export

    @property
    def needs_advantage(self) -> bool:
        """Whether the objective needs a verifier's rewards."""
        return OBJECTIVES[self.objective].needs_advantage

    @property
    def compares_distributions(self) -> bool:
        """Whether the objective needs the teacher's whole distribution, which the learner then computes itself."""
        return OBJECTIVES[self.objective].contributions is not None

    def __post_init__(self) -> None:
        _require(self.objective in OBJECTIVES, "objective", self.objective, f"one of {sorted(OBJECTIVES)}")
        _require(self.denominator in DENOMINATORS, "denominator", self.denominator, f"one of {sorted(DENOMINATORS)}")
        _require(0 <= self.beta_kl < math.inf, "beta_kl", self.beta_kl, "0 or more, finite")
        _require(0 < self.clip_low < 1, "clip_low", self.clip_low, "between 0 and 1")
        _require(0 < self.clip_high < math.inf, "clip_high", self.clip_high, "more than 0, finite")
        _require(0 < self.jsd_beta < 1, "jsd_beta", self.jsd_beta, "between 0 and 1")
        _require(self.divergence_top_k >= 0, "divergence_top_k", self.divergence_top_k, "0 (all) or more")
        _require(0 <= self.divergence_clip < math.inf, "divergence_clip", self.divergence_clip, "0 (none) or more")
        _require(self.updates_per_batch >= 1, "updates_per_batch", self.updates_per_batch, "at least 1")
        _require(0 < self.lr < math.inf, "lr", self.lr, "more than 0, finite")
        _require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "0 or more")
        _require(all(0 <= b < 1 for b in self.betas), "betas", self.betas, "two numbers from 0 to below 1")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        _require(self.grad_clip >= 0, "grad_clip", self.grad_clip, "0 (none) or more")
        _require(0 <= self.lora_rank <= 512, "lora_rank", self.lora_rank, "0 (no adapter) to 512, vLLM's largest")
        _require(self.lora_alpha >= 1, "lora_alpha", self.lora_alpha, "at least 1")
        _require(bool(self.lora_targets), "lora_targets", self.lora_targets, "names of linear layers")
        _require("lm_head" not in self.lora_targets, "lora_targets", self.lora_targets, "layers before the head")
        alone = ALL_LINEAR not in self.lora_targets or self.lora_targets == (ALL_LINEAR,)
        _require(alone, "lora_targets", self.lora_targets, f"{ALL_LINEAR!r} alone, or names")
        _require(self.num_ranks >= 1, "num_ranks", self.num_ranks, "at least 1")
        _require(self.zero_stage in (0, 1, 2, 3), "zero_stage", self.zero_stage, "0, 1, 2 or 3")
        _require(self.dtype in ("bfloat16", "float32"), "dtype", self.dtype, "bfloat16 or float32")
        _require(self.micro_batch_tokens >= 1, "micro_batch_tokens", self.micro_batch_tokens, "at least 1")
        _require(self.head_chunk_tokens >= 1, "head_chunk_tokens", self.head_chunk_tokens, "at least 1")
        for key in ("start_deadline_s", "step_deadline_s"):
            _require(getattr(self, key) > 0, key, getattr(self, key), "more than 0 seconds")
