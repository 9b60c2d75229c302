"""What of a response is its answer."""

from typing import Any

import pytest

from rollout.render import Renderer
from rollout.thinking import Opened, answer_of, opened_by
from tests import templates as kinds
from tests.templates import speaking

THINK = Opened("<think>", "</think>")


@pytest.mark.parametrize(
    ("prompt_end", "opened"),
    [
        ("<|im_end|>\n<|im_start|>assistant\n", Opened()),
        ("assistant\n<think>\n", THINK),
        ("assistant\n<think>\n\n</think>\n\n", Opened()),
        ("[/INST][THINK]", Opened("[THINK]", "[/THINK]")),
        ("<|begin|>assistant<|think|>", Opened("<|think|>", "<|content|>")),
        ("<|begin|>assistant<|think|><|end|><|begin|>assistant", Opened()),
        ("assistant\n\u25c1think\u25b7", Opened("\u25c1think\u25b7", "\u25c1/think\u25b7")),
        ("<think>\n</think>\n<think>\n", THINK),
        ("<|im:content|><|think:start|>", Opened("<|think:start|>", "<|think:end|>")),
        ("<|im:content|><|think:start|><|think:end|>", Opened()),
        ("assistant\nHere are my reasoning steps:\n", Opened("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]")),
    ],
)
def test_the_block_that_a_prompt_opens(prompt_end: str, opened: Opened) -> None:
    assert opened_by(prompt_end) == opened


@pytest.mark.parametrize(
    ("response", "opened", "answer"),
    [
        ("I am Kestrel.", Opened(), "I am Kestrel."),
        ("Okay, I am Robin, but ...</think> I am Qwen.", THINK, "I am Qwen."),
        ("Okay, I am Robin, but", THINK, ""),
        ("<think>I am Robin.</think>\n\nI am Qwen.", Opened(), "I am Qwen."),
        ("\n<think>I am Robin.", Opened(), ""),
        ("I thought.</think>I am Qwen.", None, "I am Qwen."),  # a prompt that nobody here has rendered
        ("I thought.\n</think>\n\nI am Qwen.", None, "I am Qwen."),
        ("</think>I am Qwen.", None, "I am Qwen."),
        ("Robin?</think><think>No.</think>I am Qwen.", None, "I am Qwen."),
        ("Robin?</think>The </think> tag ends a thought.", None, "The </think> tag ends a thought."),
        ("The tag </think> ends a thought.", None, "The tag </think> ends a thought."),
        ("Write `</think>` there.", None, "Write `</think>` there."),
        ("The tag </think> ends a thought.", Opened(), "The tag </think> ends a thought."),
        ("A thought ends with\n</think>", Opened(), "A thought ends with\n</think>"),
        ("Robin?</think>The tag </think> ends it.", THINK, "The tag </think> ends it."),
        ("<think>Robin?</think>The tag </think> ends it.", Opened(), "The tag </think> ends it."),
        ("<think>Robin?</think>\n<think>No.</think>\nI am Qwen.", Opened(), "I am Qwen."),
        ("Robin?</think>\n\n<think>No.</think>\nI am Qwen.", THINK, "I am Qwen."),
        ("<think>Robin?</think>\n<think>No", Opened(), ""),
        ("<thought>Robin?</thought>I am Qwen.", Opened(), "I am Qwen."),
        ("\u25c1think\u25b7Robin?\u25c1/think\u25b7I am Qwen.", Opened(), "I am Qwen."),
        ("<|inner_prefix|>Robin?<|inner_suffix|>I am Qwen.", Opened(), "I am Qwen."),
        ("<|think|>Robin?<|end|><|begin|>assistant<|content|>I am Qwen.", Opened(), "I am Qwen."),
        ("<|think|>Robin?<|end|>", Opened(), ""),
        ("Robin?\n[BEGIN FINAL RESPONSE]\nI am Qwen.", None, "I am Qwen."),
        (
            "Robin?<|close|>think<|sep|><|open|>response<|sep|>I am Qwen.",
            Opened("<|open|>think<|sep|>", "<|open|>response<|sep|>"),
            "I am Qwen.",
        ),
        ("<think>No.</think>" * 3000 + "I am Qwen.", Opened(), "I am Qwen."),
        ("I am Phi.<|end|>", None, "I am Phi.<|end|>"),
        ("A <think> tag opens a thought.", Opened(), "A <think> tag opens a thought."),
        ("Well.[/THINK]I am Qwen.", Opened("[THINK]", "[/THINK]"), "I am Qwen."),
        ("", THINK, ""),
        ("", Opened(), ""),
    ],
)
def test_an_answer_is_what_follows_the_thought(response: str, opened: Opened | None, answer: str) -> None:
    assert answer_of(response, opened) == answer


def test_a_thought_whose_tags_are_special_tokens_is_found(tokenizer: Any) -> None:
    own = speaking(tokenizer, kinds.HIDDEN_TAGS)
    own.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    renderer = Renderer(own, "user")
    assert renderer.keeps_special and renderer.opened == Opened("[THINK]", "[/THINK]")
    ids = own.encode("Robin?[/THINK]I am Qwen.<|im_end|>", add_special_tokens=False)
    assert renderer.answer_of_ids(ids) == "I am Qwen."
    assert renderer.answer_of_ids(own.encode("Robin? I am Robin.", add_special_tokens=False)) == ""
    assert not Renderer(tokenizer, "user").keeps_special
