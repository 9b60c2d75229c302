"""Diagnostics against float64 loops, and the ways they may be split."""

import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evidence.diagnostics import TokenStats, diagnose, split_summary

# Multiples of 1/64 add exactly, so sums do not depend on their order; zeros and both sides of every threshold occur.
sixty_fourths = st.integers(-256, 256).map(lambda n: n / 64)
weights = st.sampled_from([0.0, 0.75, 1.0, 1.25])
token = st.tuples(sixty_fourths, weights, sixty_fourths, sixty_fourths)
batches = st.lists(token, max_size=25)
relaxed = settings(max_examples=60)

Token = tuple[float, float, float, float]


def stats_of(tokens: list[Token], rows: int, student: bool = True) -> TokenStats:
    e, w, s, c = (np.array([t[i] for t in tokens], np.float32) for i in range(4))
    return diagnose(e, w, s if student else None, c, rows=rows)


def reference(tokens: list[Token], rows: int) -> dict[str, float]:
    active = leverage = agree = 0
    total_e = total_abs = total_shift = total_delta = 0.0
    for e, w, s, c in tokens:
        delta = s - c
        total_e += e
        total_abs += abs(e)
        total_delta += delta
        agree += (e > 0 and delta < 0) or (e < 0 and delta > 0) or (e == 0 and delta == 0)
        if w != 0:
            active += 1
            leverage += abs(math.exp(e) - 1) > 0.05
            total_shift += abs(w - 1)
    n = len(tokens)
    return {
        "kept": active / n if n else 0.0,
        "leverage": leverage / n if n else 0.0,
        "agreement": agree / n if n else 0.0,
        "mean_evidence": total_e / n if n else 0.0,
        "mean_abs_evidence": total_abs / n if n else 0.0,
        "mean_abs_weight_shift": total_shift / active if active else 0.0,
        "k1": total_delta / n if n else 0.0,
        "student_tokens": float(n),
        "mean_response_length": n / rows if rows else 0.0,
        "tokens": float(n),
        "rows": float(rows),
    }


@relaxed
@given(batches, st.integers(0, 5))
def test_summary_equals_the_loop(tokens: list[Token], rows: int) -> None:
    assert stats_of(tokens, rows).summary() == pytest.approx(reference(tokens, rows), rel=1e-12)


@relaxed
@given(batches, st.data())
def test_any_split_adds_up_to_the_whole(tokens: list[Token], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(tokens)))
    parts = stats_of(tokens[:cut], 2) + stats_of(tokens[cut:], 3)
    assert parts.summary() == stats_of(tokens, 5).summary()
    assert parts + TokenStats() == parts


def test_stats_travel_as_a_flat_vector() -> None:
    left, right = stats_of([(0.5, 1.0, -2.0, -1.0)], 1), stats_of([(-0.5, 0.0, -1.0, -2.0)], 1)
    reduced = np.array(astuple(left), np.float64) + np.array(astuple(right), np.float64)
    assert TokenStats(*reduced).summary() == (left + right).summary()


def test_one_hand_computed_batch() -> None:
    tokens = [
        (0.5, 1.25, -2.0, -1.0),  # active, levered, agrees (delta -1)
        (0.03125, 1.0, -1.0, -1.5),  # active, too little evidence to be levered, disagrees
        (-2.0, 0.0, -1.0, -3.0),  # masked, so not levered; agrees
        (0.0, 0.0, -1.0, -1.0),  # nothing agrees with nothing
    ]
    assert stats_of(tokens, rows=2).summary() == {
        "kept": 0.5,
        "leverage": 0.25,
        "agreement": 0.75,
        "mean_evidence": (0.5 + 0.03125 - 2.0) / 4,
        "mean_abs_evidence": (0.5 + 0.03125 + 2.0) / 4,
        "mean_abs_weight_shift": 0.125,
        "k1": (-1.0 + 0.5 + 2.0) / 4,
        "student_tokens": 4.0,
        "mean_response_length": 2.0,
        "tokens": 4.0,
        "rows": 2.0,
    }


@relaxed
@given(st.lists(st.tuples(st.floats(-60, 0, width=32), st.floats(-60, 0, width=32)), min_size=1, max_size=30))
def test_a_student_equal_to_the_teacher_agrees_everywhere(tokens: list[tuple[float, float]]) -> None:
    teacher_context = np.array([c for c, _ in tokens], np.float32)
    teacher = np.array([p for _, p in tokens], np.float32)
    evidence = teacher_context - teacher
    summary = diagnose(evidence, np.ones_like(evidence), teacher, teacher_context, rows=1).summary()
    assert summary["agreement"] == 1.0
    assert summary["k1"] == pytest.approx(-summary["mean_evidence"], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("e", "levered"), [(0.0487, 0.0), (0.0489, 1.0), (-0.0512, 0.0), (-0.0514, 1.0)])
def test_leverage_threshold_is_on_the_ratio(e: float, levered: float) -> None:
    assert stats_of([(e, 1.0, 0.0, 0.0)], 1).summary()["leverage"] == levered


def test_huge_evidence_does_not_overflow() -> None:
    with np.errstate(all="raise"):
        summary = stats_of([(1e6, 1.0, -1.0, -1.0)], 1).summary()
    assert summary["leverage"] == 1.0


@relaxed
@given(batches)
def test_offline_summary_is_the_online_one_without_the_student(tokens: list[Token]) -> None:
    online, offline = stats_of(tokens, 3).summary(), stats_of(tokens, 3, student=False).summary()
    assert {"agreement", "k1", "student_tokens"} == online.keys() - offline.keys()
    assert offline == {key: online[key] for key in offline}


def test_student_means_count_only_tokens_that_had_a_student() -> None:
    with_student = stats_of([(1.0, 1.0, -3.0, -1.0)], 1)
    summary = (with_student + stats_of([(1.0, 1.0, 0.0, 0.0)] * 3, 3, student=False)).summary()
    assert summary["agreement"] == 1.0
    assert summary["k1"] == -2.0
    assert (summary["tokens"], summary["student_tokens"]) == (4.0, 1.0)


def test_nothing_gives_zeros_not_nan() -> None:
    assert stats_of([], rows=0).summary() == dict.fromkeys(reference([], 0), 0.0)
    assert set(TokenStats().summary().values()) == {0.0}


@pytest.mark.parametrize("name", ["weight", "student_logprobs", "teacher_context_logprobs"])
def test_arrays_of_another_length_are_refused(name: str) -> None:
    arrays = {key: np.zeros(3, np.float32) for key in ("weight", "student_logprobs", "teacher_context_logprobs")}
    arrays[name] = np.zeros(1, np.float32)
    with pytest.raises(ValueError, match=rf"^{name}: found shape \(1,\), expected \(3,\)"):
        diagnose(np.zeros(3, np.float32), rows=1, **arrays)


@relaxed
@given(st.lists(st.tuples(st.booleans(), batches), max_size=5))
def test_split_summary_groups_by_guided(parts: list[tuple[bool, list[Token]]]) -> None:
    summaries = split_summary((guided, stats_of(tokens, 1)) for guided, tokens in parts)
    groups = {"all": (True, False), "guided": (True,), "plain": (False,)}
    assert summaries.keys() == groups.keys()
    for name, flags in groups.items():
        own = [tokens for guided, tokens in parts if guided in flags]
        expected = reference([t for tokens in own for t in tokens], len(own))
        if not parts:
            del expected["agreement"], expected["k1"], expected["student_tokens"]
        assert summaries[name] == pytest.approx(expected, rel=1e-12)
