"""What evidence is: formulas from a step's log-probs to e_t, in one literal table.

Legend: N = response tokens of a whole step, W = wrong contexts. Natural logarithms; e is float32 [N], in nats.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from evidence.records import Floats
from evidence.streams import StepStreams


def teacher_contrast(streams: StepStreams) -> Floats:
    """e_t = log pi_T(y_t|x,r,y<t) - log pi_T(y_t|x,y<t). EDGE-OPD (arXiv 2605.23493)."""
    return _difference(streams.teacher_context_N, streams.teacher_N)


def teacher_student(streams: StepStreams) -> Floats:
    """e_t = log pi_T(y_t|x,r,y<t) - log pi_theta(y_t|x,y<t). RLSD (arXiv 2604.03128).

    The student is the engine's, at rollout time and under x, also for guided rollouts. ValueError without its stream.
    """
    if streams.student_N is None:
        raise _unscored("teacher_student", "student_logprobs")
    return _difference(streams.teacher_context_N, streams.student_N)


def contrastive(streams: StepStreams) -> Floats:
    """e_t = log pi_T(y_t|x,r,y<t) - mean over w of log pi_T(y_t|x,r_w,y<t): what speaks for r and for no wrong context.

    Equal to (evidence of r) - mean over w of (evidence of r_w): each of the two subtracts log pi_T(y_t|x,y<t), which
    does not depend on w, so it cancels. The form here never rounds it in. ValueError without the streams of r_w.
    """
    if streams.wrong_context_WN is None:
        raise _unscored("contrastive", "wrong_context_logprobs")
    return _difference(streams.teacher_context_N, streams.wrong_context_WN.mean(axis=0, dtype=np.float64))


def _difference(left: Floats, right: NDArray[np.floating]) -> Floats:
    """In float64, then rounded once: between two float32 numbers this is their float32 difference."""
    difference: Floats = np.subtract(left, right, dtype=np.float64).astype(np.float32)
    return difference


def _unscored(kind: str, stream: str) -> ValueError:
    return ValueError(f"evidence.kind: found {kind!r} and rollouts without {stream}, expected those of every rollout")


EVIDENCE_KINDS: dict[str, Callable[[StepStreams], Floats]] = {
    "teacher_contrast": teacher_contrast,
    "teacher_student": teacher_student,
    "contrastive": contrastive,
}
