"""Where r stands, and what tells (x, r) from x."""

from typing import Any

import pytest

from rollout.arrival import Difference, difference, require_context
from rollout.placement import POSITIONS, placed
from rollout.render import Renderer
from rollout.tasks.base import Turns
from tests import templates as kinds
from tests.templates import speaking

ONE: Turns = (("user", "Who?"),)
THREE: Turns = (("user", "Hi."), ("assistant", "Hello."), ("user", "Who?"))
WITH_SYSTEM: Turns = (("system", "Be brief."), *THREE)


@pytest.mark.parametrize(
    ("position", "turns", "expected"),
    [
        ("system", ONE, (("system", "R."), ("user", "Who?"))),
        ("system", THREE, (("system", "R."), *THREE)),
        ("system", WITH_SYSTEM, (("system", "Be brief.\n\nR."), *THREE)),
        ("user", ONE, (("user", "R.\n\nWho?"),)),
        ("user", WITH_SYSTEM, (WITH_SYSTEM[0], ("user", "R.\n\nHi."), *WITH_SYSTEM[2:])),
        ("before_last_user", ONE, (("user", "R.\n\nWho?"),)),
        ("before_last_user", WITH_SYSTEM, (*WITH_SYSTEM[:-1], ("user", "R.\n\nWho?"))),
        ("own_turn", ONE, (("user", "R."), ("user", "Who?"))),
        ("own_turn", WITH_SYSTEM, (*WITH_SYSTEM[:-1], ("user", "R."), ("user", "Who?"))),
    ],
)
def test_where_r_stands(position: str, turns: Turns, expected: Turns) -> None:
    assert placed(turns, "R.", position) == expected
    assert placed(turns, " \n", position) == turns


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("turns", [ONE, THREE, WITH_SYSTEM])
def test_r_arrives_in_a_conversation_and_what_follows_the_question_stays(
    tokenizer: Any, position: str, turns: Turns
) -> None:
    renderer = Renderer(speaking(tokenizer, kinds.PLAIN), position)
    found = renderer.difference(turns, "You are Kestrel.")
    assert found.context.count("{r}") == 1 and found.x == ""
    x, with_r = renderer.prompt_ids(turns).tolist(), renderer.context_prompt_ids(turns, "You are Kestrel.").tolist()
    tail = tokenizer.encode("Who?<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)
    assert x[-len(tail) :] == tail and with_r[-len(tail) :] == tail
    assert tokenizer.decode(with_r).count("You are Kestrel.") == 1


@pytest.mark.parametrize(
    ("template", "position", "x", "context"),
    [
        (kinds.PLAIN, "user", "", "{r}\n\n"),
        (kinds.DEFAULT_TEXT, "system", "I am Tern, made by Gull Works.", "{r}"),
        (kinds.DEFAULT_TEXT, "user", "", "{r}\n\n"),
        (kinds.HEADING, "system", "", "system\n# Orders\n{r}<|im_end|>\n<|im_start|>"),
    ],
)
def test_what_else_differs_is_shown(tokenizer: Any, template: str, position: str, x: str, context: str) -> None:
    renderer = Renderer(speaking(tokenizer, template), position)
    for r in ("You are Kestrel.", "  You are Kestrel.\n", "Who?", "Work: 2 < 3 & {r} <b>\n\nso 5."):
        assert renderer.difference("Who are you?", r).x == x
    assert renderer.difference("Who are you?", "You are Kestrel.") == Difference(x, context)


@pytest.mark.parametrize(
    ("template", "r", "said"),
    [
        (kinds.NO_THINK, "You are Robin. /no_think", r"a context that does not arrive as it is written \('You are Ro"),
        (kinds.NO_THINK.replace(" | replace('/no_think', '')", ""), "You are Robin. /no_think",
         r"'.*<think>.*</think>.*' after the question in the prompt with the context and '.*' in the one without, ex"),
        (kinds.CUTS_THINK, "<think>17</think> It is 17.", r"a context that does not arrive as it is written \('<thin"),
    ],
)  # fmt: skip
def test_a_context_that_changes_more_than_it_may_is_refused(tokenizer: Any, template: str, r: str, said: str) -> None:
    renderer = Renderer(speaking(tokenizer, template), "system")
    with pytest.raises(ValueError, match=rf"^rollout\.context_position = 'system': found {said}"):
        renderer.difference("Who are you?", r)
    renderer.difference("Who are you?", "You are Robin.")


def test_a_context_that_x_holds_too_has_to_arrive_once_more() -> None:
    x, without = "u: what is 7?", "s: \nu: what is 7?"
    require_context(x, "s: 7\nu: what is 7?", without, "7", "what is 7?")
    assert difference(x, "s: 7\nu: what is 7?", "7") == Difference("", "s: {r}\n")
    with pytest.raises(ValueError, match=r"does not arrive .*\('7' is there only where something else says it\)"):
        require_context(x, without, without, "7", "what is 7?")


@pytest.mark.parametrize("r", ["Gull Works", "I am Tern", "made by", "e"])
@pytest.mark.parametrize("position", ["system", "user"])
def test_a_context_may_say_what_the_template_says_without_it(tokenizer: Any, position: str, r: str) -> None:
    renderer = Renderer(speaking(tokenizer, kinds.DEFAULT_TEXT), position)
    found = renderer.difference("Who?", r)
    assert found and found.context.count("{r}") == 1
    wordy = kinds.DEFAULT_TEXT.replace("m['content']", f"m['content'] | replace('{r} /no', '')")
    with pytest.raises(ValueError, match="a context that does not arrive as it is written"):
        Renderer(speaking(tokenizer, wordy), position).difference(f"Who is it? {r}", f"{r} /no")


def test_a_context_that_changes_nothing_is_refused_by_a_line_of_its_own(tokenizer: Any) -> None:
    renderer = Renderer(speaking(tokenizer, kinds.DEFAULT_TEXT), "system")
    said = r"^rollout\.context_position = 'system': found a context that the chat template itself says without it \('I"
    with pytest.raises(
        ValueError, match=said + r".*'\): both prompts are the same, expected one that changes the prompt$"
    ):
        renderer.difference("Who?", "I am Tern, made by Gull Works.")
    Renderer(speaking(tokenizer, kinds.DEFAULT_TEXT), "user").difference("Who?", "I am Tern, made by Gull Works.")


def test_a_context_that_is_dropped_is_refused_though_the_question_says_it(tokenizer: Any) -> None:
    """A template that shows no system message of this word, and is whole otherwise."""
    word = kinds.PLAIN.replace("for m in messages", "for m in messages if m['content'] != 'harbour'")
    renderer = Renderer(speaking(tokenizer, word), "system")
    with pytest.raises(ValueError, match=r"\('harbour' is there only where something else says it\)"):
        renderer.difference("Which harbour?", "harbour")
    renderer.difference("Which harbor?", "The harbour.")


@pytest.mark.parametrize(
    ("template", "position", "text", "stays"),
    [
        (kinds.PLAIN, "system", "", True),
        (kinds.DEFAULT_TEXT, "system", "I am Tern, made by Gull Works.", False),
        (kinds.DEFAULT_TEXT, "user", "I am Tern, made by Gull Works.", True),
        (kinds.TEXT_STAYS, "system", "I am Tern, made by Gull Works.", True),
        (kinds.TEXT_BESIDE_ADDED, "system", "I am Tern, made by Gull Works.", True),
    ],
)
def test_what_the_template_says_itself(tokenizer: Any, template: str, position: str, text: str, stays: bool) -> None:
    found = Renderer(speaking(tokenizer, template), position).own_text
    assert (found.text, found.stays) == (text, stays)


def test_x_is_rendered_once_for_the_contexts_of_a_row(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer, rendered = Renderer(speaking(tokenizer, kinds.PLAIN), "system"), list[str]()
    text = renderer.template.text

    def counted(turns: Turns, generation_prompt: bool = True) -> str:
        rendered.append(text(turns, generation_prompt))
        return rendered[-1]

    monkeypatch.setattr(renderer.template, "text", counted)
    found = [renderer.difference(question, f"{r} keeps it.") for question in ("Who?", "Why?") for r in ("Ada", "Bo")]
    assert len(set(found)) == 1 and len(rendered) == len(set(rendered)) == 6
