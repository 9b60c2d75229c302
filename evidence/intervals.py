"""95% intervals of rates and of their differences. Pure."""

import math

Z_95 = 1.959963984540054  # the 97.5% point of the standard normal


def wilson(k: int, n: int) -> tuple[float, float]:
    """The 95% Wilson score interval of k successes in n trials; (0, 1) for n = 0.

    Raises:
        ValueError: not 0 <= k <= n.
    """
    if not 0 <= k <= n:
        raise ValueError(f"wilson: found {k} successes in {n} trials, expected 0 <= successes <= trials")
    if n == 0:
        return 0.0, 1.0
    rate, z2 = k / n, Z_95 * Z_95
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    low = 0.0 if k == 0 else max(0.0, centre - half)
    high = 1.0 if k == n else min(1.0, centre + half)
    return low, high


def newcombe(k1: int, n1: int, k2: int, n2: int) -> tuple[float, float]:
    """The 95% interval of k1/n1 - k2/n2, independent samples: Newcombe (1998), Statistics in Medicine 17, method 10.

    It squares and adds the distances from each rate to its Wilson bounds.

    Raises:
        ValueError: a sample without trials, or not 0 <= successes <= trials.
    """
    if not (n1 and n2):
        raise ValueError(f"newcombe: found samples of {n1} and {n2} trials, expected at least one each")
    p1, p2 = k1 / n1, k2 / n2
    (low1, high1), (low2, high2) = wilson(k1, n1), wilson(k2, n2)
    return p1 - p2 - math.hypot(p1 - low1, high2 - p2), p1 - p2 + math.hypot(high1 - p1, p2 - low2)
