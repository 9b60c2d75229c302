"""What it costs to learn from groups in the order in which they began, where rollouts are of very unequal length.

    python -m tests.bench.group_order

In virtual time (tests/long_tail.py), so that no machine's speed is in it. Each figure is a mean over ten seeds, with
its standard error.
"""

from dataclasses import replace
from statistics import mean, stdev

from tests.bench.figures import Figure
from tests.long_tail import Tail, outcome

SEEDS = 10


def main() -> None:
    for sigma in (0.5, 1.0):
        for fills in (4, 2, 1):
            for lag in (1, 2, 4):
                tail = Tail(lag, "begun", sigma, groups=8 * fills, steps=240 // fills)
                pairs = [
                    (outcome(replace(tail, seed=seed)), outcome(replace(tail, seed=seed, order="done")))
                    for seed in range(SEEDS)
                ]
                ratios = [begun.useful / done.useful for begun, done in pairs]
                short = [mean(done.learned) / mean(begun.learned) for begun, done in pairs]
                print(
                    f"sigma {sigma}, a step fills the engines {fills} times, lag {lag}: "
                    f"useful {mean(ratios):.3f} +- {stdev(ratios) / SEEDS**0.5:.3f}, "
                    f"mean length learned from, done over begun {mean(short):.3f}, "
                    f"discarded {mean(done.dropped / len(done.learned) for _, done in pairs):.3f}"
                )
                if fills == 2:
                    name = f"useful time, order begun over done, sigma {sigma}, lag {lag}"
                    Figure(name, mean(ratios), ">= 0.97").say()


if __name__ == "__main__":
    main()
