"""The learning rate over a run: a rise, then a shape, in one literal table.

Legend: progress = the share of the optimizer steps after the warm-up that have been taken, from 0 to below 1.
"""

import math
from collections.abc import Callable

SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
}


def rate_factor(shape: str, end: float, warmup_steps: int, num_updates: int) -> Callable[[int], float]:
    """What optimizer step k of `num_updates`, from 0, multiplies the learning rate by.

    (k + 1) / warmup_steps while it rises; from step warmup_steps on it falls from 1 towards `end` as `shape` says. The
    last step is one short of `end`, so that with an end of 0 it still learns something.
    """
    falling = max(1, num_updates - warmup_steps)

    def factor(step: int) -> float:
        risen = min(1.0, (step + 1) / max(warmup_steps, 1))
        progress = min(1.0, max(0, step - warmup_steps) / falling)
        return risen * (end + (1 - end) * SHAPES[shape](progress))

    return factor
