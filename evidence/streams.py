"""What a rule may look at: the log-probs of a whole step, its rollouts one after the other.

Legend: N = response tokens of all rollouts of a step, R = rollouts, W = wrong contexts. Log-probs are natural
logarithms in float32. A step is judged as a whole: a quantile looks at all of its tokens, an advantage at a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evidence.records import Floats, ScoredSample


@dataclass(frozen=True, eq=False)
class StepStreams:
    """One step, from scored samples or from its shard. None: a stream that this step was not scored for."""

    step: int
    lengths_R: Sequence[int]
    advantages_R: Sequence[float | None]  # None: the rollout has no reward
    teacher_context_N: Floats  # log pi_T(y|x,r)
    teacher_N: Floats  # log pi_T(y|x)
    student_N: Floats | None  # log pi_theta(y|x), of the student engine at rollout time
    wrong_context_WN: Floats | None  # log pi_T(y|x,r_w)

    def advantage_N(self) -> NDArray[np.float64]:
        """Each token's rollout's advantage; nan where it has none."""
        return np.repeat(np.array(self.advantages_R, np.float64), self.lengths_R)

    def rows(self, values_N: NDArray[Any]) -> list[NDArray[Any]]:
        """A per-token array as one view a rollout."""
        return [values_N[start:stop] for start, stop in pairwise(accumulate(self.lengths_R, initial=0))]


def scored_streams(scored: Sequence[ScoredSample], advantages: Sequence[float | None], step: int) -> StepStreams:
    """The streams of freshly scored samples.

    ValueError names the rollout when a per-token stream is not as long as the response or a log-prob is not finite.
    """
    for one in scored:
        _check_lengths(one)
    if not are_finite(scored):
        bad, found = next((one, found) for one in scored if (found := not_finite(one)))
        raise ValueError(f"rollout {bad.sample.request.rollout_id}: {found}, expected a finite log-prob")
    return StepStreams(
        step=step,
        lengths_R=[len(one.sample.response_ids) for one in scored],
        advantages_R=advantages,
        teacher_context_N=joined([one.teacher_context_logprobs for one in scored]),
        teacher_N=joined([one.teacher_logprobs for one in scored]),
        student_N=_student(scored),
        wrong_context_WN=by_wrong_context([one.wrong_context_logprobs for one in scored]),
    )


def joined(parts: Sequence[Floats]) -> Floats:
    """[N] of one array a rollout; also of none."""
    return np.concatenate([np.empty(0, np.float32), *parts])


def by_wrong_context(rows: Sequence[Sequence[Floats]]) -> Floats | None:
    """[W, N] from each rollout's W arrays; None unless every rollout has the same W, more than 0."""
    counts = {len(row) for row in rows}
    if len(counts) != 1 or counts == {0}:
        return None
    return np.stack([joined(parts) for parts in zip(*rows, strict=True)])


def _student(scored: Sequence[ScoredSample]) -> Floats | None:
    known = [one.student_logprobs for one in scored if one.student_logprobs is not None]
    return joined(known) if len(known) == len(scored) else None


def log_probs(scored: ScoredSample) -> dict[str, Floats]:
    """By name, all that there are of a rollout."""
    known = {
        "sampler_logprobs": scored.sample.sampler_logprobs,
        "teacher_context_logprobs": scored.teacher_context_logprobs,
        "teacher_logprobs": scored.teacher_logprobs,
    }
    if scored.student_logprobs is not None:
        known["student_logprobs"] = scored.student_logprobs
    for index, values in enumerate(scored.wrong_context_logprobs):
        known[f"wrong_context_logprobs {index}"] = values
    return known


def are_finite(scored: Sequence[ScoredSample]) -> bool:
    """Whether all log-probs of all rollouts are finite numbers: one look, where `not_finite` is one a rollout."""
    return bool(np.isfinite(joined([values for one in scored for values in log_probs(one).values()])).all())


def not_finite(scored: ScoredSample) -> str:
    """The first log-prob of a rollout that is not a finite number: its stream, value and place; empty where all are."""
    for name, values in log_probs(scored).items():
        finite = np.isfinite(values)
        if not finite.all():
            bad = int(np.argmin(finite))
            return f"{name}: found {values[bad]} at token {bad}"
    return ""


def _check_lengths(scored: ScoredSample) -> None:
    expected = scored.sample.response_ids.shape
    for name, values in log_probs(scored).items():
        if values.shape != expected:
            where = f"rollout {scored.sample.request.rollout_id}: {name}"
            raise ValueError(f"{where}: found shape {values.shape}, expected {expected} as response_ids")
