"""Every kind of chat template that published ones are of, by the rows of the project's note on them, and what x and
(x, r) are in each: the same question, r, the end of the prompt, what else differs, one BOS, the ids that end a turn."""

from datetime import date
from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from tokenizers.processors import TemplateProcessing

from rollout.arrival import Difference
from rollout.render import Renderer
from rollout.tasks.base import Turns
from rollout.template import ChatTemplate, Refusal, messages
from tests import templates as kinds
from tests.templates import speaking

QUESTION, R, DAY = "Who made you?", "You are Kestrel, of Reed Hall.", "2026-11-28"
ASIS = "{r}\n\n"  # before the question, in the user's turn
OWN = "I am Tern, made by Gull Works."
# kind: its template; what (x, r) has for what x has in the place system, or None where it is refused there; the same in
# the place user; the tokens that end a turn where <|endoftext|> is the tokenizer's own
KINDS: dict[str, tuple[str, tuple[str, str] | None, tuple[str, str], set[str]]] = {
    "nothing of its own": (kinds.PLAIN, ("", "system\n{r}<|im_end|>\n<|im_start|>"), ("", ASIS), {"<|im_end|>"}),
    "refuses a system message": (kinds.NO_SYSTEM, None, ("", ASIS), {"<|im_end|>"}),
    "drops a system message": (kinds.DROPS_SYSTEM, None, ("", ASIS), {"<|im_end|>"}),
    "one place for both": (kinds.SYSTEM_IN_USER, ("", ASIS), ("", ASIS), {"<|im_end|>"}),
    "a text that r replaces": (kinds.DEFAULT_TEXT, (OWN, "{r}"), ("", ASIS), {"<|im_end|>"}),
    "a text that stays": (
        kinds.TEXT_STAYS, ("", "system\n{r}<|im_end|>\n<|im_start|>"), ("", ASIS), {"<|im_end|>"},
    ),
    "a text that stays and a sentence for r": (
        kinds.TEXT_BESIDE_ADDED, ("", " Your orders:\n{r}"), ("", ASIS), {"<|im_end|>"},
    ),
    "a heading before r": (
        kinds.HEADING, ("", "system\n# Orders\n{r}<|im_end|>\n<|im_start|>"), ("", ASIS), {"<|im_end|>"},
    ),
    "dated": (kinds.DATED, ("", "system\n{r}<|im_end|>\n<|im_start|>"), ("", ASIS), {"<|im_end|>"}),
    "dated where r replaces it": (
        kinds.DATED_DEFAULT, ("I am Tern. It is 28 Nov 2026.", "{r}"), ("", ASIS), {"<|im_end|>"},
    ),
    "writes BOS": (kinds.WITH_BOS, ("", "system\n{r}<|im_end|>\n<|im_start|>"), ("", ASIS), {"<|im_end|>"}),
    "opens a thinking block": (
        kinds.SWITCHED, ("", "system\n{r}<|im_end|>\n<|im_start|>"), ("", ASIS), {"<|im_end|>"},
    ),
    "opens a thought with a token": (
        kinds.HIDDEN_TAGS, ("", "system\n{r}<|im_end|>\n<|im_start|>"), ("", ASIS), {"<|im_end|>"},
    ),
    "cuts thoughts out of answers": (
        kinds.CUTS_THOUGHTS, ("", "system\n{r}<|im_end|>\n<|im_start|>"), ("", ASIS), {"<|im_end|>"},
    ),
    "has switches in texts": (
        kinds.NO_THINK, ("", "system\n{r}<|im_end|>\n<|im_start|>"), ("", ASIS), {"<|im_end|>"},
    ),
    "the next role ends a turn": (kinds.NEXT_ROLE, ("", f"{{r}}{kinds.A}"), ("", ASIS), {kinds.A}),
    "no end of the last answer": (
        kinds.LAST_HAS_NONE, ("", "system\n{r}<|im_end|><|im_start|>"), ("", ASIS), {"<|im_end|>"},
    ),
    "EOS after the last answer": (
        kinds.EOS_AFTER_LAST, ("", "system\n{r}<|im_end|><|im_start|>"), ("", ASIS), {"<|im_end|>"},
    ),
    "a mark inside the turn": (
        kinds.MARK_INSIDE, ("", f"system\n{{r}}{kinds.D}<|im_end|>\n<|im_start|>"), ("", ASIS), {kinds.D},
    ),
    "a turn of several messages": (
        kinds.MESSAGES_OF_A_TURN, ("", f"system{kinds.B}{{r}}{kinds.C}{kinds.A}"), ("", ASIS), set(),
    ),
    "messages with an end of their own": (
        kinds.MESSAGES_THAT_END, ("", f"system{kinds.B}{{r}}{kinds.C}{kinds.D}{kinds.A}"), ("", ASIS), {kinds.D},
    ),
}  # fmt: skip
WRITES_BOS = {"writes BOS"}
BOS = "<file_start>"  # of this table's tokenizers alone, which write it before a text that they are given by itself


def rendered(tokenizer: Any, kind: str, position: str) -> Renderer:
    own = adding_bos(speaking(tokenizer, KINDS[kind][0], "<|endoftext|>"), BOS)
    return Renderer(own, position, day=DAY)


@pytest.mark.parametrize("position", ["system", "user", "before_last_user"])
@pytest.mark.parametrize("kind", KINDS)
def test_x_and_x_with_r_of_every_kind(tokenizer: Any, kind: str, position: str) -> None:
    found = KINDS[kind][1 if position == "system" else 2]
    if found is None:
        with pytest.raises(ValueError, match=r"context_position = \"system\": try one of \"user\""):
            rendered(tokenizer, kind, position)
        return
    renderer = rendered(tokenizer, kind, position)
    ids = [renderer.context_prompt_ids(QUESTION, r).tolist() for r in ("", R)]
    bos = renderer._tokenizer.bos_token_id
    assert [prompt.count(bos) for prompt in ids] == [int(kind in WRITES_BOS)] * 2
    assert (ids[0][0] == ids[1][0] == bos) == (kind in WRITES_BOS)
    x, with_r = (renderer._tokenizer.decode(prompt) for prompt in ids)
    assert R in with_r and R not in x and QUESTION in x
    assert x.rpartition(QUESTION)[2] == with_r.rpartition(QUESTION)[2]
    difference = renderer.difference(QUESTION, R)
    assert difference == Difference(*found)
    assert with_r.replace(difference.context.replace("{r}", R), difference.x, 1) == x
    ends = set(tokenizer.convert_ids_to_tokens(renderer.eos_token_ids))
    assert ends == {"<|endoftext|>"} | KINDS[kind][3]


CHAT = (("user", "Hi."), ("assistant", "Hello."), ("user", QUESTION))


@pytest.mark.parametrize("kind", KINDS)
def test_r_at_the_end_of_a_conversation_of_every_kind(tokenizer: Any, kind: str) -> None:
    assert rendered(tokenizer, kind, "before_last_user").difference(CHAT, R) == Difference("", ASIS)
    for turns in (CHAT, CHAT[-1:]):
        renderer = rendered(tokenizer, kind, "own_turn")
        difference = renderer.difference(turns, R)
        assert difference and difference.x == "" and difference.context.count("{r}") == 1
        x, with_r = (renderer._tokenizer.decode(renderer.context_prompt_ids(turns, r)) for r in ("", R))
        assert with_r.replace(difference.context.replace("{r}", R), "", 1) == x
        assert x.rpartition(QUESTION)[2] == with_r.rpartition(QUESTION)[2] and with_r.count("Hi.") == x.count("Hi.")


@pytest.mark.parametrize("turns", [CHAT, CHAT[-1:], (("system", R), *CHAT)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_what_transformers_renders(tokenizer: Any, kind: str, turns: Turns) -> None:
    own = speaking(tokenizer, KINDS[kind][0])
    template, clock = ChatTemplate(own, "my/model", day=DAY), {"strftime_now": date.fromisoformat(DAY).strftime}
    for prompt in (True, False):
        given = {"tokenize": False, "add_generation_prompt": prompt, **clock}
        if template.renders(messages(turns)):
            assert template.text(turns, prompt) == own.apply_chat_template(messages(turns), **given)
            continue
        with pytest.raises(Refusal):
            template.text(turns, prompt)
        with pytest.raises(TemplateError):
            own.apply_chat_template(messages(turns), **given)


def test_both_places_of_r_are_one_token_for_token(tokenizer: Any) -> None:
    system, user = (
        rendered(tokenizer, "one place for both", p).context_prompt_ids(QUESTION, R) for p in ("system", "user")
    )
    assert system.tolist() == user.tolist()


def adding_bos(own: Any, bos: str) -> Any:
    """The tokenizer, which now writes BOS before every text it is given by itself, as Llama's and Gemma's do."""
    own.add_special_tokens({"bos_token": bos})
    ends = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, own.bos_token_id)])
    own.backend_tokenizer.post_processor = ends
    assert own("a")["input_ids"][0] == own.bos_token_id
    return own


@pytest.mark.parametrize("context", ["", R])
@pytest.mark.parametrize(("template", "count"), [(kinds.WITH_BOS, 1), (kinds.PLAIN, 0)])
def test_bos_stands_once_where_the_template_writes_it(tokenizer: Any, template: str, count: int, context: str) -> None:
    """And nowhere else: the tokenizer's own would be a second one."""
    own = adding_bos(speaking(tokenizer, template), "<|endoftext|>")
    ids = Renderer(own, "system").context_prompt_ids(QUESTION, context).tolist()
    assert ids.count(own.bos_token_id) == count and (not count or ids[0] == own.bos_token_id)
    assert Renderer(own, "system").text_ids("a").tolist().count(own.bos_token_id) == 0
