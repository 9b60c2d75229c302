"""What a batch of judged tokens looks like: sums that add over rows, micro-batches and ranks, and their means.

Legend: N = response tokens of any number of rollouts, concatenated. Sums are float64.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from evidence.records import Floats
from evidence.sums import Sums

LEVERAGE_THRESHOLD = 0.05  # of |exp(e) - 1|: EDGE-OPD's rho_lev
# The means of a summary: each a sum over a count.
MEANS = {
    "kept": ("active", "tokens"),
    "leverage": ("levered", "tokens"),
    "mean_evidence": ("evidence", "tokens"),
    "mean_abs_evidence": ("abs_evidence", "tokens"),
    "mean_abs_weight_shift": ("abs_weight_shift", "active"),
    "mean_response_length": ("tokens", "rows"),
    "agreement": ("agreeing", "student_tokens"),
    "k1": ("surprise", "student_tokens"),
}
STUDENT_MEANS = ("agreement", "k1")  # known only where a student ran
SPLITS = ("all", "guided", "plain")


@dataclass(frozen=True)
class TokenStats(Sums):
    """Sums over the tokens of judged rollouts.

    `student_passes` counts the `diagnose` calls that had a student: without one, agreement and k1 are unknown.
    """

    rows: Annotated[int, "rollouts", "judged"] = 0
    tokens: Annotated[int, "tokens", "of their responses"] = 0
    active: Annotated[int, "tokens", "whose weight is not 0"] = 0
    levered: Annotated[int, "tokens", "active, with |exp(e) - 1| above 0.05"] = 0
    evidence: Annotated[float, "nats", "sum of e"] = 0.0
    abs_evidence: Annotated[float, "nats", "sum of |e|"] = 0.0
    abs_weight_shift: Annotated[float, "", "sum of |w - 1| over the active tokens"] = 0.0
    student_passes: Annotated[int, "", "how often a student was asked; 0: agreement and k1 are unknown"] = 0
    student_tokens: Annotated[int, "tokens", "that the student ran"] = 0
    agreeing: Annotated[int, "tokens", "that the student ran, where e and its surprise have one direction"] = 0
    surprise: Annotated[float, "nats", "sum of log pi_theta(y|x) - log pi_T(y|x,r), of those that it ran"] = 0.0

    def summary(self) -> dict[str, float]:
        """The step's diagnostics, as fractions of tokens, nats a token, and counts. A mean over nothing is 0.0.

        agreement and k1 are means over the `student_tokens` that a student ran; the three are absent when none was
        given.
        """
        known = {name: _mean(*self.parts(name)) for name in MEANS if name not in STUDENT_MEANS}
        known |= {"tokens": float(self.tokens), "rows": float(self.rows)}
        if not self.student_passes:
            return known
        student = {name: _mean(*self.parts(name)) for name in STUDENT_MEANS}
        return known | student | {"student_tokens": float(self.student_tokens)}

    def parts(self, mean: str) -> tuple[float, int]:
        """The sum that `mean` (a key of `MEANS`) is made of, and the count that it is a mean over."""
        total, count = MEANS[mean]
        return getattr(self, total), getattr(self, count)


def _mean(total: float, count: int) -> float:
    return float(total) / count if count else 0.0


def diagnose(
    evidence: Floats,
    weight: Floats,
    student_logprobs: Floats | None,
    teacher_context_logprobs: Floats,
    *,
    rows: int,
) -> TokenStats:
    """Sums over the concatenated tokens of `rows` rollouts. EDGE-OPD (arXiv 2605.23493), training diagnostics.

    evidence [N]: e_t in nats. weight [N]: w_t with the mask already applied, so a token is active where it is not 0.
    student_logprobs [N]: log pi_theta(y_t|x,y<t), or None offline. teacher_context_logprobs [N]: log pi_T(y_t|x,r,y<t).
    Leverage: |exp(e)-1| > 0.05 and active. Agreement: sign e = -sign delta, delta = student - teacher_context,
    over all tokens (0 agrees with 0). ValueError when the arrays differ in shape.
    """
    _check_shapes(evidence, weight, student_logprobs, teacher_context_logprobs)
    e, w = evidence.astype(np.float64), weight.astype(np.float64)
    active = w != 0
    levered = active & (np.abs(np.expm1(np.minimum(e, 1.0))) > LEVERAGE_THRESHOLD)  # the minimum avoids an overflow
    stats = TokenStats(
        rows=rows,
        tokens=e.size,
        active=int(active.sum()),
        levered=int(levered.sum()),
        evidence=float(e.sum()),
        abs_evidence=float(np.abs(e).sum()),
        abs_weight_shift=float(np.abs(w[active] - 1.0).sum()),
    )
    if student_logprobs is None:
        return stats
    return stats + _student_stats(e, student_logprobs.astype(np.float64) - teacher_context_logprobs)


def _student_stats(e: NDArray[np.float64], delta: NDArray[np.float64]) -> TokenStats:
    return TokenStats(
        student_passes=1,
        student_tokens=e.size,
        agreeing=int((np.sign(e) == -np.sign(delta)).sum()),
        surprise=float(delta.sum()),
    )


def _check_shapes(evidence: Floats, weight: Floats, student: Floats | None, teacher_context: Floats) -> None:
    others = {"weight": weight, "student_logprobs": student, "teacher_context_logprobs": teacher_context}
    for name, values in others.items():
        if values is not None and values.shape != evidence.shape:
            raise ValueError(f"{name}: found shape {values.shape}, expected {evidence.shape} as evidence")


def split_stats(stats: Iterable[tuple[bool, TokenStats]]) -> dict[str, TokenStats]:
    """The sums of all rollouts, of the guided and of the plain ones (`SPLITS`), from (guided, stats) pairs."""
    pairs = list(stats)
    return {
        "all": sum((part for _, part in pairs), TokenStats()),
        "guided": sum((part for guided, part in pairs if guided), TokenStats()),
        "plain": sum((part for guided, part in pairs if not guided), TokenStats()),
    }


def summaries(splits: Mapping[str, TokenStats]) -> dict[str, dict[str, float]]:
    """Each split's summary. They have the same keys, also where a split is empty."""
    passes = splits["all"].student_passes
    return {name: replace(part, student_passes=passes).summary() for name, part in splits.items()}


def split_summary(stats: Iterable[tuple[bool, TokenStats]]) -> dict[str, dict[str, float]]:
    """`summaries` of `split_stats`."""
    return summaries(split_stats(stats))
