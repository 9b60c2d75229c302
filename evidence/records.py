"""The types that cross a border, one per stage, each complete when built.

Legend: T = response tokens of one rollout, P = tokens of a prompt. Token ids are int32, log-probs are float32
natural logarithms. A response is never re-tokenised from text: `response_ids` is what the engine sampled.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class RolloutRequest:
    """One response to be sampled: x and (x, r) already rendered, and which of the two the sampler sees."""

    rollout_id: str
    prompt_id: str
    group_id: str  # the samples of one prompt in one step
    guided: bool
    context_position: str  # "system" or "user"
    prompt_ids: Ids  # [P] x
    context_prompt_ids: Ids  # [P'] x with r
    wrong_context_prompt_ids: tuple[Ids, ...] = ()  # [P''] each: x with a wrong r, for contrastive evidence

    @property
    def sampler_ids(self) -> Ids:
        """The prompt that this rollout is sampled from."""
        return self.context_prompt_ids if self.guided else self.prompt_ids


@dataclass(frozen=True, eq=False)
class Sample:
    """A sampled response. `sampler_logprobs` are raw (temperature 1) and under `request.sampler_ids`."""

    request: RolloutRequest
    response_ids: Ids  # [T], EOS included when the response ended by itself
    sampler_logprobs: Floats  # [T]
    finish_reason: str  # "stop" or "length"
    policy_version_min: int
    policy_version_max: int


@dataclass(frozen=True, eq=False)
class ScoredSample:
    """A sample with the teacher's two views of it: log pi_T(y|x,r) and log pi_T(y|x), from one engine.

    The last two are there only for the kinds of evidence that read them.
    """

    sample: Sample
    teacher_context_logprobs: Floats  # [T]
    teacher_logprobs: Floats  # [T]
    teacher_version: int
    student_logprobs: Floats | None = None  # [T] log pi_theta(y|x) of the student engine, never under (x, r)
    wrong_context_logprobs: tuple[Floats, ...] = ()  # [T] each: log pi_T(y|x,r_w), as request.wrong_context_prompt_ids


@dataclass(frozen=True, eq=False)
class EvidenceRecord:
    """One row of a shard: what the learner trains on and everything needed to recompute it."""

    scored: ScoredSample
    evidence: Floats  # [T] e_t
    weight: Floats  # [T] soft weight w_t before the mask, 1 for hard masks
    mask: Bools  # [T] m_t
    reward: float | None


@dataclass(frozen=True, eq=False)
class TrainRow:
    """A shard's row as the learner reads it back: per-token streams, never why they are what they are."""

    rollout_id: str
    guided: bool
    prompt_ids: Ids  # [P] x, without r, also for guided rollouts
    context_prompt_ids: Ids  # [P'] (x, r): for a teacher that the learner runs itself
    response_ids: Ids  # [T]
    teacher_context_logprobs: Floats  # [T]
    teacher_logprobs: Floats  # [T]
    evidence: Floats  # [T]
    weight: Floats  # [T] mask already applied: 0 where the region excludes the token
    advantage: float | None = None  # of the rollout within its group, from rewards; None without a verifier
    sampler_logprobs: Floats | None = None  # [T] of the engine that sampled it; None: nothing did, as the canary's text
    num_left_out: int = 0  # of the rollout's response tokens, those after these T, which the learner does not run


@dataclass(frozen=True)
class ShardInfo:
    """One line of the manifest: a shard that exists whole."""

    uri: str
    step: int
    rows: int
    tokens: int
    sha256: str
    groups: tuple[str, ...] | None = None  # names of its rows' groups; None in a manifest of an older version
