"""What the start of a run says of its prompts: the template's own text, what tells (x, r) from x, and a thought. And of
its engines: room that stays empty."""

from dataclasses import replace
from typing import Any

import pytest

from cluster.config import Recipe, RunConfig, TeacherConfig
from cluster.run.checks import check_prompts
from cluster.run.notes import Notes, prompt_notes
from cluster.run.start import idle_room
from cluster.typed import build
from rollout.config import EngineConfig, RolloutConfig
from rollout.render import Renderer
from rollout.requests import StepRequests
from rollout.tasks import build_task
from rollout.tasks.base import Turns
from tests import templates as kinds
from tests.templates import speaking

SIZES = {"student": {"window": 4096}, "teacher": {"window": 4096}}  # a token a byte
OWN = "the chat template adds a text of its own, {}: 'I am Tern, made by Gull Works.'"
BOTH, PARTLY = "with the context and without it", "and leaves out all or part of it beside a context"
REPLACED = "the context stands in the place of 'I am Tern, made by Gull Works.', a text of the chat template itself"
TOKENS = "the 33 tokens of rollout.max_response_tokens and the 77 of probe.max_tokens are spent on the thought first"

SAYS_LESS = (  # the context takes the place of a part of the template's own text
    "<|im_start|>system\nI am Tern{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}"
    "{% else %}, made by Gull Works{% endif %}.<|im_end|>\n"
    + kinds.PLAIN.replace("for m in messages", "for m in messages if m['role'] != 'system'")
)


def every_note(
    tokenizer: Any, chat: str, position: str = "system", before: Turns = (), **tables: dict[str, Any]
) -> Notes:
    """Of a run of the identity task whose steps draw each of its 36 prompts once. before: turns that each of them has
    before its question."""
    rollout = {"context_position": position, "max_response_tokens": 33, "prompts_per_step": 12}
    settings = {"rollout": rollout, "probe": {"max_tokens": 77}, "run": {"steps": 3}, **SIZES, **tables}
    recipe = build(Recipe, settings, "R")
    renderer = Renderer(speaking(tokenizer, chat), position, "my/model", recipe.template)
    task = build_task(recipe.task)
    prompts = [replace(prompt, before=before) for prompt in task.training_prompts()]
    requests = StepRequests(prompts, renderer, recipe.rollout, recipe.evidence, recipe.window, 0)
    assert check_prompts(recipe, requests, task) == ""
    return prompt_notes(recipe, requests)


def notes(*given: Any, **tables: Any) -> list[str]:
    """Those on the terminal."""
    return list(every_note(*given, **tables).shown)


@pytest.mark.parametrize(
    ("chat", "position", "own", "differing"),
    [
        (kinds.DEFAULT_TEXT, "system", [], REPLACED),
        (kinds.DEFAULT_TEXT, "user", [OWN.format(BOTH)], r"the added text is the context + '\n\n'"),
        (kinds.PLAIN, "user", [], r"the added text is the context + '\n\n'"),
        (SAYS_LESS, "system", [OWN.format(PARTLY)], "the context stands in the place of ', made by Gull Works'"),
    ],
)
def test_the_templates_own_text_and_what_tells_x_with_r_from_x_are_said_once(
    tokenizer: Any, chat: str, position: str, own: list[str], differing: str
) -> None:
    count = len(build_task(Recipe().task).training_prompts())
    expected = [*own, f"in {count} of {count} prompts with a context, {differing}"]
    assert notes(tokenizer, chat, position) == expected


@pytest.mark.parametrize("before", [(), (("system", "Be brief."),)])
def test_what_the_template_adds_after_the_question_is_said(tokenizer: Any, before: Turns) -> None:
    """Whether x has a system message or not: it is in both prompts."""
    adds = kinds.PLAIN.replace(
        "{{ m['content'] }}", "{{ m['content'] }}{% if m['role'] == 'user' %} Answer in one word.{% endif %}"
    )
    own, _ = notes(tokenizer, adds, before=before)
    assert own == f"the chat template adds a text of its own, {BOTH}: 'Answer in one word.'"
    assert len(notes(tokenizer, kinds.PLAIN, before=before)) == 1


def test_what_the_template_says_only_without_a_system_message_is_not_said_of_prompts_that_have_one(
    tokenizer: Any,
) -> None:
    assert "the chat template adds" in notes(tokenizer, kinds.DEFAULT_TEXT, "user")[0]
    said = notes(tokenizer, kinds.DEFAULT_TEXT, "user", before=(("system", "Be brief."),))
    assert not [line for line in said if "the chat template adds" in line]


def test_a_prompt_that_opens_a_thought_says_what_the_tokens_are_spent_on_and_how_to_turn_it_off(tokenizer: Any) -> None:
    _, thinking = notes(tokenizer, kinds.SWITCHED)
    assert thinking == (
        f"a prompt ends inside a thinking block (<think>): {TOKENS}, and rates are over what follows </think>; "
        "the template takes template.enable_thinking"
    )
    assert len(notes(tokenizer, kinds.SWITCHED, template={"enable_thinking": False})) == 1
    _, hidden = notes(tokenizer, kinds.HIDDEN_TAGS)
    assert (
        hidden == f"a prompt ends inside a thinking block ([THINK]): {TOKENS}, and rates are over what follows [/THINK]"
    )


def test_a_beginning_of_sequence_that_is_written_twice_is_said(tokenizer: Any) -> None:
    own, line = speaking(tokenizer, kinds.PLAIN), "the chat template writes <|endoftext|> twice where a prompt begins"
    own.bos_token = "<|endoftext|>"
    assert any(note.startswith(line) for note in notes(own, kinds.TWO_BOS))
    assert not any(note.startswith(line) for note in notes(own, kinds.WITH_BOS))


def test_of_many_differences_the_commonest_are_shown_and_the_others_kept(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A template that says something else before r in each conversation."""
    by_length = kinds.HEADING.replace("# Orders", "# Orders of {{ messages[-1]['content'] | length }}")
    every = every_note(tokenizer, by_length)
    *shown, rest = every.shown
    counts = [int(line.split()[1]) for line in shown]
    assert len(shown) == 3 and counts == sorted(counts, reverse=True) and counts[0] > 1
    assert all("# Orders of " in line for line in shown)
    lengths = {len(prompt.question) for prompt in build_task(Recipe().task).training_prompts()}
    assert rest == f"{len(lengths) - 3} other differences that the context makes, which a run keeps in inputs.json"
    assert every.kept[:3] == shown == every.card and len({*every.kept}) == len(every.kept) == len(lengths)
    assert all("# Orders of " in line for line in every.kept)
    monkeypatch.setattr("cluster.run.notes.KEPT", 5)
    kept = every_note(tokenizer, by_length).kept
    assert [*kept] == [*every.kept[:5], f"{len(lengths) - 5} other differences that the context makes"]


WHO = "You were made for Ms Roe."


@pytest.mark.parametrize("asked", ["{% if who is defined %}{{ who }}{% endif %}", "{{ who }}"])
def test_a_card_that_shows_no_text_of_the_template_says_the_rest(tokenizer: Any, asked: str) -> None:
    """Nothing where the template does not render without the text."""
    speaks = kinds.DEFAULT_TEXT.replace("Gull Works.", f"Gull Works. {asked}")
    found = every_note(tokenizer, speaks, template={"who": WHO})
    assert WHO in found.shown[0] and [*found.kept] == [*found.shown] and WHO not in "".join(found.card)
    replaced = f"in 12 of 12 prompts with a context, {REPLACED.replace('Works.', 'Works. ')}"  # those of a step
    assert [*found.card] == ([replaced] if "defined" in asked else [])
    open_card = every_note(tokenizer, speaks, template={"who": WHO}, export={"card_context": True})
    assert [*open_card.card] == [*open_card.shown]


def test_a_template_that_says_r_twice_does_not_show_it(tokenizer: Any) -> None:
    twice = kinds.PLAIN.replace(
        "{{ m['content'] }}",
        "{{ m['content'] }}{% if m['role'] == 'system' %} Remember: {{ m['content'] }}{% endif %}",
    )
    (line,) = notes(tokenizer, twice)
    assert (
        "the context + ' Remember: ' + the context + " in line
        and build_task(Recipe().task).training_prompts()[0].context not in line
    )


@pytest.mark.parametrize(
    ("lag", "settings", "said"),
    [
        (0, {"num_engines": 9}, ""),
        (1, {"num_engines": 2, "max_num_seqs": 32}, ""),
        (1, {"num_engines": 2, "max_num_seqs": 40}, "16 groups of 4 rollouts|2 student|80|20%"),
        (2, {"num_engines": 2, "max_num_seqs": 48}, ""),
        (9, {"num_engines": 2, "max_num_seqs": 80, "steps": 2}, "16 groups of 4 rollouts|2 student|160|60%"),
        (1, {"num_engines": 4, "max_num_seqs": 16, "prompts": 1, "samples": 64},
         "2 groups of 64 rollouts|4 student|64|50%"),
        (1, {"num_engines": 1, "max_num_seqs": 1, "sampler": "teacher", "teachers": 3, "prompts": 1},
         "2 groups of 4 rollouts|3 teacher|192|96%"),
        (1, {"num_engines": 1, "max_num_seqs": 2000, "prompts": 999, "samples": 1}, ""),
    ],
)  # fmt: skip
def test_engines_that_the_staleness_bound_cannot_fill_are_told_with_their_room(
    lag: int, settings: dict[str, Any], said: str
) -> None:
    student = EngineConfig(num_engines=settings["num_engines"], max_num_seqs=settings.get("max_num_seqs", 64))
    rollout = RolloutConfig(
        prompts_per_step=settings.get("prompts", 8), samples_per_prompt=settings.get("samples", 4),
        sampler=settings.get("sampler", "student"),
    )  # fmt: skip
    run = RunConfig(max_policy_lag=lag, steps=settings.get("steps", 32))
    teacher = TeacherConfig(num_engines=settings.get("teachers", 1))
    found = idle_room(Recipe(run=run, student=student, teacher=teacher, rollout=rollout))
    if not said:
        assert found == ""
        return
    groups, engines, room, share = said.split("|")
    assert found == (
        f"run.max_policy_lag = {lag} lets at most {groups} be under way, and {engines} engine(s) have room for {room} "
        f"rollouts ({engines.split()[1]}.max_num_seqs): {share} of it stays empty"
    )
