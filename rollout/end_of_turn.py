"""Which token ids end an assistant's turn: found in the template, in the middle of a conversation."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from rollout.template import ChatTemplate, Refusal, messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWER, NEXT, THOUGHT = "an evidence-marker answered", "a second evidence-marker asked", "an evidence-marker thought"
THOUGHT_KEYS = ("thinking", "reasoning", "reasoning_content", "thought")  # names that templates use
ASK = ("user", "a first evidence-marker asked")


def end_token_ids(
    template: ChatTemplate, tokenizer: "PreTrainedTokenizerBase", own: Collection[int]
) -> tuple[int, ...]:
    """`own`, the ids that the tokenizer and generation_config call ends, and the template's end of turn.

    The template's is the first special token between an answer and what opens the next question's turn, or where there
    is none, the first of what opens it: the next role's. Where one of `own` stands there, that one ends the turn, and
    what comes before it is a mark inside the turn; so is what stands between an answer and the thought before it, as
    where both are messages.

    Raises:
        ValueError: the template refuses such a conversation or does not show its answer, or there is no end at all.
    """

    def marks(text: str) -> list[int]:
        special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
        return [int(token) for token in tokenizer.encode(text, add_special_tokens=False) if token in special]

    between, opening = _after_answer(template), template.text((ASK,)).partition(ASK[1])[0]
    after = (marks(between.removesuffix(opening)) if opening else []) or marks(between)
    inside = marks(_after_thought(template))
    ends = {*own} if {*own}.intersection(after) else {*own, *[token for token in after if token not in inside][:1]}
    if not ends:
        raise ValueError(f"{template.model}: found no end-of-sequence token, expected a tokenizer that has one")
    return tuple(sorted(ends))


def _after_answer(template: ChatTemplate) -> str:
    """What the template writes after an answer, up to the next question."""
    _, shown, after = template.text((ASK, ("assistant", ANSWER), ("user", NEXT))).partition(ANSWER)
    if not shown or NEXT not in after:
        raise ValueError(
            f"{template.model}: found a chat template that does not show an assistant's text, expected one that does: "
            "the end of a turn is read after it"
        )
    return after.partition(NEXT)[0]


def _after_thought(template: ChatTemplate) -> str:
    """What it writes between a thought and its answer, of a template that shows thoughts."""
    answer = {"role": "assistant", "content": ANSWER, **dict.fromkeys(THOUGHT_KEYS, THOUGHT)}
    try:
        (text,) = template.texts([[*messages((ASK,)), answer]], generation_prompt=False)
    except Refusal:
        return ""
    return text.partition(THOUGHT)[2].partition(ANSWER)[0] if ANSWER in text.partition(THOUGHT)[2] else ""
