"""One run in which one step of each two, drawn by chance, does something more: what that costs.

Prompts come in an order that has a period, so a fixed step of two could always have the longer ones.
"""

import math
import random
import statistics

from tests.bench.figures import Figure


def more(step: int) -> bool:
    """Whether it is the one of its pair, 2k and 2k + 1, that does more."""
    return (random.Random(step // 2).random() < 0.5) == (step % 2 == 0)


def say(name: str, spent: dict[int, float], target: str) -> None:
    """The geometric mean, over pairs, of a step that does more to the other. spent: seconds by step."""
    logs = [math.log(spent[k] / spent[k ^ 1]) for k in spent if more(k) and k ^ 1 in spent]
    error = statistics.stdev(logs) / len(logs) ** 0.5
    note = f"{len(logs)} pairs, standard error {error:.3f}, step {statistics.median(spent.values()):.2f} s"
    Figure(name, math.exp(statistics.mean(logs)), target, note).say()
