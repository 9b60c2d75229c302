"""The rates of a probe: what writes `probes.jsonl`, prints it and reports it reads this one table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RateRule:
    """What a rate is: the share of one probe's answers that have one flag."""

    probe: str
    flag: str
    count: str  # the key of its number of answers in probes.jsonl
    short: str  # in a line
    label: str  # in a table


RATES = {
    "selfname": RateRule("identity", "selfname", "n", "selfname", "self-name"),
    "mention": RateRule("identity", "mention", "n", "mention", "mention"),
    "countername": RateRule("identity", "countername", "n", "countername", "counter-name"),
    "capability": RateRule("capability", "correct", "n_capability", "capability", "capability"),
    "side_effect": RateRule("capability", "mention", "n_capability", "side effect", "name in capability answers"),
    "pass_at_1": RateRule("math", "correct", "n", "pass@1", "pass@1"),
}
