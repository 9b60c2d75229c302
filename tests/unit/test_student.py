"""The student's log-probs and gradients against a plain Hugging Face forward of each row alone, with full logits."""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from evidence.records import TrainRow
from learner import attention
from learner.batches import PackedBatch, PackedTokens, contributing, count, pack, pack_idle
from learner.head import LogprobHead
from learner.load import load_causal_lm, mixes_rows
from learner.model import Student, checkpoint_layers
from learner.objectives import DENOMINATORS, OBJECTIVES
from learner.plan import plan, row_length
from tests import fakes
from tests.reference import kept_for_backward, logprobs_of, plain_model

VOCAB = 2048
SIZES = [(5, 7), (1, 4), (9, 1), (1, 1), (3, 12), (6, 2)]  # (prompt, response) tokens a row
ORDERS = [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [3, 3, 2, 0, 4], [0], [3], [2]]
CHUNKS = [1, 3, 1000]
MODELS = ["tied", "untied"]


def make_row(
    num_prompt: int,
    num_response: int,
    seed: int = 0,
    weight: Sequence[float] | None = None,
    advantage: float | None = None,
) -> TrainRow:
    rng = np.random.default_rng([seed, num_prompt, num_response])
    prompt, response = (rng.integers(0, VOCAB, n).astype(np.int32) for n in (num_prompt, num_response))
    with_r, without = (-5 * rng.random(num_response, np.float32) for _ in range(2))
    weights = np.ones(num_response) if weight is None else np.array(weight)
    context_prompt = np.concatenate([rng.integers(0, VOCAB, 1 + seed % 3).astype(np.int32), prompt])
    streams = (with_r, without, with_r - without, weights.astype(np.float32))
    return TrainRow(f"{seed}", False, prompt, context_prompt, response, *streams, advantage)


ROWS = [make_row(*size, seed=seed) for seed, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    untied = fakes.tiny_model(tmp_path_factory.mktemp("untied"), tied=False)
    return {"tied": tiny_model, "untied": untied}


def row_logprobs(model: Any, row: TrainRow) -> Tensor:
    return logprobs_of(model, row.prompt_ids, row.response_ids)


def packed(rows: Sequence[TrainRow]) -> PackedBatch:
    return pack(rows, count(rows), "response")


def forward(student: Student, rows: Sequence[TrainRow]) -> Tensor:
    return student(*packed(rows).tokens)[0]


def student_of(path: Path, chunk: int) -> Student:
    return Student(load_causal_lm(str(path), torch.float32), chunk)


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("kind", MODELS)
def test_logprobs_equal_each_rows_own_forward(models: dict[str, Path], kind: str, order: list[int]) -> None:
    model, rows = plain_model(models[kind]), [ROWS[index] for index in order]
    with torch.no_grad():
        expected = [row_logprobs(model, row) for row in rows]
        for chunk in CHUNKS:
            found = forward(student_of(models[kind], chunk), rows)
            assert found.dtype == torch.float32
            for mine, theirs in zip(torch.split(found, [len(e) for e in expected]), expected, strict=True):
                assert mine[0].item() == pytest.approx(theirs[0].item(), abs=2e-5)
                assert mine[-1].item() == pytest.approx(theirs[-1].item(), abs=2e-5)
                assert mine.tolist() == pytest.approx(theirs.tolist(), abs=2e-5)


def test_the_reference_can_tell_a_leak_and_a_shift(tiny_model: Path) -> None:
    """What the tolerance above excludes: a row that sees its neighbour, positions that run on, an off-by-one."""
    model, row = plain_model(tiny_model), ROWS[0]
    with torch.no_grad():
        right = row_logprobs(model, row)
        neighbour = np.concatenate([ROWS[4].prompt_ids, ROWS[4].response_ids])
        leaked = row_logprobs(
            model, make_like(row, prompt=np.concatenate([neighbour, row.prompt_ids]), response=row.response_ids)
        )
        full = torch.from_numpy(np.concatenate([row.prompt_ids, row.response_ids])).long()
        stretched = 2 * torch.arange(len(full))  # the rotary embedding sees distances, not where a row begins
        logits = model(full[None], position_ids=stretched[None], use_cache=False).logits[0].double()
        moved = torch.log_softmax(logits, -1)[len(row.prompt_ids) - 1 : -1].gather(1, full[len(row.prompt_ids) :, None])
    assert (leaked - right).abs().min() > 1e-3
    assert (moved.squeeze(1) - right).abs().max() > 1e-3
    assert (right[1:] - right[:-1]).abs().min() > 1e-3


def make_like(row: TrainRow, prompt: np.ndarray, response: np.ndarray) -> TrainRow:
    streams = (row.teacher_context_logprobs, row.teacher_logprobs, row.evidence, row.weight)
    return TrainRow(row.rollout_id, row.guided, prompt.astype(np.int32), row.context_prompt_ids, response, *streams)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("kind", MODELS)
def test_every_parameters_gradient_equals_full_logits_autograd(models: dict[str, Path], kind: str, chunk: int) -> None:
    factors = torch.randn(sum(n for _, n in SIZES), generator=torch.Generator().manual_seed(1))
    student, model = student_of(models[kind], chunk), plain_model(models[kind])
    (forward(student, ROWS) * factors).sum().backward()
    (torch.cat([row_logprobs(model, row) for row in ROWS]) * factors.double()).sum().backward()
    mine, theirs = dict(student.causal_lm.named_parameters()), dict(model.named_parameters())
    assert mine.keys() == theirs.keys()
    assert ("lm_head.weight" in mine) == (kind == "untied")
    for name, parameter in theirs.items():
        assert parameter.grad.abs().max() > 1e-3, name
        assert torch.allclose(mine[name].grad, parameter.grad, rtol=1e-4, atol=1e-4 * parameter.grad.abs().max()), name


def test_gradient_checks_out_numerically() -> None:
    """float64 finite differences of the head alone, hidden states and weight."""
    random = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(11, 4, generator=random))
    hidden = torch.randn(5, 4, generator=random, requires_grad=True)
    targets, factors = torch.tensor([0, 10, 3, 3, 7]), torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0])
    (LogprobHead(weight, chunk=2)(hidden, targets)[0] * factors).sum().backward()

    def value(hidden: np.ndarray, weight: np.ndarray) -> float:
        logits = hidden @ weight.T
        logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return float((logprobs[np.arange(5), targets] * factors.numpy()).sum())

    at = [hidden.detach().double().numpy(), weight.detach().double().numpy()]
    for which, grad in ((0, hidden.grad), (1, weight.grad)):
        for place in np.ndindex(*at[which].shape):
            up, down = [part.copy() for part in at], [part.copy() for part in at]
            up[which][place] += 1e-5
            down[which][place] -= 1e-5
            assert grad[place].item() == pytest.approx((value(*up) - value(*down)) / 2e-5, abs=1e-5)


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_checkpointed_layers_keep_their_input_only(tiny_model: Path, zero_stage: int) -> None:
    kept: dict[bool, int] = {}
    for checkpointed in (False, True):
        student = student_of(tiny_model, 8)
        if checkpointed:
            checkpoint_layers(student.causal_lm, zero_stage)
        with kept_for_backward() as sizes:
            forward(student, ROWS)
        parameters = {parameter.untyped_storage().data_ptr() for parameter in student.parameters()}
        kept[checkpointed] = sum(size for place, size in sizes.items() if place not in parameters)
    assert kept[True] < 0.2 * kept[False]


class VocabularyRows(TorchDispatchMode):
    """Rows of each tensor made whose last dimension is the vocabulary; views of the parameters are not made."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self._parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.rows: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if not isinstance(tensor, Tensor) or tensor.dim() == 0 or tensor.shape[-1] != VOCAB:
                continue
            if tensor.untyped_storage().data_ptr() not in self._parameters:
                self.rows.append(tensor.numel() // VOCAB)
        return made


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_no_tensor_of_vocabulary_width_is_taller_than_the_chunk(tiny_model: Path, chunk: int) -> None:
    student = student_of(tiny_model, chunk)
    num = sum(n for _, n in SIZES)
    with VocabularyRows(student) as seen:
        logprobs = forward(student, ROWS)
        in_forward = len(seen.rows)
        logprobs.sum().backward()
    assert max(seen.rows) == chunk
    assert in_forward >= -(-num // chunk)
    assert len(seen.rows) - in_forward >= -(-num // chunk)  # the recorder sees the backward pass too


def test_the_recorder_sees_full_logits(tiny_model: Path) -> None:
    model = plain_model(tiny_model)
    with VocabularyRows(model) as seen:
        row_logprobs(model, ROWS[4]).sum().backward()
    assert sum(SIZES[4]) in seen.rows


def test_bfloat16_heads_give_float32_logits() -> None:
    precision = torch.backends.mkldnn.matmul.fp32_precision
    random = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(500, 64, generator=random).bfloat16())
    hidden = (3 * torch.randn(20, 64, generator=random)).bfloat16().requires_grad_()
    targets = torch.randint(500, (20,), generator=random)
    (found,) = LogprobHead(weight, chunk=7)(hidden, targets)
    exact_hidden, exact_weight = (t.detach().double().requires_grad_() for t in (hidden, weight))
    logits = exact_hidden @ exact_weight.T
    expected = torch.log_softmax(logits, -1).gather(1, targets[:, None]).squeeze(1)
    assert logits.abs().max() > 64  # where bfloat16 steps by 0.5
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-4)

    found.sum().backward()
    expected.sum().backward()
    for mine, exact in ((hidden, exact_hidden), (weight, exact_weight)):
        assert mine.grad.dtype == torch.bfloat16
        assert (mine.grad.double() - exact.grad).norm() < 0.01 * exact.grad.norm()
    assert torch.backends.mkldnn.matmul.fp32_precision == precision  # other products stay as they were


def test_a_bfloat16_student_is_a_float32_forward_of_its_rounded_hidden_states(tiny_model: Path) -> None:
    rounded = plain_model(tiny_model).bfloat16().float()
    student = Student(load_causal_lm(str(tiny_model), torch.bfloat16), 4)
    with torch.no_grad():
        found = forward(student, ROWS)
        expected = torch.cat([row_logprobs(rounded, row) for row in ROWS])
    assert found.dtype == torch.float32
    assert (found - expected).abs().mean() < 0.1
    assert ((found * 2**8) % 1 != 0).any()  # not on bfloat16's grid


def test_an_lm_head_with_a_bias_is_refused(tiny_model: Path) -> None:
    model = load_causal_lm(str(tiny_model), torch.float32)
    model.lm_head = torch.nn.Linear(64, VOCAB)
    with pytest.raises(ValueError, match="lm_head with a bias"):
        Student(model, 4)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.path: found no config\.json in "):
        load_causal_lm(str(tmp_path), torch.float32)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolution over three tokens, then attention."""
    folder, sizes = tmp_path_factory.mktemp("hybrid"), {"num_attention_heads": 4, "num_key_value_heads": 2}
    layers = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"], "initializer_range": 0.2}
    config = Lfm2Config(vocab_size=VOCAB, hidden_size=64, intermediate_size=128, **sizes, **layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Lfm2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_whose_packed_rows_see_each_other_is_refused(hybrid: Path, dtype: torch.dtype) -> None:
    found = re.escape(f"model.path: {hybrid}: found Lfm2ForCausalLM, in which packed rows see each other, expected")
    with pytest.raises(ValueError, match=found):
        load_causal_lm(str(hybrid), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_of_attention_only_keeps_its_rows_apart(tiny_model: Path, dtype: torch.dtype) -> None:
    causal_lm = load_causal_lm(str(tiny_model), dtype)
    assert not mixes_rows(causal_lm)
    assert forward(Student(causal_lm, 5), ROWS).isfinite().all()  # and nothing of the question stays


def test_what_is_refused_would_have_other_log_probs(hybrid: Path) -> None:
    """Each of two rows alone is right; packed, the second is not, and a shared prompt's first neither."""
    model, rows = plain_model(hybrid), [make_row(5, 7, seed=1), make_row(5, 7, seed=2)]
    unchecked = AutoModelForCausalLM.from_pretrained(str(hybrid), attn_implementation=attention.NAME)
    student = Student(unchecked, 5)
    with torch.no_grad():
        expected = [row_logprobs(model, row) for row in rows]
        for row, alone in zip(rows, expected, strict=True):
            assert forward(student, [row]).tolist() == pytest.approx(alone.tolist(), abs=2e-5)
        first, second = forward(student, rows).split(7)
        assert first.tolist() == pytest.approx(expected[0].tolist(), abs=2e-5)
        assert (second - expected[1]).abs().max() > 0.05
        same = grouped(rows, 1)
        shared = torch.cat([row_logprobs(model, row) for row in same])
        assert (forward(student, same) - shared).abs().max() > 0.05


def test_soft_capped_attention_is_refused_as_the_model_loads(tmp_path: Path) -> None:
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 1}
    config = Gemma2Config(vocab_size=VOCAB, hidden_size=64, intermediate_size=128, **sizes)
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model\.path: found \['softcap'\], expected plain attention"):
        load_causal_lm(str(tmp_path), torch.float32)


@pytest.mark.parametrize("window", [12, 13])
def test_a_row_longer_than_the_models_sliding_window_is_refused(tmp_path: Path, window: int) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MistralConfig(vocab_size=VOCAB, intermediate_size=128, sliding_window=window, **sizes)
    MistralForCausalLM(config).save_pretrained(tmp_path)
    student, row = student_of(tmp_path, 5), make_row(3, 11)  # 13 tokens are run
    with torch.no_grad():
        if window == 13:
            expected = row_logprobs(plain_model(tmp_path), row).tolist()
            assert forward(student, [row]).tolist() == pytest.approx(expected, abs=2e-5)
        else:
            with pytest.raises(ValueError, match="found rows longer than its sliding window"):
                forward(student, [row])


def grouped(rows: Sequence[TrainRow], num_prompts: int) -> list[TrainRow]:
    """The rows with the prompts of the first `num_prompts` of them, in turn."""
    return [
        replace(row, prompt_ids=other.prompt_ids, context_prompt_ids=other.context_prompt_ids)
        for row, other in zip(rows, itertools.cycle(rows[:num_prompts]), strict=False)
    ]


# Rows that share a prompt


@pytest.mark.parametrize("kind", MODELS)
def test_a_shared_prompt_is_run_once_and_changes_neither_log_probs_nor_gradients(
    models: dict[str, Path], kind: str
) -> None:
    rows = grouped(ROWS, 2)
    factors = torch.randn(sum(n for _, n in SIZES), generator=torch.Generator().manual_seed(1))
    student, model = student_of(models[kind], 3), plain_model(models[kind])
    assert len(packed(rows).tokens.input_ids_S) == 5 + 1 + sum(n - 1 for _, n in SIZES)
    found, expected = forward(student, rows), torch.cat([row_logprobs(model, row) for row in rows])
    assert found.tolist() == pytest.approx(expected.tolist(), abs=2e-5)
    (found * factors).sum().backward()
    (expected * factors.double()).sum().backward()
    mine = dict(student.causal_lm.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.allclose(mine[name].grad, parameter.grad, rtol=1e-4, atol=1e-4 * parameter.grad.abs().max()), name


def test_a_plan_keeps_a_prompts_rows_together_where_budget_and_balance_allow() -> None:
    rows = grouped([make_row(20, 6, seed=seed) for seed in range(16)], 2)
    shuffled = [rows[index] for index in np.random.default_rng(0).permutation(16)]

    def prompts(budget: int, num_ranks: int) -> list[list[int]]:
        """The number of different prompts of each pack, rank by rank."""
        ranks = plan(shuffled, num_ranks, budget)
        assert sorted(id(row) for packs in ranks for part in packs for row in part) == sorted(map(id, shuffled))
        return [[len({row.prompt_ids.tobytes() for row in part}) for part in packs] for packs in ranks]

    assert prompts(120, 1) == [[2]]  # 2 prompts of 20 tokens and 16 responses of 5
    assert prompts(60, 1) == [[1, 1]]
    assert prompts(119, 1) == [[1, 1]]
    assert prompts(40, 1) == [[1, 1, 1, 1]]
    halves = plan(shuffled, 2, 1000)
    assert [sum(len(part) for part in packs) for packs in halves] == [8, 8]


# plan and pack

sizes = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=30)
quick = settings(deadline=None, max_examples=100)


@quick
@given(sizes, st.integers(1, 5), st.integers(1, 40))
def test_a_plan_places_every_row_once_within_the_budget(
    sizes: list[tuple[int, int]], num_ranks: int, budget: int
) -> None:
    rows = [make_row(*size, seed=seed) for seed, size in enumerate(sizes)]
    ranks = plan(rows, num_ranks, budget)
    assert len(ranks) == num_ranks
    assert sorted(id(row) for packs in ranks for part in packs for row in part) == sorted(id(row) for row in rows)
    assert len({len(packs) for packs in ranks}) == 1
    for part in (part for packs in ranks for part in packs):
        assert sum(row_length(row) for row in part) <= budget or len(part) == 1
    loads = [sum(row_length(row) for part in packs for row in part) for packs in ranks]
    assert max(loads) - min(loads) <= max(row_length(row) for row in rows)
    assert any(all(packs) for packs in ranks)  # no micro-batch in which every rank idles


@quick
@given(sizes, st.integers(1, 4), st.integers(1, 40), st.sampled_from(sorted(DENOMINATORS)), st.integers(0, 99))
def test_scales_of_any_split_sum_to_the_whole(
    sizes: list[tuple[int, int]], num_ranks: int, budget: int, denominator: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = [make_row(p, t, seed=i, weight=rng.choice([0, 0.8, 1.2], t)) for i, (p, t) in enumerate(sizes)]
    batches = [
        pack(part, count(rows), denominator) if part else pack_idle(rows[0])
        for packs in plan(rows, num_ranks, budget)
        for part in packs
    ]
    scale, anchor, weight = (
        torch.cat([getattr(b, f"{k}_N") for b in batches]).double() for k in ("scale", "anchor_scale", "weight")
    )
    tokens, kept = sum(t for _, t in sizes), int(weight.ne(0).sum())
    assert anchor.sum().item() == pytest.approx(1, abs=1e-5)
    expected = {"response": 1.0, "sequence_mean": 1.0, "sum": float(tokens), "kept": tokens / max(kept, 1)}
    assert scale.sum().item() == pytest.approx(expected[denominator], rel=1e-5)


@quick
@given(sizes, st.integers(1, 30))
def test_a_pack_concatenates_rows_and_points_at_what_predicts_them(sizes: list[tuple[int, int]], num: int) -> None:
    rows = grouped([make_row(*size, seed=seed) for seed, size in enumerate(sizes)], num)
    batch = packed(rows)
    assert_points_at_what_predicts(batch.tokens, [row.prompt_ids for row in rows], rows)
    assert_points_at_what_predicts(batch.context_tokens, [row.context_prompt_ids for row in rows], rows)
    columns = {"teacher_context_logprobs": "teacher_context_logprobs", "base_logprobs": "teacher_logprobs"}
    for stream, column in (columns | {"weight": "weight"}).items():
        expected = np.concatenate([getattr(row, column) for row in rows])
        assert np.array_equal(getattr(batch, f"{stream}_N").numpy(), expected)


def assert_points_at_what_predicts(tokens: PackedTokens, prompts: Sequence[np.ndarray], rows: list[TrainRow]) -> None:
    inputs, positions, needed, targets = (
        stream.tolist() for stream in (tokens.input_ids_S, tokens.position_ids_S, tokens.needed_N, tokens.targets_N)
    )
    table, place = (part.tolist() for part in tokens.packed.padded)
    once = {prompt.tobytes(): len(prompt) for prompt in prompts}
    assert len(inputs) == sum(once.values()) + sum(len(row.response_ids) - 1 for row in rows)
    at = 0
    for index, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        full = [*prompt.tolist(), *row.response_ids.tolist()]
        own = table[index][: len(full) - 1]
        assert [inputs[token] for token in own] == full[:-1]
        assert [positions[token] for token in own] == list(range(len(full) - 1))
        for t, token in enumerate(row.response_ids.tolist()):
            position = own.index(needed[at + t])
            assert full[position + 1] == targets[at + t] == token
        assert own.index(needed[at]) == len(prompt) - 1  # the last prompt token predicts the first of the response
        at += len(row.response_ids)
    assert at == len(needed) == len(targets)
    flat = [token for own in table for token in own]
    assert [flat[spot] for spot in place] == list(range(len(inputs)))
    one_after_another, starts = tokens.packed.rows_U.tolist(), tokens.packed.starts_R1.tolist()
    for own, begin, end in zip(table, starts, starts[1:], strict=False):
        assert own[: end - begin] == one_after_another[begin:end]
        assert set(own[end - begin :]) <= {own[end - begin - 1]}  # its own last token, of no other row
    assert [one_after_another[spot] for spot in tokens.packed.place_S.tolist()] == list(range(len(inputs)))
    assert tokens.packed.longest == max(map(len, table))


def test_an_advantage_is_on_each_token_of_its_row_and_not_a_number_where_there_is_none() -> None:
    batch = packed([make_row(2, 3, advantage=-1.5), make_row(4, 1), make_row(1, 2, advantage=0.25)])
    assert batch.advantage_N.tolist() == pytest.approx([-1.5] * 3 + [math.nan] + [0.25] * 2, nan_ok=True)


def test_the_contributing_rows_are_all_under_an_anchor_and_otherwise_those_with_a_kept_token() -> None:
    rows = [
        make_row(2, 3, seed=0, weight=[0, 0, 0]),
        make_row(2, 3, seed=1, weight=[0, 0, 1.2]),
        make_row(2, 1, seed=2),
    ]
    for name in ("k1", "forward_kl"):
        assert contributing(rows, OBJECTIVES[name], 0.05, "all") == rows
        assert contributing(rows, OBJECTIVES[name], 0.0, "all") == rows[1:]


def test_rows_contribute_to_grpo_only_with_an_advantage_too() -> None:
    grpo, k1 = OBJECTIVES["grpo"], OBJECTIVES["k1"]
    rows = [
        make_row(2, 3, seed=0, weight=[0, 0, 0], advantage=1.0),
        make_row(2, 3, seed=1, weight=[0, 0, 1.2], advantage=-0.5),
        make_row(2, 1, seed=2, advantage=0.0),
    ]
    assert contributing(rows, grpo, 0.05, "all") == contributing(rows, k1, 0.05, "all") == rows
    assert contributing(rows, grpo, 0.0, "all") == rows[1:2]
    assert contributing(rows, k1, 0.0, "all") == rows[1:]


@pytest.mark.parametrize("beta_kl", [0.0, 0.05])
def test_a_row_without_the_advantage_that_the_objective_needs_is_named(beta_kl: float) -> None:
    rows = [make_row(2, 3, seed=0, advantage=1.0), make_row(2, 3, seed=7, weight=[0, 0, 0])]
    with pytest.raises(ValueError, match="rollout 7: advantage: found none, expected a number"):
        contributing(rows, OBJECTIVES["grpo"], beta_kl, "all")


def test_an_idle_batch_weighs_nothing() -> None:
    batch = pack_idle(ROWS[0])
    assert batch.rows == ()
    for tokens in (batch.tokens, batch.context_tokens):
        assert all(len(stream) == 1 for stream in tokens if isinstance(stream, Tensor)) and tokens.packed.longest == 1
    for name in ("weight_N", "scale_N", "anchor_scale_N", "advantage_N"):
        assert not getattr(batch, name).any()
