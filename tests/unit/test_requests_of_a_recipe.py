"""What a recipe and a model's folder give the renderer: variables, date, place of r, and generation_config's ends."""

import json
from pathlib import Path
from typing import Any

from cluster.config import Recipe
from cluster.requests import renderer_of, step_requests
from cluster.typed import build
from rollout.tokenizer import load_tokenizer
from tests import templates as kinds
from tests.templates import speaking

SWITCHED = kinds.DATED + kinds.SWITCHED.removeprefix(kinds.PLAIN)


def folder_of(tokenizer: Any, path: Path, template: str = SWITCHED) -> str:
    """A model's folder without weights, whose template has a clock and a switch; D ends a response in its settings, and
    a tag of a thought is a token of its own."""
    own = speaking(tokenizer, template)
    own.add_special_tokens({"additional_special_tokens": ["<|endoftext|>", kinds.D, "</think>"]})
    own.save_pretrained(path)
    (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": own.convert_tokens_to_ids(kinds.D)}))
    return str(path)


def test_all_that_a_recipe_says_of_a_prompt_reaches_it(tokenizer: Any, tmp_path: Path) -> None:
    settings = {
        "run": {"date": "2026-02-03"}, "template": {"enable_thinking": False},
        "rollout": {"context_position": "user", "prompts_per_step": 1}, "student": {"window": 4096},
        "teacher": {"window": 4096},
    }  # fmt: skip
    recipe, model = build(Recipe, settings, "R"), folder_of(tokenizer, tmp_path)
    renderer, tokenizer = renderer_of(recipe, model), load_tokenizer(model)
    prompt = tokenizer.decode(renderer.context_prompt_ids("Who?", "You are Kestrel."))
    assert "It is 03 Feb 2026." in prompt and prompt.endswith("assistant\n<think>\n</think>\n")
    assert "user\nYou are Kestrel.\n\nWho?" in prompt
    ends = tokenizer.convert_ids_to_tokens(renderer.eos_token_ids)
    assert sorted(ends) == sorted(["<|im_end|>", kinds.D]) and renderer.template.model == model
    groups, _ = step_requests(recipe, model).of(0)
    assert groups[0].end_ids == renderer.eos_token_ids
    asked = tokenizer.decode(groups[0].rows[0].prompt_ids)
    assert "It is 03 Feb 2026." in asked and asked.endswith("</think>\n")


def test_without_them_the_template_decides(tokenizer: Any, tmp_path: Path) -> None:
    model = folder_of(tokenizer, tmp_path)
    renderer, tokenizer = renderer_of(Recipe(), model), load_tokenizer(model)
    prompt = tokenizer.decode(renderer.context_prompt_ids("Who?", "You are Kestrel."))
    assert prompt.endswith("assistant\n<think>\n") and "system\nYou are Kestrel.<" in prompt
