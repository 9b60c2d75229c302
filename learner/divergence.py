"""Divergences of a teacher's and a student's next-token distributions, from logits, position by position.

Legend: C = positions (a chunk of them), V = vocabulary, B = buckets that a distribution is compared in: V, or the
teacher's top K and one tail.

Written in tensors' own methods, so that a recipe's names are checked on a machine without torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# (teacher's log-probs [C, B], student's log-probs [C, B], jsd_beta) to what each bucket contributes, [C, B].
Contributions = Callable[["Tensor", "Tensor", float], "Tensor"]
# (teacher's logits [C, V], student's logits [C, V]) to a divergence [C], differentiable in the student's.
Divergence = Callable[["Tensor", "Tensor"], "Tensor"]


def forward_kl(teacher_CB: Tensor, student_CB: Tensor, jsd_beta: float) -> Tensor:
    """KL(T || S): T (log T - log S)."""
    return teacher_CB.exp() * (teacher_CB - student_CB)


def reverse_kl(teacher_CB: Tensor, student_CB: Tensor, jsd_beta: float) -> Tensor:
    """KL(S || T): S (log S - log T)."""
    return student_CB.exp() * (student_CB - teacher_CB)


def jsd(teacher_CB: Tensor, student_CB: Tensor, jsd_beta: float) -> Tensor:
    """Generalised JSD of GKD (arXiv 2306.13649): b KL(T || M) + (1 - b) KL(S || M), with M = b T + (1 - b) S.

    b weighs the teacher, in the mixture and in the sum, as in deepspeed.runtime.rollout.generalized_jsd_loss. Divided
    by b it becomes the forward KL as b goes to 0, divided by 1 - b the reverse KL as b goes to 1.
    """
    mixture_CB = (teacher_CB + math.log(jsd_beta)).logaddexp(student_CB + math.log1p(-jsd_beta))
    from_teacher_CB, from_student_CB = (own.exp() * (own - mixture_CB) for own in (teacher_CB, student_CB))
    return jsd_beta * from_teacher_CB + (1 - jsd_beta) * from_student_CB


def divergence(contributions: Contributions, *, top_k: int, clip: float, jsd_beta: float) -> Divergence:
    """The divergence as a function of both logits: the sum over buckets of their contributions.

    top_k: 0 compares the whole vocabulary; otherwise the buckets are the teacher's K likeliest tokens and one tail,
    which holds all other mass of each side.
    clip: 0 for none; otherwise each bucket's contribution is bounded from above, as OPSD does (arXiv 2601.18734), so
    that a few tokens of style do not rule the loss. What is clipped has no gradient.
    """

    def of(teacher_CV: Tensor, student_CV: Tensor) -> Tensor:
        top_CK = teacher_CV.topk(top_k, dim=1).indices if 0 < top_k < teacher_CV.shape[1] else None
        terms_CB = contributions(_bucketed(teacher_CV, top_CK), _bucketed(student_CV, top_CK), jsd_beta)
        return (terms_CB.clamp(max=clip) if clip else terms_CB).sum(dim=1)

    return of


def _bucketed(logits_CV: Tensor, top_CK: Tensor | None) -> Tensor:
    """Log-probs [C, B]. The tail is summed by itself: 1 minus the top's mass would lose all its digits when small."""
    if top_CK is None:
        return logits_CV.log_softmax(dim=1)
    import torch

    tail_C = logits_CV.scatter(1, top_CK, -math.inf).logsumexp(dim=1)
    return torch.cat([logits_CV.gather(1, top_CK), tail_C[:, None]], dim=1).log_softmax(dim=1)
