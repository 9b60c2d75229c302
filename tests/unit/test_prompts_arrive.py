"""Prompts whose texts the template refuses, drops or rewrites, each named before anything starts."""

from typing import Any

import pytest

from cluster.config import Recipe
from cluster.run.checks import check_probe
from cluster.run.lengths import lengths_near
from evidence.rule import EvidenceConfig
from rollout.config import RolloutConfig
from rollout.render import Renderer
from rollout.requests import StepRequests
from rollout.tasks.base import ProbePrompt, TaskPrompt, Turns
from rollout.tasks.context import ContextTask
from rollout.template import Refusal
from tests import templates as kinds
from tests.templates import speaking

R = "You are Kestrel."
BRIEF: Turns = (("system", "Be brief."),)
ASKED: Turns = (("user", "Hi."), ("assistant", "Hello."))


def prompts(place: int, question: str = "Who?", before: Turns = BRIEF, context: str = R) -> list[TaskPrompt]:
    """Four plain ones, but for the one at `place`."""
    odd = TaskPrompt(f"c-{place}", question, context, before=before)
    return [odd if other == place else TaskPrompt(f"c-{other}", "Who?", R) for other in range(4)]


def checked(tokenizer: Any, template: str, position: str, rows: list[TaskPrompt], limit: int = 4096) -> None:
    """As the start of a run does, with every prompt in its one step. limit: from which a length is exact."""
    renderer = Renderer(speaking(tokenizer, template), position, "my/model")
    config = RolloutConfig(prompts_per_step=4, context_position=position)
    requests = StepRequests(rows, renderer, config, EvidenceConfig(), 4096, seed=0)
    requests.check(1, lambda pairs: lengths_near(renderer, pairs, limit))
    requests.differences(1)


@pytest.mark.parametrize("limit", [4096, 1])
@pytest.mark.parametrize("place", range(4))
def test_the_prompt_that_the_template_refuses_is_named_with_its_roles(tokenizer: Any, place: int, limit: int) -> None:
    with pytest.raises(
        ValueError,
        match=rf"^prompt c-{place}: my/model: found a chat template that refuses the conversation "
        r"\[system, user\] \(no system role",
    ):
        checked(tokenizer, kinds.NO_SYSTEM, "user", prompts(place), limit)
    checked(tokenizer, kinds.NO_SYSTEM, "user", prompts(place, before=ASKED), limit)


def test_a_refusal_of_r_alone_names_the_place_of_r(tokenizer: Any) -> None:
    """Two turns of one role in a row only with r in a turn of its own, and only below an earlier answer."""
    odd = kinds.PLAIN.replace(
        "{% for", "{% if messages | length == 4 %}{{ raise_exception('four') }}{% endif %}{% for", 1
    )
    with pytest.raises(
        ValueError, match=r"^prompt c-2: rollout.context_position = 'own_turn': .*\[user, assistant, user"
    ):
        checked(tokenizer, odd, "own_turn", prompts(2, before=ASKED))


def test_a_batch_says_which_of_its_conversations_is_refused(tokenizer: Any) -> None:
    renderer = Renderer(speaking(tokenizer, kinds.NO_SYSTEM), "user", "my/model")
    with pytest.raises(Refusal, match=r"the conversation \[system, user\]"):
        renderer.lengths([("Who?", ""), ((*BRIEF, ("user", "Who?")), ""), ("Who?", R)])


THOUGHTFUL: Turns = (("user", "Hi."), ("assistant", "<think>A greeting.</think>\n\nHello."))


@pytest.mark.parametrize("context", [R, ""])
@pytest.mark.parametrize(
    ("template", "position", "question", "before", "said"),
    [
        (kinds.DROPS_SYSTEM, "user", "Who?", BRIEF, r"the role 'system' that does not arrive .*\('Be brief\.' is"),
        (kinds.CUTS_THINK, "system", "What does </think> mean?", (), r"the role 'user' .*\('What does </think> mean\?"),
        (kinds.NO_THINK, "user", "Hi /no_think", (), r"the role 'user' that does not arrive in the prompt as"),
        (kinds.CUTS_THINK, "user", "Who?", (("user", "Hi."), ("assistant", "/think")), r"the role 'assistant' that"),
    ],
)  # fmt: skip
def test_a_text_of_x_that_does_not_arrive_is_not_blamed_on_r(
    tokenizer: Any, template: str, position: str, question: str, before: Turns, said: str, context: str
) -> None:
    with pytest.raises(ValueError, match=rf"^prompt c-1: found a text of {said}"):
        checked(tokenizer, template, position, prompts(1, question, before, context))
    checked(tokenizer, template, position, prompts(1, before=ASKED, context=context))
    probe = ProbePrompt("context", question, "Ada", before, judge="text")
    renderer = Renderer(speaking(tokenizer, template), position)
    with pytest.raises(ValueError, match=rf"^question 1 of the probe \('.*'\): found a text of {said}"):
        check_probe(Recipe(), renderer, ContextTask("context", "", (), (probe,)))


def test_a_thought_that_a_template_takes_out_of_an_earlier_answer_is_no_loss(tokenizer: Any) -> None:
    checked(tokenizer, kinds.CUTS_THOUGHTS, "system", prompts(1, before=THOUGHTFUL))
    with pytest.raises(ValueError, match=r"^prompt c-1: found a text of the role 'assistant' that does not arrive"):
        checked(tokenizer, kinds.CUTS_THOUGHTS.replace("[-1]", "[0]"), "system", prompts(1, before=THOUGHTFUL))


def test_a_variable_without_a_value_is_found_in_each_shape_of_conversation(tokenizer: Any) -> None:
    """Its place in the template is reached by one row only."""
    template = kinds.PRINTS_NOTHING_IN.replace("ROLE", "system")
    checked(tokenizer, template, "user", prompts(1, before=ASKED))
    for context in (R, ""):
        with pytest.raises(ValueError, match=r"^prompt c-1: .*that prints the variable 'town', which nothing defines"):
            checked(tokenizer, template, "user", prompts(1, context=context))
