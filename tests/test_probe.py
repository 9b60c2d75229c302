"""Probe rates and intervals, against counts made by hand and figures from elsewhere."""

import json
import math
from typing import Any

import pytest

from evidence.intervals import wilson
from rollout.probe import ProbeConfig, ProbeResult, summarise, to_json
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
    assert result == ProbeResult(0.25, 0.5, 0.25, 4, 2 / 3, 1 / 3, 3)


def test_the_order_of_answers_does_not_matter() -> None:
    task = build_task(TaskConfig())
    assert summarise(ANSWERS[::-1], task) == summarise(ANSWERS, task)


def test_a_kind_without_answers_has_rate_0_and_the_whole_interval() -> None:
    result = summarise([(WHO, "I am Kestrel.")], build_task(TaskConfig()))
    assert (result.selfname, result.n, result.capability, result.n_capability) == (1.0, 1, 0.0, 0)
    assert result.intervals()["capability"] == (0.0, 1.0)


def test_no_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="probe: found no answers"):
        summarise([], build_task(TaskConfig()))


def test_intervals_are_wilson_of_the_counts() -> None:
    intervals = summarise(ANSWERS, build_task(TaskConfig())).intervals()
    assert intervals == {
        "selfname": wilson(1, 4),
        "mention": wilson(2, 4),
        "countername": wilson(1, 4),
        "capability": wilson(2, 3),
        "side_effect": wilson(1, 3),
    }


def test_the_json_object_survives_a_round_trip() -> None:
    result = summarise(ANSWERS, build_task(TaskConfig()))
    loaded = json.loads(json.dumps(to_json(result, 20, "identity"), allow_nan=False))
    assert list(loaded) == [
        "step",
        "probe",
        "selfname",
        "mention",
        "countername",
        "n",
        "capability",
        "side_effect",
        "n_capability",
        "intervals",
    ]
    assert (loaded["step"], loaded["probe"], loaded["selfname"], loaded["n"]) == (20, "identity", 0.25, 4)
    assert loaded["intervals"]["selfname"] == list(wilson(1, 4))


def test_the_defaults_are_the_papers_sampling() -> None:
    config = ProbeConfig()
    assert (config.temperature, config.top_p, config.top_k) == (1.0, 0.95, 20)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("samples", 0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("max_tokens", 0),
    ],
)
def test_a_setting_out_of_range_is_refused_by_key(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^probe\.{key}: found .*, expected "):
        ProbeConfig(**{key: value})
