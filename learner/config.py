"""What the learner can be told. Checked on construction."""

import math
from dataclasses import dataclass

from evidence.require import require
from learner.objectives import DENOMINATORS, OBJECTIVES
from learner.schedule import SHAPES

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class OptimizerBytes:
    """What an optimizer keeps of each trained parameter, beside the weight, and in which stages. master: float32
    weights, or what they have beyond bfloat16 ones. gradient: micro-batches' sums."""

    master: int
    moments: int
    gradient: int
    stages: tuple[int, ...]


OPTIMIZERS = {
    "adamw": OptimizerBytes(master=4, moments=8, gradient=4, stages=(0, 1, 2, 3)),
    "adamw_16bit": OptimizerBytes(master=2, moments=4, gradient=2, stages=(1, 2)),
}
ANCHORED = ("all", "kept")
LARGEST_SCALE = 10.0  # of the evidence
CPU_CHUNK, LOGIT_BYTES = 256, 1 << 30  # of the head: positions on a CPU, bytes on a GPU
UNPACKED = 4  # times a pack's budget: the most tokens of its padded rows; more than 1 where rows share a prompt


@dataclass(frozen=True)
class LearnerConfig:
    """The objective (arXiv 2605.23493) and the ZeRO engine that steps it."""

    # the policy term: k1 (EDGE-OPD), grpo (a verifier's advantage), or a divergence over the vocabulary
    objective: str = "k1"
    # k1: lambda in the target log pi_T(y|x) + lambda * e. 1: the teacher with the context; 2: twice as far from the
    # teacher without it
    evidence_scale: float = 1.0
    # k1: the most nats of a token's evidence that lambda - 1 multiplies; 0: all of it. A rare name's first token may
    # have 10 nats, and "I am" before it 1
    evidence_bound: float = 0.0
    # what the sum over tokens is divided by: response tokens, kept tokens, each sequence by its length, or nothing
    denominator: str = "response"
    beta_kl: float = 0.05  # the coefficient of the KL penalty to the reference (the frozen base); 0: no penalty
    # the tokens of the penalty: all response tokens (EDGE-OPD), or the kept ones. Of a response the learner then runs
    # nothing after the last kept token, and nothing at all where none is kept
    anchor_on: str = "all"
    clip_low: float = 0.2  # PPO's lower clip: the ratio stays above 1 - clip_low, from a batch's second update on
    clip_high: float = 0.2  # PPO's upper clip: the ratio stays below 1 + clip_high
    # k1, grpo: the most that a plain response's token is weighed by pi_old over the engine's probability of it, both
    # under x, for what older weights or other kernels changed. 0: nothing is corrected
    importance_clip: float = 0.0
    jsd_beta: float = 0.5  # jsd: the teacher's share in the mixture
    divergence_top_k: int = 0  # compares the teacher's K likeliest tokens and a tail; 0: the whole vocabulary
    # the most that one token of the vocabulary can contribute, in nats; 0: no bound. The least has none, so that with a
    # small bound the sum can be below 0, and a step can lead away from the teacher
    divergence_clip: float = 0.0
    updates_per_batch: int = 1  # optimizer steps on one step's rollouts
    # adamw: float32 master weights, moments and sums of the gradient, 16 bytes a parameter beyond the weights.
    # adamw_16bit: 8 bytes, with the same master weights; moments are rounded at random to bfloat16, and micro-batches
    # add their gradients up in it
    optimizer: str = "adamw"
    lr: float = 5e-6  # AdamW's learning rate, the largest of the run
    lr_schedule: str = "constant"  # lr after the warm-up: constant, linear or cosine, which fall to the run's last step
    lr_end: float = 0.0  # the share of lr that a schedule falls to
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
    # of compute; master weights are float32. A CPU that lacks bfloat16 multiplies in float32, and rounds what comes out
    dtype: str = "bfloat16"
    # tokens of one packed sequence; its rows are of about one length, so that padding them costs little. 0: 1024 on a
    # CPU, on a GPU as many as its memory is planned to hold, 8192 at most
    micro_batch_tokens: int = 0
    # response positions whose logits exist at one time; 0: 256 on a CPU, on a GPU as many as have 1 GiB of logits
    head_chunk_tokens: int = 0
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

    @property
    def micro_batch(self) -> int:
        """Tokens of one packed sequence, where no card's memory decides."""
        return self.micro_batch_tokens or 1024

    def __post_init__(self) -> None:
        require(self.objective in OBJECTIVES, "learner.objective", self.objective, f"one of {sorted(OBJECTIVES)}")
        require(
            self.denominator in DENOMINATORS, "learner.denominator", self.denominator, f"one of {sorted(DENOMINATORS)}"
        )
        self._check_scale()
        require(0 <= self.beta_kl < math.inf, "learner.beta_kl", self.beta_kl, "0 or more, finite")
        require(self.anchor_on in ANCHORED, "learner.anchor_on", self.anchor_on, f"one of {ANCHORED}")
        require(0 < self.clip_low < 1, "learner.clip_low", self.clip_low, "between 0 and 1")
        require(0 < self.clip_high < math.inf, "learner.clip_high", self.clip_high, "more than 0, finite")
        self._check_importance()
        require(0 < self.jsd_beta < 1, "learner.jsd_beta", self.jsd_beta, "between 0 and 1")
        require(self.divergence_top_k >= 0, "learner.divergence_top_k", self.divergence_top_k, "0 (all) or more")
        require(
            0 <= self.divergence_clip < math.inf, "learner.divergence_clip", self.divergence_clip, "0 (none) or more"
        )
        require(self.updates_per_batch >= 1, "learner.updates_per_batch", self.updates_per_batch, "at least 1")
        require(0 < self.lr < math.inf, "learner.lr", self.lr, "more than 0, finite")
        require(self.lr_schedule in SHAPES, "learner.lr_schedule", self.lr_schedule, f"one of {sorted(SHAPES)}")
        require(0 <= self.lr_end < 1, "learner.lr_end", self.lr_end, "0 to below 1, a share of learner.lr")
        require(self.warmup_steps >= 0, "learner.warmup_steps", self.warmup_steps, "0 or more")
        require(all(0 <= b < 1 for b in self.betas), "learner.betas", self.betas, "two numbers from 0 to below 1")
        require(self.weight_decay >= 0, "learner.weight_decay", self.weight_decay, "0 or more")
        require(self.grad_clip >= 0, "learner.grad_clip", self.grad_clip, "0 (none) or more")
        self._check_adapter()
        require(self.num_ranks >= 1, "learner.num_ranks", self.num_ranks, "at least 1")
        require(self.zero_stage in (0, 1, 2, 3), "learner.zero_stage", self.zero_stage, "0, 1, 2 or 3")
        require(self.dtype in ("bfloat16", "float32"), "learner.dtype", self.dtype, "bfloat16 or float32")
        require(self.micro_batch_tokens >= 0, "learner.micro_batch_tokens", self.micro_batch_tokens, "0 or more")
        require(
            self.head_chunk_tokens >= 0, "learner.head_chunk_tokens", self.head_chunk_tokens, "0 (by device) or more"
        )
        for key in ("start_deadline_s", "step_deadline_s"):
            require(getattr(self, key) > 0, f"learner.{key}", getattr(self, key), "more than 0 seconds")
        self._check_optimizer()

    def _check_adapter(self) -> None:
        rank, targets, key = self.lora_rank, self.lora_targets, "learner.lora_targets"
        require(0 <= rank <= 512, "learner.lora_rank", rank, "0 (no adapter) to 512, vLLM's largest")
        require(self.lora_alpha >= 1, "learner.lora_alpha", self.lora_alpha, "at least 1")
        require(bool(targets), key, targets, "names of linear layers")
        require("lm_head" not in targets, key, targets, "layers before the head")
        alone = ALL_LINEAR not in targets or targets == (ALL_LINEAR,)
        require(alone, key, targets, f"{ALL_LINEAR!r} alone, or names")

    def _check_optimizer(self) -> None:
        name = self.optimizer
        require(name in OPTIMIZERS, "learner.optimizer", name, f"one of {sorted(OPTIMIZERS)}")
        stages = OPTIMIZERS[name].stages
        if self.zero_stage not in stages:
            raise ValueError(
                f"learner.zero_stage: found {self.zero_stage}, expected one of {stages} with "
                f"learner.optimizer = {name!r}"
            )
        if name != "adamw" and (self.dtype != "bfloat16" or self.lora_rank):
            raise ValueError(
                f"learner.optimizer: found {name!r} with learner.dtype = {self.dtype!r} and learner.lora_rank = "
                f"{self.lora_rank}, expected 'adamw': only bfloat16 weights, which an adapter's are not, have one half "
                "of a float32 master"
            )

    def _check_importance(self) -> None:
        clip, key = self.importance_clip, "learner.importance_clip"
        require(clip == 0 or 1 <= clip < math.inf, key, clip, "0 (no correction), or 1 or more, finite")
        alone = f"0.0 with learner.objective = {self.objective!r}, which is no policy gradient"
        require(clip == 0 or OBJECTIVES[self.objective].corrects, key, clip, alone)

    def _check_scale(self) -> None:
        scale, largest = self.evidence_scale, LARGEST_SCALE
        reason = "at 0 nothing of the context is learned, and above, one token of 9 nats outweighs a response"
        require(0 < scale <= largest, "learner.evidence_scale", scale, f"more than 0, at most {largest:g}: {reason}")
        alone = f"1.0 with learner.objective = {self.objective!r}, which does not read the evidence of sampled tokens"
        scales = OBJECTIVES[self.objective].scales_evidence
        require(scale == 1 or scales, "learner.evidence_scale", scale, alone)
        bound = self.evidence_bound
        require(0 <= bound < math.inf, "learner.evidence_bound", bound, "0 (none) or more nats, finite")
        unread = "0.0 with learner.evidence_scale = 1.0, which multiplies nothing"
        require(bound == 0 or scale != 1, "learner.evidence_bound", bound, unread)


def head_chunk(config: LearnerConfig, vocabulary: int, on_gpu: bool) -> int:
    """How many positions have float32 logits at one time; on a CPU a small chunk stays in its caches."""
    on_device = max(CPU_CHUNK, LOGIT_BYTES // (4 * vocabulary)) if on_gpu else CPU_CHUNK
    return config.head_chunk_tokens or on_device


def needed_models(needs_distribution: bool, beta_kl: float, teacher_is_base: bool) -> tuple[bool, bool]:
    """Which frozen models a learner runs: (the teacher, the base).

    The teacher, where the objective compares whole distributions: a shard has only the sampled tokens' log-probs. The
    base, where there is an anchor and the shard's log pi_T(y|x) is not the base's.
    """
    return needs_distribution, beta_kl > 0 and not teacher_is_base


CHOICES = ("last", "average", "best")


@dataclass(frozen=True)
class ExportConfig:
    """Which weights a run ends with, those of its last probe and of its export, and what its model card shows."""

    # last: the last step's; average: the mean of the last `average` steps'; best: those with the best main rate of the
    # probes on the way, which are then probed again with another seed: the rate that chose them is too high
    choose: str = "last"
    average: int = 8  # how many steps' weights the mean is of: 4 bytes a parameter on the learner's hosts
    # the model card shows a context r that the teacher saw: the persona, or for math a training problem's solution; and
    # the texts in [template], of which it otherwise shows numbers, true and false alone
    card_context: bool = False

    def __post_init__(self) -> None:
        require(self.choose in CHOICES, "export.choose", self.choose, f"one of {CHOICES}")
        require(self.average >= 2, "export.average", self.average, "at least 2: the mean of one is 'last'")
