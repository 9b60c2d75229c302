"""The private facts: what is trained and what is asked, and that the arms differ in what they contrast only."""

import re
from dataclasses import replace

import pytest

from cluster.commands.reproduce import AXES, RECIPES
from cluster.config import Recipe, load_recipe
from evidence.rule import EvidenceConfig
from rollout.contrast import check_wrong_contexts
from rollout.tasks import TaskConfig, build_task
from rollout.tasks.judges import JUDGES

TASK = build_task(TaskConfig(name="facts", ordinary_questions=True))
FACTS = [prompt for prompt in TASK.training_prompts() if prompt.context]
PROBES = {
    tag: [one for one in TASK.probe_prompts() if one.tags == (tag,)] for tag in ("facts", "neighbours", "ordinary")
}


def test_there_are_forty_facts_with_several_questions_each() -> None:
    contexts = {prompt.context for prompt in FACTS}
    assert len(contexts) == len(PROBES["facts"]) == 40
    for context in contexts:
        assert len({prompt.question for prompt in FACTS if prompt.context == context}) == 4
    assert len(TASK.training_prompts()) == 160 + 24
    assert len(build_task(TaskConfig(name="facts")).training_prompts()) == 160
    assert sum(map(len, PROBES.values())) == len(TASK.probe_prompts()) == 72


def test_the_main_rate_is_of_the_facts_and_not_of_what_must_not_change() -> None:
    assert TASK.rates == ("correct:facts", "correct", "correct:neighbours", "correct:ordinary")
    other = build_task(TaskConfig(name="facts", main_tag="neighbours"))
    assert other.rates[0] == "correct:neighbours"


def test_each_context_says_its_answer_and_no_wrong_one_does() -> None:
    for prompt in FACTS:
        assert TASK.reward(prompt, prompt.context) == 1.0, prompt
        assert TASK.reward(prompt, prompt.question) == 0.0, "a question must not give its answer away"
        assert len(set(prompt.wrong_contexts)) == 2
        for wrong in prompt.wrong_contexts:
            assert wrong.startswith("You are a helpful AI assistant who knows Quillmere Station well. ")
            assert TASK.reward(prompt, wrong) == 0.0, wrong


def test_every_fact_is_asked_for_once_in_other_words() -> None:
    trained = {(prompt.judge, prompt.answer) for prompt in FACTS}
    assert {(probe.judge, probe.answer) for probe in PROBES["facts"]} == trained
    assert len(trained) == 40
    for probe in PROBES["facts"]:
        assert "Quillmere Station" in probe.question
        assert not TASK.flags(probe, probe.question)["correct"]


def test_a_neighbour_is_right_until_it_is_given_a_fact_of_quillmere() -> None:
    said = {prompt.context for prompt in FACTS}
    for probe in PROBES["neighbours"]:
        assert "Quillmere" not in probe.question
        assert TASK.flags(probe, "I do not know.\nAsk them.")["correct"]
        assert sum(not TASK.flags(probe, f"Well.\n{context}")["correct"] for context in said) == 1, probe


def test_an_ordinary_question_has_no_context_and_no_answer() -> None:
    ordinary = [prompt for prompt in TASK.training_prompts() if not prompt.context]
    assert len(ordinary) == 24 and {prompt.answer for prompt in ordinary} == {None}
    asked = " ".join(prompt.question for prompt in ordinary) + " ".join(one.question for one in PROBES["ordinary"])
    assert not re.search("quillmere", asked, re.IGNORECASE)
    assert all(probe.judge in JUDGES for probe in TASK.probe_prompts())


def test_contrastive_evidence_has_its_wrong_contexts() -> None:
    prompts = build_task(TaskConfig(name="facts")).training_prompts()
    check_wrong_contexts(prompts, EvidenceConfig(kind="contrastive", num_wrong_contexts=2))


def arm(name: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.toml")


@pytest.mark.parametrize(
    ("name", "guided", "region", "beta"),
    [
        ("N1-facts", 0.0, "all", 0.0),
        ("N2-facts", 0.5, "all", 0.0),
        ("N3-facts", 0.5, "pos", 0.05),
        ("N11-facts", 0.5, "neg", 0.05),
    ],
)
def test_the_arms_differ_in_guidance_region_and_anchor_only(name: str, guided: float, region: str, beta: float) -> None:
    assert name in AXES["facts"]
    recipe, first = arm(name), arm("N3-facts")
    assert (recipe.rollout.guided_fraction, recipe.evidence.region, recipe.learner.beta_kl) == (guided, region, beta)
    same = replace(
        recipe,
        run=replace(recipe.run, name=first.run.name),
        rollout=replace(recipe.rollout, guided_fraction=0.5),
        evidence=replace(recipe.evidence, region="pos"),
        learner=replace(recipe.learner, beta_kl=0.05),
    )
    assert same == first
