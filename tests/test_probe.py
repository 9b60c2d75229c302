"""Probe rates and intervals, against counts made by hand and figures from elsewhere."""

import json
import math
from typing import Any

import pytest

from rollout.probe import ProbeConfig, ProbeResult, summarise, to_json, wilson
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


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [  # Newcombe (1998), Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_matches_published_intervals(k: int, n: int, low: float, high: float) -> None:
    assert wilson(k, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (3, 7), (48, 48), (20, 48)])
def test_wilson_is_symmetric_and_holds_the_rate(k: int, n: int) -> None:
    low, high = wilson(k, n)
    assert 0.0 <= low <= k / n <= high <= 1.0
    assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("k", "n"), [(2, 1), (-1, 3), (1, 0)])
def test_wilson_refuses_impossible_counts(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="wilson: found"):
        wilson(k, n)


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
