"""What a rank says of a step. Apart from what makes it, so that its reader needs no DeepSpeed to unpack it."""

from dataclasses import dataclass, field

from evidence.diagnostics import TokenStats
from evidence.records import Floats


@dataclass(frozen=True)
class StepReport:
    """What one rank says of a step, of its first update unless said otherwise.

    metrics add up over ranks: rank 0 alone tells `lr`; `clip_fraction` is the share of the step's active tokens, over
    all later updates. `stats` are (guided, sums) per row, and `logprobs` log pi_old(y|x) [T] by
    rollout_id, of the rows that this rank ran.
    """

    loss: float
    metrics: dict[str, float]
    grad_norm: float
    row_tokens: int  # of the rows that were run, a prompt that they share counted in each
    skipped_rows: int
    stats: tuple[tuple[bool, TokenStats], ...]
    logprobs: dict[str, Floats] = field(default_factory=dict)
