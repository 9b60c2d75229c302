"""What a chat template is given, and what is said of one that cannot be used."""

from pathlib import Path
from typing import Any

import pytest

from rollout.render import Renderer
from rollout.template import ChatTemplate
from tests import templates as kinds
from tests.templates import speaking

QUESTION = "Who are you?"


@pytest.mark.parametrize(
    ("template", "position", "said"),
    [
        (kinds.NO_SYSTEM, "system", r"found a chat template that refuses the context \(no system role\), expected one "
         r'that shows it \(rollout.context_position = "system": try one of "user", "before_last_user", "own_turn"\)'),
        (kinds.DROPS_SYSTEM, "system", r'leaves the context out, .*one of "user", "before_last_user", "own_turn"\)'),
        (kinds.ALTERNATES, "own_turn", r'refuses the context \(roles must alternate\).*try one of "system", "user", '),
        (kinds.NEEDS_TOOLS, "user", r"that needs tools \('NoneType' object is not iterable\), expected one th"),
        (kinds.NEEDS_A_TOOL, "user", r"that needs tools \(give me a tool\), expected one that renders a co"),
        (kinds.NEEDS_DOCUMENTS, "user", r"that needs documents \(give me a document\), expected one that renders a"),
        (kinds.RECURSES, "user", r"that refuses the conversation \[user\] \(maximum recursion depth exceeded.*\), exp"),
        (kinds.PRINTS_NOTHING_IN.replace("ROLE", "system"), "system", r"that prints the variable 'town', which no"),
        (kinds.PRINTS_NOTHING_IN.replace("ROLE", "assistant"), "user", r"that prints the variable 'town', which no"),
        (kinds.NEEDS_VARIABLE, "user", r"that needs the variable 'place' \('place' is undefined\), expected temp"),
        (kinds.PRINTS_NOTHING, "user", r"that prints the variable 'town', which nothing defines, expected template\."),
        (kinds.JOINS_NOTHING, "user", r"that prints the variable 'town', which nothing defines, expected template\."),
        (kinds.CHECKS, "user", r"that prints the variable 'mode', which nothing defines, expected template\."),
        (kinds.WANTS_PARTS, "user", r"that takes a text as a list of parts \(.*\), expected one that takes texts"),
        (kinds.SKIPS_TEXT, "user", r"that does not show a user's text, which it takes as a list of parts, expected o"),
        (kinds.PLAIN.replace("'content'", "'text'"), "user", r"that does not show a user's text, expected one that"),
        ("{% for a in b %}" * 21 + "{% endfor %}" * 21, "user", r"that cannot be compiled \(too many .*\), expe"),
        (kinds.WRONG_SYNTAX, "user", r"with a syntax error in line 2 \(.*'endif'.*\), expected one that jinja2 can"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_used_is_one_line(tokenizer: Any, template: str, position: str, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^my/model: .*{said}") as caught:
        Renderer(speaking(tokenizer, template), position, "my/model")
    assert "\n" not in str(caught.value)


def test_a_variable_that_is_only_asked_about_is_not_printed(tokenizer: Any) -> None:
    renderer = Renderer(speaking(tokenizer, kinds.ASKS_FOR), "user")
    assert tokenizer.decode(renderer.prompt_ids(QUESTION)).endswith("assistant\n")


def test_what_x_alone_cannot_do_is_not_said_of_r(tokenizer: Any) -> None:
    for template in (kinds.NEEDS_TOOLS, kinds.PRINTS_NOTHING, kinds.WANTS_PARTS, kinds.SKIPS_TEXT):
        with pytest.raises(ValueError, match="found a chat template that") as caught:
            Renderer(speaking(tokenizer, template), "system")
        assert " r " not in str(caught.value) and "context_position" not in str(caught.value)


def test_a_variable_reaches_every_rendering(tokenizer: Any) -> None:
    own = speaking(tokenizer, kinds.SWITCHED)
    thinks, answers = Renderer(own, "system"), Renderer(own, "system", variables={"enable_thinking": False})
    for renderer, end in ((thinks, "assistant\n<think>\n"), (answers, "assistant\n<think>\n</think>\n")):
        ids = renderer.prompt_ids(QUESTION)
        assert tokenizer.decode(ids).endswith(end)
        assert tokenizer.decode(renderer.context_prompt_ids(QUESTION, "R.")).endswith(end)
        assert renderer.lengths([(QUESTION, ""), (QUESTION, "R.")]) == [
            len(ids), len(renderer.context_prompt_ids(QUESTION, "R."))
        ]  # fmt: skip
    assert thinks.identity != answers.identity  # lengths that are kept are of one of them
    given = {"town": "Ayr"}
    assert "You live in Ayr." in tokenizer.decode(
        Renderer(speaking(tokenizer, kinds.PRINTS_NOTHING), "user", variables=given).prompt_ids(QUESTION)
    )


@pytest.mark.parametrize(
    ("template", "name", "expected"),
    [
        (kinds.SWITCHED, "enable_thinkng", "one of enable_thinking"),
        (kinds.PLAIN, "enable_thinking", "none: it takes no variable"),
        (kinds.SWITCHED, "messages", "one of enable_thinking"),
    ],
)
def test_a_variable_that_the_template_does_not_take_is_refused(
    tokenizer: Any, template: str, name: str, expected: str
) -> None:
    found = f"found a variable that the chat template of my/model does not take, expected {expected}"
    with pytest.raises(ValueError, match=rf"^template\.{name}: {found}"):
        Renderer(speaking(tokenizer, template), "user", "my/model", {name: False})


def test_one_of_several_named_templates(tokenizer: Any) -> None:
    named = {"default": kinds.PLAIN, "rag": kinds.HEADING}
    own = speaking(tokenizer, named)  # type: ignore[arg-type]
    assert ChatTemplate(own, "my/model").source == kinds.PLAIN
    assert ChatTemplate(own, "my/model", {"chat_template": "rag"}).source == kinds.HEADING
    with pytest.raises(ValueError, match=r"^template\.chat_template: found 'tool', expected one of default, rag"):
        ChatTemplate(own, "my/model", {"chat_template": "tool"})
    del named["default"]
    own = speaking(tokenizer, named)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^template\.chat_template: found none, .*several, expected one of rag"):
        ChatTemplate(own, "my/model")
    with pytest.raises(ValueError, match=r"found 'rag', expected none: the model has one template, without a name"):
        ChatTemplate(speaking(tokenizer, kinds.PLAIN), "my/model", {"chat_template": "rag"})


def test_the_clock_shows_the_day_of_the_run(tokenizer: Any) -> None:
    own = speaking(tokenizer, kinds.DATED)
    one, other = Renderer(own, "user", day="2026-02-03"), Renderer(own, "user", day="2026-12-31")
    assert "It is 03 Feb 2026." in tokenizer.decode(one.prompt_ids(QUESTION))
    assert "It is 31 Dec 2026." in tokenizer.decode(other.context_prompt_ids(QUESTION, "R."))
    assert one.identity != other.identity


def test_a_folder_whose_tokenizer_is_not_read_is_one_line(tmp_path: Path) -> None:
    from rollout.tokenizer import load_tokenizer

    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match=rf"^{tmp_path}: found no tokenizer \(.*\), expected one"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tekken.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(ValueError, match=r": found a chat template beside tekken.json, which .* expected a "):
        load_tokenizer(str(tmp_path))


def test_a_damaged_tekken_is_one_line(tmp_path: Path) -> None:
    from rollout.tokenizer import load_tokenizer

    (tmp_path / "config.json").write_text('{"model_type": "mistral"}')
    (tmp_path / "tekken.json").write_text("{}")
    with pytest.raises(ValueError, match=rf"^{tmp_path}: found no tokenizer \(KeyError: 'config'\), expected one"):
        load_tokenizer(str(tmp_path))


def test_a_folder_with_its_template_in_a_file_and_no_generation_config(tmp_path: Path, default_model: Path) -> None:
    """And a tekken.json beside it, which makes transformers choose a tokenizer without a template."""
    import json
    import shutil

    from rollout.tokenizer import generation_ends, load_tokenizer

    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(default_model / name, tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mistral", "eos_token_id": [2, 0]}))
    (tmp_path / "tekken.json").write_text("{}")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "chat_template.jinja").write_text(kinds.PLAIN)
    renderer = Renderer(load_tokenizer(str(tmp_path)), "system", ends=generation_ends(str(tmp_path)))
    assert renderer.template.source == kinds.PLAIN and renderer.eos_token_ids == (0, 2)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert generation_ends(str(tmp_path)) == (7,)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "found a list, expected a JSON object"),
        ("{", r"found no valid JSON \(Expecting .*\), expected the file as it was publ"),
        ("\xff", r"found no valid JSON \(.*decode.*\), expected the file as it was publ"),
        *(
            (f'{{"eos_token_id": {found}}}', f"found eos_token_id = {said}, expected a token id")
            for found, said in (
                ('{"a": 1}', r"\{'a': 1\}"),
                ("[[2]]", r"\[\[2\]\]"),
                ('"x"', "'x'"),
                ("true", "True"),
                ("[2, -1]", r"\[2, -1\]"),
            )
        ),
    ],
)
def test_an_odd_generation_config_is_one_line(tmp_path: Path, content: str, said: str) -> None:
    """One that is cut is no reason to read config.json instead."""
    from rollout.tokenizer import generation_ends

    (tmp_path / "config.json").write_text('{"model_type": "llama", "eos_token_id": 2}')
    assert generation_ends(str(tmp_path)) == (2,)
    odd = tmp_path / "generation_config.json"
    odd.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"^{odd}: {said}"):
        generation_ends(str(tmp_path))
    odd.unlink()
    (tmp_path / "config.json").write_text('{"model_type": "llama", "eos_token_id": "x"}')
    with pytest.raises(
        ValueError, match=rf"^{tmp_path}: found a config.json that transformers does not read \(.*'x' "
    ) as caught:
        generation_ends(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("found", "ends"), [("{}", ()), ('{"eos_token_id": null}', ()), ('{"eos_token_id": [0, 7]}', (0, 7))]
)
def test_the_ends_of_a_generation_config(tmp_path: Path, found: str, ends: tuple[int, ...]) -> None:
    from rollout.tokenizer import generation_ends

    (tmp_path / "config.json").write_text('{"model_type": "llama", "eos_token_id": 2}')
    (tmp_path / "generation_config.json").write_text(found)
    assert generation_ends(str(tmp_path)) == ends
