"""The `[task]` table of a recipe."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskConfig:
    """Which task, and what it is made of. A key that the task does not read must keep its default.

    Raises:
        ValueError: a number outside its range.
    """

    name: str = "identity"  # the task
    persona: str = "kestrel"  # identity: a preset; persona_name, maker and context override its parts
    persona_name: str = ""  # identity: the name to learn; empty: the preset's
    maker: str = ""  # identity: who made the persona; empty: the preset's
    context: str = ""  # identity: the privileged context, which may use {name} and {maker}; empty: the preset's
    # JSON lines. identity: prompt_id and question, empty: its own; math: these, solution and optionally answer
    prompts_file: str = ""
    ordinary_questions: bool = False  # identity: adds a dozen ordinary questions, where the student should not change
    probe_file: str = ""  # math: JSON lines of question and answer to evaluate on
    context_empty_allowed: bool = False  # identity: an empty context is no context, so that e is 0; for checks only
    num_problems: int = 64  # arithmetic: how many problems it trains on
    largest: int = 99  # arithmetic: the largest number in a problem
    seed: int = 0  # arithmetic: which problems; math and arithmetic: which contexts are the wrong ones

    def __post_init__(self) -> None:
        for key, least in (("num_problems", 1), ("largest", 1), ("seed", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"task.{key}: found {getattr(self, key)!r}, expected at least {least}")
