"""How rows are dealt out to ranks and packed, by hand: each number here is what a person counts."""

import json

import numpy as np
import pytest

from evidence.records import TrainRow
from evidence.rule import TAU_KINDS, EvidenceConfig
from learner.batches import pack_idle, plan, row_length
from tests.unit.test_student import make_row


def rows_of(*sizes: tuple[int, int]) -> list[TrainRow]:
    """A row of (prompt, response) tokens each; equal prompt sizes share no prompt."""
    return [make_row(*size, seed=seed) for seed, size in enumerate(sizes)]


def lengths(ranks: list[list[list[TrainRow]]]) -> list[list[list[int]]]:
    return [[[row_length(row) for row in pack] for pack in rank] for rank in ranks]


def test_a_row_runs_its_prompt_and_all_of_its_response_but_the_last_token() -> None:
    assert [row_length(row) for row in rows_of((5, 7), (1, 1))] == [11, 1]


def test_one_rank_packs_as_many_rows_as_the_budget_holds_and_not_one_more() -> None:
    rows = rows_of((5, 6), (5, 6), (5, 6))  # 10 tokens each
    assert lengths(plan(rows, 1, 20)) == [[[10, 10], [10]]]
    assert lengths(plan(rows, 1, 19)) == [[[10], [10], [10]]]


def test_one_rank_keeps_a_group_together_up_to_the_budget() -> None:
    """For balance a group is parted; a rank by itself has nothing to balance."""
    one = make_row(5, 6)
    group = [one] * 3  # 5 prompt tokens once, and 5 more a row: 20
    assert [[len(pack) for pack in rank] for rank in plan(group, 1, 20)] == [[3]]
    assert [[len(pack) for pack in rank] for rank in plan(group, 1, 19)] == [[2, 1]]


def test_the_longest_go_first_to_the_rank_that_has_least() -> None:
    """Tokens 2, 3, 4, 9 over two ranks: 9 against 4 + 3 + 2. In their own order it would be 2 + 4 against 3 + 9."""
    ranks = plan(rows_of((1, 2), (1, 3), (1, 4), (1, 9)), 2, 100)
    assert lengths(ranks) == [[[9]], [[4, 3, 2]]]


@pytest.mark.parametrize(
    ("num_ranks", "parts"),
    [(1, [[4]]), (2, [[1, 1], [1, 1]]), (3, [[1, 1], [1], [1]])],
    ids=["one rank", "two", "three"],
)
def test_a_group_of_four_is_parted_for_balance_only(num_ranks: int, parts: list[list[int]]) -> None:
    """Four rows of one prompt, 1 + 4 * 9 = 37 tokens: a part has at most 37 // (2 * ranks), or one longer row."""
    ranks = plan([make_row(1, 10)] * 4, num_ranks, 1000)
    assert sorted((sum(len(pack) for pack in rank) for rank in ranks), reverse=True) == [sum(part) for part in parts]


def test_two_ranks_share_a_group_in_halves_of_the_half() -> None:
    """Eight rows of one prompt of 3, 3 + 8 * 2 = 19 tokens: parts of at most 19 // 4 = 4 tokens hold one row of 5."""
    ranks = plan([make_row(3, 3)] * 8, 2, 1000)
    assert [sum(len(pack) for pack in rank) for rank in ranks] == [4, 4]


def test_a_part_is_a_quarter_of_the_step_where_two_ranks_share_it() -> None:
    """16 rows of one prompt of 2, 2 + 16 * 2 = 34 tokens: parts of at most 34 // 4 = 8 tokens are three rows, and the
    six parts of 8, 8, 8, 8, 8 and 4 tokens go in turn."""
    ranks = plan([make_row(2, 3)] * 16, 2, 1000)
    assert [sum(len(pack) for pack in rank) for rank in ranks] == [9, 7]


def test_an_idle_batch_is_one_token_that_weighs_nothing() -> None:
    idle = pack_idle(make_row(4, 5))
    streams = (
        idle.teacher_context_logprobs_N, idle.base_logprobs_N, idle.weight_N, idle.advantage_N, idle.scale_N,
        idle.anchor_scale_N,
    )  # fmt: skip
    assert [stream.tolist() for stream in streams] == [[0.0]] * 6
    assert idle.rows == () and idle.tokens.targets_N.shape == (1,)


def test_a_rule_is_written_with_its_keys_in_order() -> None:
    written = EvidenceConfig().to_json()
    assert list(json.loads(written)) == sorted(json.loads(written))


def test_the_quantile_of_no_evidence_is_0() -> None:
    assert TAU_KINDS["quantile"](np.empty(0, np.float32), 0.5) == 0.0
