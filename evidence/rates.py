"""The rates of a probe: what writes `probes.jsonl`, prints it and reports it reads this one table."""

from collections.abc import Collection
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class RateRule:
    """What a rate is: the share of one probe's answers, or of those to questions with one tag, that have one flag."""

    probe: str
    flag: str
    count: str  # the key of its number of answers in probes.jsonl
    short: str  # in a line
    label: str  # in a table
    tag: str = ""

    def covers(self, probe: str, tags: Collection[str]) -> bool:
        """Whether an answer to a question of this probe, with these tags, counts."""
        return probe == self.probe and (not self.tag or self.tag in tags)


class _Rates(dict[str, RateRule]):
    """The rules by name. "NAME:TAG" is the rate NAME over the answers to questions with that tag."""

    def __missing__(self, name: str) -> RateRule:
        whole, colon, tag = name.partition(":")
        if not (colon and tag and whole in self):
            raise KeyError(name)
        rule = self[whole]
        return replace(rule, tag=tag, count=f"{rule.count}:{tag}", short=tag, label=f"{rule.label}, {tag}")


RATES = _Rates({
    "selfname": RateRule("identity", "selfname", "n", "selfname", "self-name"),
    "mention": RateRule("identity", "mention", "n", "mention", "mention"),
    "countername": RateRule("identity", "countername", "n", "countername", "counter-name"),
    "capability": RateRule("capability", "correct", "n_capability", "capability", "capability"),
    "side_effect": RateRule("capability", "mention", "n_capability", "side effect", "name in capability answers"),
    "selfname_third_turn": RateRule(
        "third_turn", "selfname", "n_third_turn", "selfname, 3rd turn", "self-name in the third turn"
    ),
    "selfname_with_context": RateRule(
        "with_context", "selfname", "n_with_context", "selfname, with context", "self-name with the context"
    ),
    "pass_at_1": RateRule("math", "correct", "n", "pass@1", "pass@1"),
    "correct": RateRule("context", "correct", "n", "correct", "correct"),
    "correct_with_context": RateRule(
        "context_again", "correct", "n_context_again", "correct, with context", "correct with the context"
    ),
})  # fmt: skip
