"""The rule that turns two teacher passes into evidence, a region mask and a soft weight: pure functions over arrays.

Legend: T = response tokens of one rollout. Log-probs and evidence are natural logarithms in float32, and thresholds
are compared in float32 too, so a mask recomputed from a shard is the mask that was written.
"""

import json
import math
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, fields

import numpy as np

from evidence.records import Bools, EvidenceRecord, Floats, ScoredSample


@dataclass(frozen=True)
class EvidenceConfig:
    """How tokens are judged. ValueError names the key, the value found and what was expected.

    kind: which evidence, a name in EVIDENCE_KINDS. region: which tokens are kept, a name in REGIONS.
    tau: threshold of pos and neg, in nats; infinite values are allowed (pos with -inf keeps everything).
    near_zero: half-width of the near_zero region, in nats, 0 or more.
    soft: the weight of a kept token, a name in SOFT_WEIGHTS. soft_eps: its clip range, inside (0, 1).
    """

    kind: str = "teacher_contrast"
    region: str = "pos"
    tau: float = 0.0
    near_zero: float = 0.1
    soft: str = "none"
    soft_eps: float = 0.2

    def __post_init__(self) -> None:
        _expect_name("kind", self.kind, EVIDENCE_KINDS)
        _expect_name("region", self.region, REGIONS)
        _expect_name("soft", self.soft, SOFT_WEIGHTS)
        _expect(_is_number(self.tau), "tau", self.tau, "a number (inf and -inf allowed, not NaN)")
        _expect(_is_number(self.near_zero) and self.near_zero >= 0, "near_zero", self.near_zero, "a number >= 0")
        _expect(
            _is_number(self.soft_eps) and 0 < self.soft_eps < 1, "soft_eps", self.soft_eps, "a number between 0 and 1"
        )

    def to_json(self) -> str:
        """One line of JSON, the `mask_rule` of a shard. Infinite thresholds are written `Infinity`, as Python does."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "EvidenceConfig":
        """The inverse of `to_json`. ValueError when the text is not JSON, or holds an unknown or a bad key."""
        loaded = json.loads(text)
        _expect(isinstance(loaded, dict), "mask_rule", loaded, "a JSON object")
        known = {field.name for field in fields(cls)}
        for key in loaded:
            _expect(key in known, key, loaded[key], f"one of the keys {', '.join(sorted(known))}")
        return cls(**loaded)


def _expect(holds: bool, key: str, found: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"evidence.{key}: found {found!r}, expected {expected}")


def _expect_name(key: str, found: object, table: Collection[str]) -> None:
    _expect(isinstance(found, str) and found in table, key, found, f"one of {', '.join(sorted(table))}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def teacher_contrast(teacher_context_logprobs: Floats, teacher_logprobs: Floats) -> Floats:
    """e_t = log pi_T(y_t|x,r,y<t) - log pi_T(y_t|x,y<t), [T] nats, float32. EDGE-OPD (arXiv 2605.23493)."""
    evidence: Floats = np.subtract(teacher_context_logprobs, teacher_logprobs, dtype=np.float32)
    return evidence


def _pos(evidence: Floats, config: EvidenceConfig) -> Bools:
    return evidence > np.float32(config.tau)


def _neg(evidence: Floats, config: EvidenceConfig) -> Bools:
    return evidence < np.float32(-config.tau)


def _near_zero(evidence: Floats, config: EvidenceConfig) -> Bools:
    return np.abs(evidence) <= np.float32(config.near_zero)


def _all(evidence: Floats, config: EvidenceConfig) -> Bools:
    return np.ones(evidence.shape, np.bool_)


def _unweighted(evidence: Floats, config: EvidenceConfig) -> Floats:
    return np.ones(evidence.shape, np.float32)


def _rlsd(evidence: Floats, config: EvidenceConfig) -> Floats:
    """clip(exp(e_t), 1-eps, 1+eps), RLSD without verifier (arXiv 2604.03128). 1+eps < e, so the minimum only
    keeps exp from overflowing."""
    weight: Floats = np.clip(
        np.exp(np.minimum(evidence, np.float32(1))), np.float32(1 - config.soft_eps), np.float32(1 + config.soft_eps)
    )
    return weight


EVIDENCE_KINDS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "teacher_contrast": teacher_contrast,
}

REGIONS: dict[str, Callable[[Floats, EvidenceConfig], Bools]] = {
    "pos": _pos,
    "neg": _neg,
    "near_zero": _near_zero,
    "all": _all,
}

SOFT_WEIGHTS: dict[str, Callable[[Floats, EvidenceConfig], Floats]] = {
    "none": _unweighted,
    "rlsd": _rlsd,
}


def remask(evidence: Floats, config: EvidenceConfig) -> Bools:
    """m_t, [T]: the tokens of the configured region. Strict at tau (e = tau is out), inclusive at near_zero."""
    return REGIONS[config.region](evidence, config)


def reweigh(evidence: Floats, config: EvidenceConfig) -> Floats:
    """w_t, [T] float32: the soft weight before the mask; 1 everywhere when `soft` is none."""
    return SOFT_WEIGHTS[config.soft](evidence, config)


def judge(scored: ScoredSample, config: EvidenceConfig) -> EvidenceRecord:
    """Evidence, soft weight and mask of one scored rollout; the reward stays None.

    With an empty context both teacher passes are equal, so e = 0 and the pos mask (tau 0) is empty.
    ValueError names the rollout when a per-token stream is not as long as the response or a log-prob is not finite.
    """
    _check_streams(scored)
    evidence = EVIDENCE_KINDS[config.kind](scored.teacher_context_logprobs, scored.teacher_logprobs)
    return EvidenceRecord(
        scored=scored,
        evidence=evidence,
        weight=reweigh(evidence, config),
        mask=remask(evidence, config),
        reward=None,
    )


def _check_streams(scored: ScoredSample) -> None:
    sample = scored.sample
    streams = {
        "sampler_logprobs": sample.sampler_logprobs,
        "teacher_context_logprobs": scored.teacher_context_logprobs,
        "teacher_logprobs": scored.teacher_logprobs,
    }
    where = f"rollout {sample.request.rollout_id}"
    expected = (len(sample.response_ids),)
    for name, values in streams.items():
        if values.shape != expected:
            raise ValueError(f"{where}: {name}: found shape {values.shape}, expected {expected} as response_ids")
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            raise ValueError(f"{where}: {name}: found {values[bad[0]]} at token {bad[0]}, expected a finite log-prob")
