"""The ids that end a turn, over a template of each kind."""

from typing import Any

import pytest

from rollout.render import Renderer
from tests import templates as kinds
from tests.templates import speaking

END, TEXT = "<|im_end|>", "<|endoftext|>"


@pytest.mark.parametrize(
    ("template", "eos", "generation", "expected"),
    [
        (kinds.PLAIN, END, (), [END]),
        (kinds.PLAIN, TEXT, (), [TEXT, END]),  # a chat fine-tune of a base model
        (kinds.PLAIN, TEXT, [TEXT], [TEXT, END]),
        (kinds.PLAIN, TEXT, [TEXT, END], [TEXT, END]),
        (kinds.PLAIN, TEXT, [kinds.D], [TEXT, END, kinds.D]),
        (kinds.NEXT_ROLE, TEXT, (), [TEXT, kinds.A]),
        (kinds.NEXT_ROLE, TEXT, [kinds.A], [TEXT, kinds.A]),
        (kinds.LAST_HAS_NONE, TEXT, (), [TEXT, END]),
        (kinds.LAST_HAS_NONE, END, (), [END]),
        (kinds.EOS_AFTER_LAST, TEXT, (), [TEXT, END]),
        (kinds.MARK_INSIDE, END, (), [END]),
        (kinds.MARK_INSIDE, TEXT, [END], [TEXT, END]),
        (kinds.BEGUN_BY_EOS, TEXT, (), [TEXT, END]),
        (kinds.PARTED_BY_EOS, TEXT, (), [TEXT]),
        (kinds.MESSAGES_OF_A_TURN, END, (), [END]),
        (kinds.MESSAGES_THAT_END, TEXT, (), [TEXT, kinds.D]),
    ],
)  # fmt: skip
def test_the_ids_that_end_a_turn(
    tokenizer: Any, template: str, eos: str, generation: list[str], expected: list[str]
) -> None:
    own = speaking(tokenizer, template, eos)
    renderer = Renderer(own, "user", ends=own.convert_tokens_to_ids(list(generation)))
    assert sorted(renderer.eos_token_ids) == sorted(own.convert_tokens_to_ids(expected))


@pytest.mark.parametrize("key", ["thinking", "reasoning", "reasoning_content", "thought"])
def test_a_thought_is_known_by_each_of_its_names(tokenizer: Any, key: str) -> None:
    own = speaking(tokenizer, kinds.MESSAGES_OF_A_TURN.replace("m.thinking", f"m.{key}"), TEXT)
    assert Renderer(own, "user").eos_token_ids == (own.convert_tokens_to_ids(TEXT),)  # C ends the thought as well


def test_a_template_that_does_not_show_the_answer_is_refused(tokenizer: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^my/model: found a chat template that does not show an assistant's text, exp"
    ):
        Renderer(speaking(tokenizer, kinds.PARTS_ONLY), "user", "my/model")


def test_no_end_token_at_all_is_refused(tokenizer: Any) -> None:
    endless = speaking(tokenizer, kinds.loop("{{ m['content'] }}\n", ""), None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="found no end-of-sequence token"):
        Renderer(endless, "user")
