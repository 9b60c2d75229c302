"""A model that thinks before it answers: what of a response is its answer.

A thought stands between two tags. The first may be the end of the prompt, where the template opens the block; a
response that ends inside its thought has no answer, and one thought may follow another.
"""

import re
from dataclasses import dataclass

# How a thought begins and ends, in the words of the families that think.
TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<THINKING>", "</THINKING>"),
    ("<start_working_out>", "<end_working_out>"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|start_think|>", "<|end_think|>"),
    ("<|think:start|>", "<|think:end|>"),
    ("<|open|>think<|sep|>", "<|open|>response<|sep|>"),
    ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
    ("<|think|>", "<|content|>"),
    ("<|channel>thought", "<channel|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
CLOSES = {"<|think|>": "<|end|>"}  # an empty thought in a prompt, of a family whose answers have a mark of their own
QUOTED = "[\\s\"'`(]"  # what stands before a tag that an answer speaks of
SWITCHES = (  # variables of a template
    "enable_thinking", "thinking", "reasoning_effort", "reasoning", "thinking_effort", "thinking_budget",
    "thinking_mode",
)  # fmt: skip


@dataclass(frozen=True)
class Opened:
    """The thinking block that a prompt leaves open: its tags, both empty where it leaves none."""

    begins: str = ""
    ends: str = ""


def opened_by(prompt_end: str) -> Opened:
    """The block that the end of a prompt, what stands after its last question, leaves open."""
    last = max(TAGS, key=lambda tags: prompt_end.rfind(tags[0]))
    closed = max(prompt_end.rfind(ends) for ends in (last[1], CLOSES.get(last[0], last[1])))
    return Opened(*last) if prompt_end.rfind(last[0]) > closed else Opened()


def answer_of(response: str, opened: Opened | None = None) -> str:
    """What follows the thinking in a response's text: "" where it ends inside, all of it where there is none.

    opened: by the response's prompt. None: it is not known, as behind a server; a tag that ends a thought then does so
    unless the text speaks of it.
    """
    begun = opened.begins if opened is not None else ""
    rest = response if opened is not None or _begins(response) else _after_an_end(response)
    while tags := _begins(rest, begun):
        _, closed, rest = rest.partition(tags[1])
        if not closed:
            return ""
        rest, begun = rest.lstrip(), ""
    return rest


def _begins(text: str, begun: str = "") -> tuple[str, str] | None:
    """The tags of the thought that the text begins with, or is inside from its beginning."""
    text = text.lstrip()
    return next((tags for tags in TAGS if tags[0] == begun or text.startswith(tags[0])), None)


def _after_an_end(response: str) -> str:
    """What follows the first tag that ends a thought, of a response whose prompt may have opened one."""
    for _, ends in TAGS:
        found = re.search(rf"(?:\A|\n|(?<!{QUOTED})){re.escape(ends)}", response)
        if found:
            return response[found.end() :].lstrip()
    return response
