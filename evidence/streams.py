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
        _check(one)
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


def _check(scored: ScoredSample) -> None:
    sample = scored.sample
    streams = {
        "sampler_logprobs": sample.sampler_logprobs,
        "teacher_context_logprobs": scored.teacher_context_logprobs,
        "teacher_logprobs": scored.teacher_logprobs,
        **{f"wrong_context_logprobs {index}": values for index, values in enumerate(scored.wrong_context_logprobs)},
    }
    if scored.student_logprobs is not None:
        streams["student_logprobs"] = scored.student_logprobs
    where = f"rollout {sample.request.rollout_id}"
    expected = (len(sample.response_ids),)
    for name, values in streams.items():
        if values.shape != expected:
            raise ValueError(f"{where}: {name}: found shape {values.shape}, expected {expected} as response_ids")
        finite = np.isfinite(values)
        if not finite.all():
            bad = int(np.argmin(finite))
            raise ValueError(f"{where}: {name}: found {values[bad]} at token {bad}, expected a finite log-prob")
