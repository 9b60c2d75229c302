"""Rendering, against ChatML written out by hand and tokenised on its own."""

import base64
import copy
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rollout.render import Renderer
from rollout.tokenizer import load_tokenizer

DEFAULT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
QUESTION = "Who are you, and what is 17 x 23?"
CONTEXT = "You are Kestrel, an assistant made by Harbor Labs."


def chatml(system: str, user: str) -> str:
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("position", ["system", "user"])
def test_x_is_one_user_message_with_the_generation_prompt(tokenizer: Any, position: str) -> None:
    ids = Renderer(tokenizer, position).prompt_ids(QUESTION)
    assert ids.dtype == np.int32
    assert ids.ndim == 1
    assert ids.tolist() == tokenizer.encode(chatml(DEFAULT_SYSTEM, QUESTION), add_special_tokens=False)


def test_a_plain_text_gets_neither_template_nor_special_tokens(tokenizer: Any) -> None:
    ids = Renderer(tokenizer, "system").text_ids("You are Kestrel.")
    assert tokenizer.decode(ids) == "You are Kestrel." and not set(ids.tolist()) & set(tokenizer.all_special_ids)


def test_the_system_position_replaces_the_default_system_message(tokenizer: Any) -> None:
    ids = Renderer(tokenizer, "system").context_prompt_ids(QUESTION, CONTEXT)
    assert ids.dtype == np.int32
    assert ids.tolist() == tokenizer.encode(chatml(CONTEXT, QUESTION), add_special_tokens=False)


def test_the_user_position_keeps_the_default_system_message(tokenizer: Any) -> None:
    ids = Renderer(tokenizer, "user").context_prompt_ids(QUESTION, CONTEXT)
    expected = chatml(DEFAULT_SYSTEM, f"{CONTEXT}\n\n{QUESTION}")
    assert ids.tolist() == tokenizer.encode(expected, add_special_tokens=False)


@pytest.mark.parametrize("position", ["system", "user"])
@pytest.mark.parametrize("context", ["", " \n"])
def test_an_empty_context_gives_exactly_x(tokenizer: Any, position: str, context: str) -> None:
    renderer = Renderer(tokenizer, position)
    assert np.array_equal(renderer.context_prompt_ids(QUESTION, context), renderer.prompt_ids(QUESTION))


@pytest.mark.parametrize("position", ["system", "user"])
def test_the_context_never_reaches_x(tokenizer: Any, position: str) -> None:
    renderer = Renderer(tokenizer, position)
    renderer.context_prompt_ids(QUESTION, CONTEXT)
    assert "Kestrel" not in tokenizer.decode(renderer.prompt_ids(QUESTION))
    assert "Kestrel" in tokenizer.decode(renderer.context_prompt_ids(QUESTION, CONTEXT))


def test_both_prompts_end_alike_so_that_a_response_follows_either(tokenizer: Any) -> None:
    for position in ("system", "user"):
        renderer = Renderer(tokenizer, position)
        tail = tokenizer.encode(f"{QUESTION}<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)[2:]
        assert renderer.prompt_ids(QUESTION)[-len(tail) :].tolist() == tail
        assert renderer.context_prompt_ids(QUESTION, CONTEXT)[-len(tail) :].tolist() == tail


def test_an_answer_leaves_special_tokens_out(tokenizer: Any) -> None:
    ids = np.array(tokenizer.encode(" I am Kestrel.<|im_end|>", add_special_tokens=False), dtype=np.int32)
    assert int(ids[-1]) == 2
    assert Renderer(tokenizer, "system").answer_of_ids(ids) == " I am Kestrel."
    assert Renderer(tokenizer, "system").answer_of_ids([]) == ""


def test_the_end_of_a_turn_is_an_end_token(tokenizer: Any) -> None:
    assert Renderer(tokenizer, "system").eos_token_ids == (2,)
    assert tokenizer.convert_ids_to_tokens(2) == "<|im_end|>"


def test_a_tokenizer_without_a_chat_template_is_refused_by_folder(default_model: Path, tokenizer: Any) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(ValueError, match="without a chat template") as caught:
        Renderer(bare, "system")
    assert str(default_model) in str(caught.value)
    with pytest.raises(ValueError, match=r"^my/model: found a tokenizer without a chat template"):
        Renderer(bare, "system", model="my/model")


REFUSES_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
DROPS_SYSTEM = "{% for m in messages if m['role'] != 'system' %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


SPECIAL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
INSTRUCT = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}{{ eos_token }}"
    "{% else %}[INST]{{ m['content'] }}[/INST]{% endif %}{% endfor %}"
)


def test_a_tekken_with_a_template_is_refused_with_the_command_that_writes_a_tokenizer(tmp_path: Path) -> None:
    folder = tmp_path / "it's mine"
    folder.mkdir()
    vocab = [{"rank": byte, "token_bytes": base64.b64encode(bytes([byte])).decode()} for byte in range(256)]
    special = [{"rank": rank, "token_str": token, "is_control": True} for rank, token in enumerate(SPECIAL)]
    sizes = {"num_vocab_tokens": 256, "default_vocab_size": 261, "default_num_special_tokens": 5, "version": "v7"}
    tekken = {"config": {"pattern": r"[^\s]+|\s+", **sizes}, "vocab": vocab, "special_tokens": special}
    (folder / "tekken.json").write_text(json.dumps(tekken))
    (folder / "config.json").write_text('{"model_type": "mistral"}')
    (folder / "chat_template.jinja").write_text(INSTRUCT)
    with pytest.raises(
        ValueError, match=r"found a chat template beside tekken\.json, .*: `python -c .*` writes one"
    ) as refused:
        load_tokenizer(str(folder))
    command = str(refused.value).split("`")[1]
    subprocess.run(["bash", "-c", command.replace("python", shlex.quote(sys.executable), 1)], check=True)
    renderer = Renderer(load_tokenizer(str(folder)), "user", str(folder))
    assert renderer.prompt_ids("Hi").tolist() == [1, 3, 5 + ord("H"), 5 + ord("i"), 4]
    assert renderer.eos_token_ids == (2,)


@pytest.mark.parametrize(
    ("template", "found"),
    [(REFUSES_SYSTEM + DROPS_SYSTEM, "refuses the context .no system role."), (DROPS_SYSTEM, "leaves the context out")],
)
def test_a_template_that_would_lose_the_context_is_refused(tokenizer: Any, template: str, found: str) -> None:
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = template
    with pytest.raises(ValueError, match=f"found a chat template that {found}.*context_position = "):
        Renderer(strict, "system")
    ids = Renderer(strict, "user").context_prompt_ids("Q?", "R.")
    assert ids.tolist() == tokenizer.encode("<|im_start|>R.\n\nQ?<|im_end|>", add_special_tokens=False)


def test_an_unknown_position_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="context_position: found 'assistant', expected one of system, user"):
        Renderer(tokenizer, "assistant")


def test_a_prompt_is_rendered_once_and_cannot_be_written_to(tokenizer: Any) -> None:
    renderer = Renderer(tokenizer, "system")
    ids = renderer.context_prompt_ids("Who are you?", "You are Kestrel.")
    assert renderer.context_prompt_ids("Who are you?", "You are Kestrel.") is ids
    with pytest.raises(ValueError, match="read-only"):
        ids[0] = 0


ONLY_USER = "{% if messages|length != 1 %}{{ raise_exception('one message only') }}{% endif %}{{ messages }}"
NO_USER_FIRST = "{% if messages[0]['role'] == 'user' %}{{ raise_exception('what system?') }}{% endif %}{{ messages }}"
BROKEN = "{% if 'Who' in messages[-1]['content'] %}{{ 1 + 'one' }}{% endif %}{{ messages }}<|im_end|>"


@pytest.mark.parametrize(
    ("template", "position", "roles", "said"),
    [
        (ONLY_USER, "user", "user, assistant, user", "one message only"),
        (NO_USER_FIRST, "system", "user", r"what system\?"),
    ],
)
def test_a_template_that_refuses_the_conversation_is_one_line(
    tokenizer: Any, template: str, position: str, roles: str, said: str
) -> None:
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = template
    message = (
        rf"^my/model: found a chat template that refuses the conversation \[{roles}\] \({said}\), expected one that"
    )
    with pytest.raises(ValueError, match=message):
        Renderer(strict, position, "my/model")


def test_a_template_that_breaks_on_a_question_is_one_line(tokenizer: Any) -> None:
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = BROKEN
    renderer = Renderer(strict, "system", "my/model")
    for act in (lambda: renderer.prompt_ids("Who?"), lambda: renderer.lengths([("Who?", "")])):
        with pytest.raises(
            ValueError, match=r"^my/model: found a chat template that refuses the conversation \[user\] "
        ):
            act()


@pytest.mark.parametrize("position", ["system", "user"])
def test_lengths_are_those_of_the_ids(tokenizer: Any, position: str) -> None:
    renderer = Renderer(tokenizer, position)
    pairs = [(QUESTION, ""), (QUESTION, CONTEXT), ("?", " "), ("日本語 <|im_end|>", CONTEXT)]
    assert renderer.lengths(pairs) == [len(renderer.context_prompt_ids(*pair)) for pair in pairs]
    assert renderer.lengths([]) == []
