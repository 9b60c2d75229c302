"""The `[task]` table of a recipe."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskConfig:
    """Which task, which persona, and whose questions.

    `persona` names a preset; `persona_name`, `maker` and `context`, where not empty, override its parts. A context
    may use {name} and {maker}. With `context_empty_allowed` an empty `context` means an empty r instead of the
    preset's text, so that e_t is 0 everywhere: for checks, not for training.
    """

    name: str = "identity"
    persona: str = "kestrel"
    persona_name: str = ""
    maker: str = ""
    context: str = ""
    prompts_file: str = ""  # JSON lines of {"prompt_id": str, "question": str}; empty = the task's own questions
    context_empty_allowed: bool = False
