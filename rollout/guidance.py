"""Who is guided: the share rho_g of one prompt's samples that are drawn from (x, r) instead of x."""

import math
from collections.abc import Callable

import numpy as np


def _fixed(n: int, fraction: float, rng: np.random.Generator) -> list[bool]:
    """Halves go up: Python's own round() would send .5 to the nearest even count."""
    guided = math.floor(fraction * n + 0.5)
    return [index < guided for index in range(n)]


def _bernoulli(n: int, fraction: float, rng: np.random.Generator) -> list[bool]:
    return [bool(draw < fraction) for draw in rng.random(n)]


SPLITS: dict[str, Callable[[int, float, np.random.Generator], list[bool]]] = {
    "fixed": _fixed,
    "bernoulli": _bernoulli,
}


def guided_flags(n: int, fraction: float, split: str, rng: np.random.Generator) -> list[bool]:
    """Which of a prompt's `n` samples are guided (arXiv 2605.23493).

    "fixed" guides exactly floor(fraction * n + 0.5), the guided ones first; "bernoulli" draws each independently.

    Raises:
        ValueError: negative n, fraction outside 0 to 1, or an unknown split.
    """
    if n < 0:
        raise ValueError(f"samples_per_prompt: found {n}, expected 0 or more")
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"guided_fraction: found {fraction}, expected a number from 0 to 1")
    if split not in SPLITS:
        raise ValueError(f"guided_split: found {split!r}, expected one of {', '.join(sorted(SPLITS))}")
    return SPLITS[split](n, fraction, rng)
