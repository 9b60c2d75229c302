"""The `[task]` table of a recipe."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskConfig:
    """Which task, and what it is made of. A key that the task does not read must keep its default.

    `persona` names a preset; `persona_name`, `maker` and `context`, where not empty, override its parts. A context
    may use {name} and {maker}. With `context_empty_allowed` an empty `context` means an empty r instead of the
    preset's text, so that e_t is 0 everywhere: for checks, not for training.

    Raises:
        ValueError: a number outside its range.
    """

    name: str = "identity"  # identity, math or arithmetic
    persona: str = "kestrel"  # a preset
    persona_name: str = ""  # in the place of the preset's; so the next two
    maker: str = ""  # who made it
    context: str = ""  # r, a text with {name} and {maker}
    prompts_file: str = ""  # JSON lines: {"prompt_id", "question"}, empty: its own; math: also "solution", "answer"
    ordinary_questions: bool = False  # identity: a dozen of its own beside them, where the student should stay as it is
    probe_file: str = ""  # math: JSON lines of {"question", "answer"}
    context_empty_allowed: bool = False  # an empty context means an empty r: for checks
    num_problems: int = 64  # arithmetic: how many it trains on
    largest: int = 99  # arithmetic: the largest number in a problem
    seed: int = 0  # arithmetic: which problems; math and arithmetic: which contexts are the wrong ones

    def __post_init__(self) -> None:
        for key, least in (("num_problems", 1), ("largest", 1), ("seed", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"task.{key}: found {getattr(self, key)!r}, expected at least {least}")
