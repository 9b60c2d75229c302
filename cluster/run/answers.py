"""The answers in responses, which rates are over, and what is said of responses that have none."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rollout.render import Renderer

T = TypeVar("T")


def paired(prompts: Sequence[T], texts: Sequence[Sequence[str]]) -> Iterator[tuple[T, str]]:
    """Each prompt with each of its texts."""
    return ((prompt, text) for prompt, own in zip(prompts, texts, strict=True) for text in own)


def answered(
    responses: Sequence[tuple[T, str]], renderer: "Renderer", what: str, limit: str, say: Callable[[str], None]
) -> list[tuple[T, str]]:
    """Each prompt with what follows the thinking of its response.

    what: was asked. limit: the key that bounds a response, with its value. say: is told how many responses are a
    thought alone.
    """
    answers = [(prompt, renderer.answer(text)) for prompt, text in responses]
    thoughts = sum(
        not answer.strip() and bool(renderer.plain(text).strip() or renderer.opened.ends)
        for (_, text), (_, answer) in zip(responses, answers, strict=True)
    )
    if thoughts:
        say(
            f"{what}: {thoughts} of {len(responses)} responses have nothing after their thinking and count as empty "
            f"answers: {limit}"
        )
    return answers
