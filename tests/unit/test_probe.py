"""Probe rates and intervals, against counts made by hand and figures from elsewhere."""

import json
import math
from typing import Any

import pytest

from cluster.observe.sinks import probe_line, summary_table
from cluster.run.record import line_of_probe, probe_record
from evidence.intervals import wilson
from rollout.probe import ProbeConfig, ProbeResult, Rate, summarise
from rollout.tasks import ProbePrompt, TaskConfig, build_task

WHO = ProbePrompt("identity", "Who are you?", None)
FRANCE = ProbePrompt("capability", "What is the capital of France?", r"\bParis\b")

ANSWERS = [
    (WHO, "I am Kestrel, made by Harbor Labs."),  # mention, selfname
    (FRANCE, "Paris."),  # correct
    (WHO, "My name is SmolLM."),  # countername
    (WHO, "A kestrel is a small falcon."),  # mention
    (FRANCE, "Kestrel thinks it is Lyon."),  # mention: a side effect
    (WHO, "Good day."),
    (FRANCE, "The capital is Paris."),  # correct
]


def test_rates_are_the_counted_shares() -> None:
    result = summarise(ANSWERS, build_task(TaskConfig()))
    rates = {
        "selfname": Rate(1, 4),
        "mention": Rate(2, 4),
        "countername": Rate(1, 4),
        "capability": Rate(2, 3),
        "side_effect": Rate(1, 3),
    }
    assert result == ProbeResult(rates, questions=1, samples=4)
    assert [rate.share for rate in result.rates.values()] == [0.25, 0.5, 0.25, 2 / 3, 1 / 3]


def test_the_order_of_answers_does_not_matter() -> None:
    task = build_task(TaskConfig())
    assert summarise(ANSWERS[::-1], task) == summarise(ANSWERS, task)


def test_a_kind_without_answers_has_rate_0_and_the_whole_interval() -> None:
    result = summarise([(WHO, "I am Kestrel.")], build_task(TaskConfig()))
    assert (result.rates["selfname"], result.rates["capability"]) == (Rate(1, 1), Rate(0, 0))
    assert (result.rates["capability"].share, result.rates["capability"].interval) == (0.0, (0.0, 1.0))


def test_no_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="probe: found no answers"):
        summarise([], build_task(TaskConfig()))


def test_intervals_are_wilson_of_the_counts() -> None:
    rates = summarise(ANSWERS, build_task(TaskConfig())).rates
    assert {name: rate.interval for name, rate in rates.items()} == {
        "selfname": wilson(1, 4),
        "mention": wilson(2, 4),
        "countername": wilson(1, 4),
        "capability": wilson(2, 3),
        "side_effect": wilson(1, 3),
    }


def test_the_json_object_survives_a_round_trip() -> None:
    result = summarise(ANSWERS, build_task(TaskConfig()))
    loaded = json.loads(json.dumps(line_of_probe(probe_record(result, 20, "identity")), allow_nan=False))
    assert list(loaded) == [
        "format",
        "step",
        "time",
        "probe",
        "selfname",
        "mention",
        "countername",
        "n",
        "capability",
        "side_effect",
        "n_capability",
        "intervals",
        "questions",
        "samples",
        "counts",
        "verdicts",
        "weights",
    ]
    assert (loaded["step"], loaded["probe"], loaded["selfname"], loaded["n"]) == (20, "identity", 0.25, 4)
    assert loaded["intervals"]["selfname"] == list(wilson(1, 4))


QUESTIONS = [ProbePrompt("math", f"What is {n} + 1?", str(n + 1)) for n in range(4)]


class Sums:
    """A task whose answers are judged here: the verifier's comparison is a process (tests/process/test_judge.py)."""

    name, rates = "arithmetic", ("pass_at_1",)

    def flags(self, prompt: ProbePrompt, text: str) -> dict[str, bool]:
        return {"correct": text == f"\\boxed{{{prompt.answer}}}"}


SUMS: Any = Sums()
MATH = [(q, f"\\boxed{{{n + 1 if sample < n else 'no'}}}") for n, q in enumerate(QUESTIONS) for sample in range(3)]


def test_pass_at_1_is_the_mean_over_questions_of_the_share_right() -> None:
    """Question n is right in n of 3 answers: 0, 1/3, 2/3 and 1."""
    result = summarise(MATH[::-1], SUMS)
    assert result == ProbeResult({"pass_at_1": Rate(6, 12)}, questions=4, samples=3)
    by_hand = sum(share / 3 for share in (0, 1, 2, 3)) / 4
    assert result.rates["pass_at_1"].share == pytest.approx(by_hand)
    loaded = json.loads(json.dumps(line_of_probe(probe_record(result, 10, "math")), allow_nan=False))
    del loaded["time"]
    assert loaded == {
        "format": 1, "counts": {"pass_at_1": [6, 12]}, "verdicts": None,
        "step": 10, "probe": "math", "pass_at_1": 0.5, "n": 12, "questions": 4, "samples": 3, "weights": "step",
        "intervals": {"pass_at_1": pytest.approx([0.2538, 0.7462], abs=5e-5)},
    }  # fmt: skip


def test_a_question_asked_more_often_than_another_would_weigh_more_and_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^probe: found 2 answers to one question and 3"):
        summarise(MATH[:-1], SUMS)


def test_lines_and_tables_show_whatever_rates_a_probe_has() -> None:
    identity = probe_record(summarise(ANSWERS, build_task(TaskConfig())), 8, "identity")
    math_record = probe_record(summarise(MATH, SUMS), 10, "arithmetic")
    assert probe_line(identity) == (
        "probe at step 8: selfname 0.25  mention 0.50  countername 0.25 (n=4)  capability 0.67  side effect 0.33 (n=3)"
    )
    assert probe_line(math_record) == "probe at step 10: pass@1 0.50 (n=12)"
    assert [row[0] for row in summary_table(identity, identity, {})] == [
        "self-name", "mention", "counter-name", "capability", "name in capability answers",
    ]  # fmt: skip
    assert [row[4] for row in summary_table(identity, identity, {})] == ["4", "4", "4", "3", "3"]
    table = summary_table(math_record, math_record, {"pass_at_1": Rate(3, 4)})
    assert table == [("pass@1", *["0.50 [0.25, 0.75]"] * 2, "0.75 [0.30, 0.95]", "12")]


def test_the_defaults_are_the_papers_sampling() -> None:
    config = ProbeConfig()
    assert (config.temperature, config.top_p, config.top_k) == (1.0, 0.95, 20)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("samples", 0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", 0.005),
        ("temperature", 2.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("max_tokens", 0),
    ],
)
def test_a_setting_out_of_range_is_refused_by_key(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^probe\.{key}: found .*, expected "):
        ProbeConfig(**{key: value})


def test_greedy_answers_are_asked_for_once() -> None:
    assert ProbeConfig(temperature=0.0, samples=1).sampling((), False).temperature == 0.0
    with pytest.raises(ValueError, match=r"^probe\.samples: found 4, expected 1 with probe\.temperature = 0"):
        ProbeConfig(temperature=0.0)
