"""A model that thinks before it answers: what of a response is its answer.

A thought stands between two tags. The first may be the end of the prompt, where the template opens the block; a
response that ends inside its thought has no answer.
"""

from dataclasses import dataclass

# How a thought begins and ends, in the words of the families that think.
TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
SWITCHES = ("enable_thinking", "thinking", "reasoning_effort", "reasoning", "thinking_budget", "thinking_mode")


@dataclass(frozen=True)
class Opened:
    """The thinking block that a prompt leaves open: its tags, both empty where it leaves none."""

    begins: str = ""
    ends: str = ""


def opened_by(prompt_end: str) -> Opened:
    """The block that the end of a prompt, what stands after its last question, leaves open."""
    last = max(TAGS, key=lambda tags: prompt_end.rfind(tags[0]))
    is_open = prompt_end.rfind(last[0]) > prompt_end.rfind(last[1])
    return Opened(*last) if is_open else Opened()


def answer_of(response: str, opened: Opened = Opened()) -> str:
    """What follows the thinking in a response's text: "" where it ends inside, all of it where there is none."""
    for begins, ends in TAGS:
        is_thought = begins == opened.begins or response.lstrip().startswith(begins)
        _, closed, after = response.partition(ends)
        if closed or is_thought:
            return after.lstrip() if closed else ""
    return response
