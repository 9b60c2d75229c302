r"""OpenThoughts-114K as math training rows: the filter of the paper's data section. Pure: rows in, rows or rules out.

The dataset comes in two layouts with the same problems: `metadata`, a column each for problem, reasoning and solutions,
and `default`, a conversation whose answer holds tagged thought and solution.
"""

import heapq
import logging
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# It warns that its timeout is off, which is on purpose.
logging.getLogger("math_verify.parser").setLevel(logging.ERROR)

MAX_PROBLEM_CHARS = 4096
MAX_REASONING_CHARS = 6000
MAX_ANSWER_CHARS = 200  # the parser has no deadline: a longer text is no single expression, and may take it minutes

# What the default layout puts before a problem; the metadata layout does not.
INSTRUCTION = r"Return your final response within \boxed{}."


@dataclass(frozen=True)
class Example:
    """One dataset row, whatever its layout; a text that the row lacks is empty."""

    problem: str
    reasoning: str  # r
    answer: str  # content of the last \boxed{} of the reference solution


@dataclass(frozen=True)
class Layout:
    """Columns that tell a layout, and how one of its rows is read."""

    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Example]


def _read_metadata(row: Mapping[str, Any]) -> Example:
    """The reference solution is the ground truth where that boxes its answer, else DeepSeek's, checked against it."""
    answer = last_boxed(row["ground_truth_solution"] or "") or last_boxed(row["deepseek_solution"] or "")
    return Example((row["problem"] or "").strip(), (row["deepseek_reasoning"] or "").strip(), answer)


def _read_default(row: Mapping[str, Any]) -> Example:
    said = {turn["from"]: turn["value"] or "" for turn in row["conversations"] or ()}
    problem = said.get("user", "").strip().removeprefix(INSTRUCTION).strip()
    reply = said.get("assistant", "")
    return Example(problem, _tagged(reply, "thought"), last_boxed(_tagged(reply, "solution")))


def _tagged(text: str, tag: str) -> str:
    found = re.search(rf"<\|begin_of_{tag}\|>(.*?)<\|end_of_{tag}\|>", text, re.DOTALL)
    return found[1].strip() if found else ""


LAYOUTS = {
    "metadata": Layout(("problem", "deepseek_reasoning", "deepseek_solution", "ground_truth_solution"), _read_metadata),
    "default": Layout(("conversations",), _read_default),
}


def last_boxed(text: str) -> str:
    r"""The content of the last \boxed{...}, braces inside it included; "" where there is none that closes."""
    starts = [found.end() for found in re.finditer(r"\\boxed\s*\{", text)]
    return _to_closing_brace(text[starts[-1] :]).strip() if starts else ""


def _to_closing_brace(text: str) -> str:
    depth = 1
    for brace in re.finditer(r"\\.|[{}]", text, re.DOTALL):  # \{ and \} are text
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[: brace.start()]
    return ""


def is_one_expression(answer: str) -> bool:
    """Whether an answer is a number, a fraction or one expression; `x = 5` is its right side.

    Sets, tuples, intervals, matrices and inequalities are not, nor are letters alone: a choice or a word.
    """
    words = re.sub(r"\\(?:text|math)\w*(?=\s*\{)", "", answer)
    if len(answer) > MAX_ANSWER_CHARS or re.fullmatch(r"[\sA-Za-z{}().,$]*", words):
        return False
    import sympy
    from math_verify import LatexExtractionConfig, parse

    config = [LatexExtractionConfig(boxed_match_priority=0)]
    # Without its own timeout, which is a signal of the main thread.
    values = parse(rf"\boxed{{{answer}}}", config, fallback_mode="no_fallback", parsing_timeout=None)
    if len(values) != 1:
        return False
    named = isinstance(values[0], sympy.Eq) and isinstance(values[0].lhs, sympy.Symbol)
    value = values[0].rhs if named else values[0]
    return isinstance(value, sympy.Expr) and not value.has(sympy.zoo, sympy.nan)


# What a row must pass, in this order: parsing comes last, as the only rule that takes milliseconds.
RULES: dict[str, Callable[[Example], bool]] = {
    "has a problem and a reasoning": lambda example: bool(example.problem and example.reasoning),
    "has a boxed answer": lambda example: bool(example.answer),
    f"problem <= {MAX_PROBLEM_CHARS} characters": lambda example: len(example.problem) <= MAX_PROBLEM_CHARS,
    f"reasoning <= {MAX_REASONING_CHARS} characters": lambda example: len(example.reasoning) <= MAX_REASONING_CHARS,
    "answer is one number, fraction or expression": lambda example: is_one_expression(example.answer),
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
