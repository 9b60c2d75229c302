"""The rule that turns scored rollouts into evidence, a region mask and a soft weight: pure functions over arrays.

Legend: N = response tokens of a whole step, its rollouts one after the other. Log-probs and evidence are natural
logarithms in float32, and thresholds are compared in float32 too, so a mask recomputed from a shard is the mask that
was written.
"""

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
from numpy.typing import NDArray

from evidence.advantage import group_advantages
from evidence.kinds import EVIDENCE_KINDS
from evidence.records import Bools, EvidenceRecord, Floats, ScoredSample
from evidence.require import require
from evidence.streams import StepStreams, scored_streams


@dataclass(frozen=True)
class EvidenceConfig:
    """How the evidence of a token is computed, and which tokens are kept.

    ValueError names the key, the value found and what was expected.
    """

    kind: str = "teacher_contrast"  # the formula of the evidence e
    num_wrong_contexts: int = 1  # contrastive: how many wrong contexts it averages over
    region: str = "pos"  # which tokens are kept: e > tau, e < -tau, |e| <= near_zero, or all
    tau: float = 0.0  # the threshold of pos and neg; pos with -inf keeps every token
    # value: tau is in nats; quantile: a share of the step's tokens, so that at 0.8 pos and neg keep about a fifth each
    tau_kind: str = "value"
    near_zero: float = 0.1  # half-width of the region near_zero, nats
    soft: str = "none"  # the weight of a kept token: 1, RLSD's without a verifier, or RLSD's with one
    soft_eps: float = 0.2  # the soft weight is clipped to [1 - soft_eps, 1 + soft_eps]
    soft_mix: float = 1.0  # lambda in the weight (1 - lambda) + lambda * soft
    soft_mix_decay_steps: int = 0  # lambda falls linearly to 0 over that many steps; 0: it stays

    def __post_init__(self) -> None:
        _expect_name("kind", self.kind, EVIDENCE_KINDS)
        _expect_name("region", self.region, REGIONS)
        _expect_name("tau_kind", self.tau_kind, TAU_KINDS)
        _expect_name("soft", self.soft, SOFT_WEIGHTS)
        require(_is_number(self.tau), "evidence.tau", self.tau, "a number (inf and -inf allowed, not NaN)")
        require(
            _is_number(self.near_zero) and self.near_zero >= 0, "evidence.near_zero", self.near_zero, "a number >= 0"
        )
        require(
            _is_number(self.soft_eps) and 0 < self.soft_eps < 1,
            "evidence.soft_eps",
            self.soft_eps,
            "a number between 0 and 1",
        )
        require(
            _is_number(self.soft_mix) and 0 <= self.soft_mix <= 1,
            "evidence.soft_mix",
            self.soft_mix,
            "a number, 0 to 1",
        )
        for key in ("soft_mix_decay_steps", "num_wrong_contexts"):
            require(_is_count(getattr(self, key)), f"evidence.{key}", getattr(self, key), "a whole number >= 0")
        if self.tau_kind == "quantile":
            require(0 <= self.tau <= 1, "evidence.tau", self.tau, "0 to 1 where evidence.tau_kind is 'quantile'")
        if self.kind == "contrastive":
            wanted = "at least 1 where evidence.kind is 'contrastive'"
            require(self.num_wrong_contexts >= 1, "evidence.num_wrong_contexts", self.num_wrong_contexts, wanted)

    def mix(self, step: int) -> float:
        """lambda at `step`, counted from 0: soft_mix, or what is left of it after `step` steps of its decay."""
        if not self.soft_mix_decay_steps:
            return self.soft_mix
        return self.soft_mix * max(0.0, 1 - step / self.soft_mix_decay_steps)

    def to_json(self) -> str:
        """One line of JSON, the `mask_rule` of a shard. Infinite thresholds are written `Infinity`, as Python does."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "EvidenceConfig":
        """The inverse of `to_json`. ValueError when the text is not JSON, or holds an unknown or a bad key."""
        loaded = json.loads(text)
        require(isinstance(loaded, dict), "evidence.mask_rule", loaded, "a JSON object")
        known = {field.name for field in fields(cls)}
        for key in loaded:
            require(key in known, f"evidence.{key}", loaded[key], f"one of the keys {', '.join(sorted(known))}")
        return cls(**loaded)


def _expect_name(key: str, found: object, table: Collection[str]) -> None:
    require(isinstance(found, str) and found in table, f"evidence.{key}", found, f"one of {', '.join(sorted(table))}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _value(evidence: Floats, tau: float) -> np.float32:
    return np.float32(tau)


def _quantile(evidence: Floats, tau: float) -> np.float32:
    """Linear between the two nearest tokens, in float64."""
    return np.float32(np.quantile(evidence.astype(np.float64), tau) if evidence.size else 0.0)


def _pos(evidence: Floats, config: EvidenceConfig) -> Bools:
    return evidence > TAU_KINDS[config.tau_kind](evidence, config.tau)


def _neg(evidence: Floats, config: EvidenceConfig) -> Bools:
    """e < -tau, or e < q(1 - tau): what pos keeps of -e."""
    return _pos(-evidence, config)


def _near_zero(evidence: Floats, config: EvidenceConfig) -> Bools:
    return np.abs(evidence) <= np.float32(config.near_zero)


def _all(evidence: Floats, config: EvidenceConfig) -> Bools:
    return np.ones(evidence.shape, np.bool_)


def _unweighted(evidence: Floats, advantage: NDArray[np.float64], config: EvidenceConfig) -> Floats:
    return np.ones(evidence.shape, np.float32)


def _rlsd(evidence: Floats, advantage: NDArray[np.float64], config: EvidenceConfig) -> Floats:
    """clip(exp(e_t), 1-eps, 1+eps), RLSD without verifier (arXiv 2604.03128). In float64, so that the exp of any
    machine rounds to the same float32; 1+eps < e, so the minimum only keeps it from overflowing."""
    ratio = np.exp(np.minimum(evidence.astype(np.float64), 1.0))
    weight: Floats = np.clip(ratio, 1 - config.soft_eps, 1 + config.soft_eps).astype(np.float32)
    return weight


def _rlsd_verifier(evidence: Floats, advantage: NDArray[np.float64], config: EvidenceConfig) -> Floats:
    """clip(exp(sign(A) e_t), 1-eps, 1+eps), RLSD (arXiv 2604.03128): the factor on the rollout's advantage A."""
    require(
        not np.isnan(advantage).any(),
        "evidence.soft",
        config.soft,
        "a reward for every rollout, from a task's verifier",
    )
    return _rlsd(np.sign(advantage).astype(np.float32) * evidence, advantage, config)


TAU_KINDS: dict[str, Callable[[Floats, float], np.float32]] = {
    "value": _value,
    "quantile": _quantile,
}

REGIONS: dict[str, Callable[[Floats, EvidenceConfig], Bools]] = {
    "pos": _pos,
    "neg": _neg,
    "near_zero": _near_zero,
    "all": _all,
}

SOFT_WEIGHTS: dict[str, Callable[[Floats, NDArray[np.float64], EvidenceConfig], Floats]] = {
    "none": _unweighted,
    "rlsd": _rlsd,
    "rlsd_verifier": _rlsd_verifier,
}


def remask(evidence: Floats, config: EvidenceConfig) -> Bools:
    """m_t, [N]: the tokens of the configured region. Strict at tau (e = tau is out), inclusive at near_zero."""
    return REGIONS[config.region](evidence, config)


def reweigh(evidence: Floats, advantage: NDArray[np.float64], config: EvidenceConfig, step: int) -> Floats:
    """w_t, [N] float32: the soft weight before the mask, mixed with 1; 1 everywhere when `soft` is none.

    advantage [N]: A of each token's rollout, nan where it has none. ValueError when `soft` needs one there.
    """
    mix = np.float32(config.mix(step))
    return (np.float32(1) - mix) + mix * SOFT_WEIGHTS[config.soft](evidence, advantage, config)


def judge_streams(streams: StepStreams, config: EvidenceConfig) -> tuple[Floats, Floats, Bools]:
    """(e, w, m), each [N]: the whole rule, for a step that was just scored and for one read back from its shard.

    ValueError when `config` reads a stream or a reward that is not there.
    """
    evidence = EVIDENCE_KINDS[config.kind](streams)
    return evidence, reweigh(evidence, streams.advantage_N(), config, streams.step), remask(evidence, config)


def judge_all(
    scored: Sequence[ScoredSample], rewards: Sequence[float | None], config: EvidenceConfig, step: int
) -> list[EvidenceRecord]:
    """Evidence, soft weight and mask of all rollouts of one step, in their order; the arrays are views of one.

    With an empty context both teacher passes are equal, so the contrast is 0 and the pos mask (tau 0) is empty.
    ValueError names the rollout when a per-token stream is not as long as the response or a log-prob is not finite,
    and the key when `config` reads a stream or a reward that is not there.
    """
    advantages = group_advantages(rewards, [one.sample.request.group_id for one in scored])
    streams = scored_streams(scored, advantages, step)
    judged = (streams.rows(values) for values in judge_streams(streams, config))
    return [
        EvidenceRecord(scored=one, evidence=evidence, weight=weight, mask=mask, reward=reward)
        for one, reward, evidence, weight, mask in zip(scored, rewards, *judged, strict=True)
    ]


def judge(scored: ScoredSample, config: EvidenceConfig) -> EvidenceRecord:
    """`judge_all` of one rollout without a reward, as if it were the whole of step 0."""
    return judge_all([scored], [None], config, step=0)[0]
