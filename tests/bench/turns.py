"""One run in which every second step does something more: what that costs."""

import statistics

from tests.bench.figures import Figure


def say(name: str, seconds: dict[int, float], target: str) -> None:
    """The median ratio of a step with an even number to the mean of its neighbours. seconds: by step."""
    ratios = [
        2 * seconds[k] / (seconds[k - 1] + seconds[k + 1])
        for k in seconds
        if k % 2 == 0 and {k - 1, k + 1} <= seconds.keys()
    ]
    error = statistics.stdev(ratios) / len(ratios) ** 0.5
    note = f"{len(ratios)} pairs, standard error {error:.3f}, step {statistics.median(seconds.values()):.2f} s"
    Figure(name, statistics.median(ratios), target, note).say()
