r"""OpenThoughts-114K as math training rows: the filter of the paper's data section. Pure: rows in, rows or rules out.

The dataset comes in two layouts with the same problems: `metadata`, a column each for problem, reasoning and solutions,
and `default`, a conversation whose answer holds tagged thought and solution.
"""

import heapq
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rollout.tasks.boxed import is_single_expression, last_boxed
from rollout.tasks.turns import ROLES

MAX_PROBLEM_CHARS = 4096
MAX_REASONING_CHARS = 6000

# What the default layout puts before a problem; the metadata layout does not.
INSTRUCTION = r"Return your final response within \boxed{}."


@dataclass(frozen=True)
class Example:
    """One dataset row, whatever its layout; a text that the row lacks is empty."""

    problem: str
    reasoning: str  # r
    answer: str  # content of the last \boxed{} of the reference solution


NOTHING = Example("", "", "")


@dataclass(frozen=True)
class Layout:
    """Columns that tell a layout, and how one of its rows is read."""

    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Example]


def _read_metadata(row: Mapping[str, Any]) -> Example:
    """The reference solution is the ground truth where that boxes its answer, else DeepSeek's, checked against it."""
    answer = last_boxed(row["ground_truth_solution"] or "") or last_boxed(row["deepseek_solution"] or "")
    return Example((row["problem"] or "").strip(), (row["deepseek_reasoning"] or "").strip(), (answer or "").strip())


def _read_default(row: Mapping[str, Any]) -> Example:
    """NOTHING of a conversation of more turns: the others would be lost."""
    turns = row["conversations"] or ()
    said = {ROLES.get(turn["from"], turn["from"]): turn["value"] or "" for turn in turns}
    if len(said) < len(turns) or said.keys() - {"user", "assistant"}:
        return NOTHING
    problem = said.get("user", "").strip().removeprefix(INSTRUCTION).strip()
    reply = said.get("assistant", "")
    answer = last_boxed(_tagged(reply, "solution")) or ""
    return Example(problem, _tagged(reply, "thought"), answer.strip())


def _tagged(text: str, tag: str) -> str:
    found = re.search(rf"<\|begin_of_{tag}\|>(.*?)<\|end_of_{tag}\|>", text, re.DOTALL)
    return found[1].strip() if found else ""


LAYOUTS = {
    "metadata": Layout(("problem", "deepseek_reasoning", "deepseek_solution", "ground_truth_solution"), _read_metadata),
    "default": Layout(("conversations",), _read_default),
}


# What a row must pass, in this order: parsing comes last, as the only rule that takes milliseconds.
RULES: dict[str, Callable[[Example], bool]] = {
    "has a problem and a reasoning": lambda example: bool(example.problem and example.reasoning),
    "has a boxed answer": lambda example: bool(example.answer),
    f"problem <= {MAX_PROBLEM_CHARS} characters": lambda example: len(example.problem) <= MAX_PROBLEM_CHARS,
    f"reasoning <= {MAX_REASONING_CHARS} characters": lambda example: len(example.reasoning) <= MAX_REASONING_CHARS,
    "answer is one number, fraction or expression": lambda example: is_single_expression(example.answer),
}


def failed_rule(example: Example) -> str | None:
    """The first rule of `RULES` that the example fails; None where it passes all."""
    return next((name for name, passes in RULES.items() if not passes(example)), None)


def select(examples: Iterable[Example], limit: int, seed: int) -> tuple[list[dict[str, str]], Counter[str]]:
    """The first `limit` training rows of the shuffled examples that pass, and what became of all.

    Returns rows {"prompt_id", "question", "solution", "answer"}, where prompt_id counts the dataset's rows from 0, and
    counts by "read", each rule (what it dropped), "passed" and "kept". Holds `limit` examples at a time.
    """
    counts: Counter[str] = Counter()

    def passing() -> Iterable[tuple[int, Example]]:
        for number, example in enumerate(examples):
            rule = failed_rule(example)
            counts.update(["read", rule or "passed"])
            if rule is None:
                yield number, example

    # Sorting by random keys is a shuffle, and its first rows are those with the smallest keys.
    rng = random.Random(seed)
    chosen = heapq.nsmallest(limit, passing(), key=lambda _: rng.random())
    counts["kept"] = len(chosen)
    return [_row(number, example) for number, example in chosen], counts


def _row(number: int, example: Example) -> dict[str, str]:
    return {
        "prompt_id": f"openthoughts-{number}",
        "question": example.problem,
        "solution": example.reasoning,
        "answer": example.answer,
    }
