"""How rows are dealt out to ranks and packed, by hand: each number here is what a person counts."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from evidence.records import TrainRow
from evidence.rule import TAU_KINDS, EvidenceConfig
from learner.batches import contributing, count, pack, pack_idle, to_last_kept
from learner.objectives import OBJECTIVES, BatchCounts
from learner.plan import plan, row_length
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


# Rows of unequal length: what attention pads is bounded. The budget of each is its tokens, so that they alone decide.


def test_short_rows_are_not_packed_beside_a_long_one() -> None:
    """11 rows as long as the longest are 33,000 tokens for 4,000; apart they are 4,000."""
    rows = rows_of((500, 2501), *[(50, 51)] * 10)
    assert lengths(plan(rows, 1, 4000)) == [[[3000], [100] * 10]]


def test_padding_of_a_few_hundred_tokens_a_token_costs_less_than_another_pack() -> None:
    """1,014 tokens of padding beside a row of 1,024: 512 * 2,028 of their products, and not one token more."""
    rows = rows_of((10, 1015), (10, 1))
    assert lengths(plan(rows, 1, 2028)) == [[[1024, 10]]]
    assert lengths(plan(rows, 1, 2027)) == [[[1024], [10]]]


def test_the_samples_of_a_prompt_are_parted_by_length_where_they_are_unequal() -> None:
    prompt = make_row(10, 1).prompt_ids
    group = [replace(make_row(10, size, seed=seed), prompt_ids=prompt) for seed, size in enumerate([2001, 11] * 2)]
    assert lengths(plan(group, 1, 4100)) == [[[2010, 2010], [20, 20]]]


def test_a_prompt_that_many_rows_share_unpacks_to_at_most_four_times_the_budget() -> None:
    """Rows of 104 = 100 + 4: 12 of them are 1,248 unpacked tokens, and 148 packed ones."""
    group = [make_row(100, 5)] * 12
    assert [len(pack) for pack in plan(group, 1, 312)[0]] == [12]
    assert [len(pack) for pack in plan(group, 1, 311)[0]] == [11, 1]


def test_what_a_teacher_reads_is_bounded_too_where_it_reads() -> None:
    """Under (x, r) rows of 404 = 400 + 4: 4 * 4 * 101 is 1,616, four of them."""
    context = np.arange(400, dtype=np.int32)
    group = [replace(make_row(30, 5), context_prompt_ids=context)] * 8  # two to a pack, if each had its own prompt
    assert [len(pack) for pack in plan(group, 1, 101, is_compared=True)[0]] == [4, 4]
    assert [len(pack) for pack in plan(group, 1, 101)[0]] == [8]
    others = [replace(make_row(10, 5, seed=seed), context_prompt_ids=context) for seed in range(8)]
    assert [len(pack) for pack in plan(others, 1, 112, is_compared=True)[0]] == [4, 4]
    assert [len(pack) for pack in plan(others, 1, 112)[0]] == [8]


def test_a_teacher_bounds_the_rows_of_a_parted_group_too() -> None:
    """Two ranks take four rows each, one by one: 4 * 14 tokens, and 4 * 4 * 60 under (x, r) hold two of 404."""
    group = [replace(make_row(10, 5), context_prompt_ids=np.arange(400, dtype=np.int32))] * 8
    assert [[len(pack) for pack in rank] for rank in plan(group, 2, 60, is_compared=True)] == [[2, 2]] * 2
    assert [[len(pack) for pack in rank] for rank in plan(group, 2, 60)] == [[4]] * 2


def test_the_longest_samples_of_a_prompt_are_taken_first() -> None:
    """1 + 5 + 2 tokens fill a pack of 8, and 1 + 1 are left; the shortest first would leave 1 + 5."""
    group = [replace(make_row(1, size, seed=size), prompt_ids=make_row(1, 1).prompt_ids) for size in (2, 3, 6)]
    assert lengths(plan(group, 1, 8)) == [[[6, 3], [2]]]


def test_math_like_lengths_unpack_to_little_more_than_they_are() -> None:
    """Sixteen prompts with eight responses each, of log-normal lengths up to 4,096. First fit by tokens pads them to
    2.6 times the packed tokens, at worst 5.2."""
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(16):
        sizes = np.minimum(rng.lognormal(6.5, 0.9, 8).astype(int) + 1, 4096)
        group = [make_row(int(rng.integers(60, 200)), int(size), seed=seed) for size in sizes]
        rows += [replace(row, prompt_ids=group[0].prompt_ids) for row in group]
    packs = plan(rows, 1, 8192)[0]
    streams = [pack(part, count(part), "response").tokens for part in packs]
    padded = [tokens.packed.padded[0].numel() for tokens in streams]
    packed = [len(tokens.input_ids_S) for tokens in streams]
    assert sum(padded) < 1.6 * sum(packed)
    assert max(many / few for many, few in zip(padded, packed, strict=True)) < 2.7
    assert len(packs) < 2 * sum(packed) / 8192


# anchor_on = "kept"

MIDDLE = [0, 0.9, 0, 1.1, 0, 0]  # two kept tokens of six


def sampled(row: TrainRow) -> TrainRow:
    """The row with the log-probs -1, -2, -3 ... of the engine that sampled it."""
    return replace(row, sampler_logprobs=-np.arange(1, len(row.response_ids) + 1, dtype=np.float32))


def test_a_row_ends_with_its_last_kept_token() -> None:
    row = sampled(make_row(5, 6, weight=MIDDLE, advantage=0.5))
    cut = to_last_kept(row)
    assert (len(cut.response_ids), cut.num_left_out, row_length(cut)) == (4, 2, 5 + 4 - 1)
    for name in ("response_ids", "teacher_context_logprobs", "teacher_logprobs", "evidence", "weight"):
        assert np.array_equal(getattr(cut, name), getattr(row, name)[:4]), name
    assert cut.sampler_logprobs is not None and cut.sampler_logprobs.tolist() == [-1, -2, -3, -4]
    unchanged = ("rollout_id", "guided", "prompt_ids", "context_prompt_ids", "advantage")
    assert all(getattr(cut, name) is getattr(row, name) for name in unchanged)


def test_a_row_that_is_cut_again_counts_what_it_had_left_out() -> None:
    first = to_last_kept(make_row(2, 6, weight=MIDDLE))
    again = to_last_kept(replace(first, weight=np.array([0, 1, 0, 0], np.float32)))
    assert (len(again.response_ids), again.num_left_out) == (2, 4)


@pytest.mark.parametrize(
    ("weight", "length"), [([1, 0, 0], 1), ([0, 0, 1], 3), ([1], 1)], ids=["first", "last", "only token"]
)
def test_the_first_and_the_last_token_may_be_the_last_kept_one(weight: list[float], length: int) -> None:
    row = make_row(2, len(weight), weight=weight)
    cut = to_last_kept(row)
    assert (len(cut.response_ids), cut.num_left_out, cut.sampler_logprobs) == (length, len(weight) - length, None)
    assert cut.response_ids.tolist() == row.response_ids.tolist()[:length]


@pytest.mark.parametrize(("name", "beta_kl"), [("k1", 0.0), ("k1", 0.05), ("forward_kl", 0.05), ("grpo", 0.05)])
def test_an_anchor_on_kept_tokens_drops_rows_that_keep_none_and_ends_the_others(name: str, beta_kl: float) -> None:
    """Under grpo a row whose advantage is 0 stays too, for its anchor."""
    weights = [[0, 0, 0], [0, 1.2, 0], [1, 1, 1]]
    rows = [make_row(2, 3, seed=seed, weight=weight, advantage=0.0) for seed, weight in enumerate(weights)]
    found = contributing(rows, OBJECTIVES[name], beta_kl, "kept")
    assert [(row.rollout_id, len(row.response_ids)) for row in found] == [("1", 2), ("2", 3)]


def test_without_an_anchor_a_kept_row_under_grpo_needs_an_advantage_too() -> None:
    rows = [make_row(2, 3, seed=seed, weight=[1, 0, 0], advantage=advantage) for seed, advantage in enumerate((0, 2))]
    found = contributing(rows, OBJECTIVES["grpo"], 0.0, "kept")
    assert [(row.rollout_id, len(row.response_ids)) for row in found] == [("1", 1)]


@pytest.mark.parametrize(("anchor_on", "held"), [("all", [1] * 8), ("kept", [0, 1, 0, 1, 0, 0, 1, 0])])
def test_the_anchor_holds_all_tokens_or_the_kept_ones(anchor_on: str, held: list[int]) -> None:
    """Each by one of all the step's tokens, whatever its weight: 8 here and 8 in other micro-batches."""
    rows = [make_row(5, 6, weight=MIDDLE), make_row(3, 2, weight=[-0.5, 0])]
    batch = pack(rows, BatchCounts(tokens=16, kept=5, rows=4), "kept", anchor_on)
    assert batch.anchor_scale_N.tolist() == [one / 16 for one in held]
    assert batch.scale_N.tolist() == pytest.approx([1 / 5] * 8)


def test_a_row_that_was_cut_is_scaled_by_its_whole_length() -> None:
    whole = [make_row(5, 6, weight=MIDDLE), make_row(3, 2)]
    batch = pack([to_last_kept(row) for row in whole], count(whole), "sequence_mean")
    assert batch.scale_N.tolist() == pytest.approx([1 / 12] * 4 + [1 / 4] * 2)  # 2 rows, of 6 tokens and of 2


# What a batch carries


def test_a_batch_carries_its_rows_and_their_streams_in_order() -> None:
    """The engine's log-probs are there for the tokens that it sampled under x."""
    rows = [sampled(make_row(5, 3, seed=0)), replace(sampled(make_row(2, 2, seed=1)), guided=True), make_row(4, 1)]
    batch = pack(rows, count(rows), "response")
    assert batch.rows == tuple(rows)
    assert batch.evidence_N.tolist() == [e for row in rows for e in row.evidence.tolist()]
    assert batch.sampler_logprobs_N.tolist() == pytest.approx([-1, -2, -3] + [math.nan] * 3, nan_ok=True)
    floats = [value for value in vars(batch).values() if isinstance(value, Tensor)]
    assert [(value.dtype, value.shape) for value in floats] == [(torch.float32, (6,))] * 8
    for tokens in (batch.tokens, batch.context_tokens):
        assert tokens.packed.starts_R1.dtype == torch.int32  # as attention kernels for rows of unequal length read it
        assert {one.dtype for one in (*tokens[:2], *tokens[3:], tokens.packed.rows_U)} == {torch.int64}


def test_a_step_without_a_token_divides_by_one() -> None:
    batch = pack([make_row(2, 1)], BatchCounts(tokens=0, kept=0, rows=0), "response")
    assert batch.anchor_scale_N.tolist() == [1.0]


def test_an_idle_batch_is_one_token_that_weighs_nothing() -> None:
    example = make_row(4, 5)
    idle = pack_idle(example)
    streams = [value for value in vars(idle).values() if isinstance(value, Tensor)]
    assert [stream.tolist() for stream in streams] == [[0.0]] * 8
    assert idle.rows == ()
    for tokens in (idle.tokens, idle.context_tokens):
        assert tokens.input_ids_S.tolist() == example.prompt_ids[:1].tolist()
        assert tokens.targets_N.tolist() == example.response_ids[:1].tolist()
        assert tokens.position_ids_S.tolist() == tokens.needed_N.tolist() == [0]


def test_a_rule_is_written_with_its_keys_in_order() -> None:
    written = EvidenceConfig().to_json()
    assert list(json.loads(written)) == sorted(json.loads(written))


def test_the_quantile_of_no_evidence_is_0() -> None:
    assert TAU_KINDS["quantile"](np.empty(0, np.float32), 0.5) == 0.0
