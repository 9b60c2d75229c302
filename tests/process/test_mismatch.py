"""Engine and learner on the same tokens: sums against a loop of their own, in float64, over any split."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evidence.mismatch import Mismatch, mismatch
from learner.report import over_ranks
from tests.process.test_train import ROWS, stepped
from tests.unit.test_student import plain_model, row_logprobs

logprobs = st.floats(-20, 0, width=32)
pairs = st.lists(st.tuples(logprobs, logprobs), max_size=12)


def by_loop(rows: list[list[tuple[float, float]]]) -> tuple[int, float, float]:
    """(tokens, sum of exp(d) - d - 1, sum of |d|), d = learner - engine."""
    tokens, k3, apart = 0, 0.0, 0.0
    for row in rows:
        for learner, engine in row:
            d = learner - engine
            tokens, k3, apart = tokens + 1, k3 + math.exp(d) - d - 1, apart + abs(d)
    return tokens, k3, apart


def of_row(row: list[tuple[float, float]]) -> Mismatch:
    values = np.array(row, np.float32).reshape(-1, 2)
    return mismatch(values[:, 0], values[:, 1])


def assert_is(found: Mismatch, expected: tuple[int, float, float]) -> None:
    assert found.tokens == expected[0]
    assert (found.k3, found.abs_difference) == pytest.approx(expected[1:], rel=1e-9, abs=1e-9)


@given(st.lists(pairs, max_size=5))
def test_sums_add_over_rows_and_ranks(rows: list[list[tuple[float, float]]]) -> None:
    parts = [of_row(row) for row in rows]
    assert_is(sum(parts, Mismatch()), by_loop(rows))
    assert_is(of_row([pair for row in rows for pair in row]), by_loop(rows))
    assert sum(parts, Mismatch()).k3 >= 0


def test_it_estimates_the_divergence_from_the_engine_to_the_learner() -> None:
    """Exact, over the tokens of a small vocabulary in the engine's proportions; the other direction is another one."""
    engine, learner = np.array([0.75, 0.25]), np.array([0.5, 0.5])
    found = mismatch(*(np.log(np.repeat(p, [3, 1])).astype(np.float32) for p in (learner, engine)))
    there, back = (float((p * np.log(p / q)).sum()) for p, q in ((engine, learner), (learner, engine)))
    assert found.means()["mismatch_k3"] == pytest.approx(there, abs=1e-6) and abs(there - back) > 0.01


def test_nothing_has_no_mean() -> None:
    assert Mismatch().means() == {"mismatch_k3": None, "mismatch_abs": None}


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^sampler_logprobs: found shape \(2,\), expected \(3,\)"):
        mismatch(np.zeros(3, np.float32), np.zeros(2, np.float32))


@pytest.mark.parametrize("budget", [16, 64])
def test_the_learner_reports_its_plain_rows_to_the_first_and_the_last_token(tiny_model: Path, budget: int) -> None:
    """The first token of one row and the last of another are off by a known amount; a guided row by more, in vain."""
    model = plain_model(tiny_model)
    own = [row_logprobs(model, row).detach().numpy() for row in ROWS]
    engine = [values.astype(np.float32).copy() for values in own]
    engine[1][0] -= 0.5
    engine[3][-1] += 0.25
    engine[2][:] -= 3.0  # guided
    rows = [
        replace(row, sampler_logprobs=values, guided=index == 2)
        for index, (row, values) in enumerate(zip(ROWS, engine, strict=True))
    ]
    report, _ = stepped(tiny_model, rows, beta_kl=0.05, micro_batch_tokens=budget)
    plain = [list(zip(own[i].tolist(), engine[i].tolist(), strict=True)) for i in (0, 1, 3, 4)]
    tokens, k3, apart = by_loop(plain)
    found = over_ranks([report]).mismatch
    assert (found.tokens, found.abs_difference) == (tokens, pytest.approx(apart, abs=1e-4)) and apart > 0.74
    assert found.k3 == pytest.approx(k3, abs=1e-4)
    assert k3 == pytest.approx(math.expm1(0.5) - 0.5 + math.expm1(-0.25) + 0.25, abs=1e-4)


def test_rows_that_nothing_sampled_are_not_compared(tiny_model: Path) -> None:
    assert stepped(tiny_model, ROWS)[0].mismatch == Mismatch()
