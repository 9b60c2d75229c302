"""Bytes on paper, and what is planned from them; those of a forward pass are in tests/process/test_sizing.py."""

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from cluster.config import ModelConfig, Recipe, RunConfig, TeacherConfig
from cluster.fleet import ray_cluster
from cluster.fleet.placement import Plan, Share, make_plan
from cluster.observe.seen import read_seen
from cluster.observe.sinks import MetricsSink
from cluster.run import start
from cluster.run.memory import with_planned_memory
from cluster.run.record import EnginePlan, read_plans
from cluster.run.rundir import RunDir
from cluster.sizing.budget import KEYS, asked, plan_memory, with_shares
from cluster.sizing.cards import (
    MIB,
    Card,
    beside_others,
    driver_problem,
    find_cards,
    find_instances,
    own_cards,
    settle_devices,
    visible,
)
from cluster.sizing.memory import (
    BUCKET,
    CONTEXT,
    GIB,
    bucket_bytes,
    engine_memory,
    learner_memory,
    logit_bytes,
    push_bytes,
    received_bytes,
)
from cluster.sizing.shape import ModelShape, shape_of
from learner.adapter import add_adapter, trained_parameters
from learner.config import LearnerConfig
from learner.load import load_causal_lm
from rollout.config import EngineConfig
from tests.cards import card, no_smi, smi
from tests.fakes import fake_run

EIGHT_B = ModelShape.decoder(layers=36, hidden=4096, heads=32, key_heads=8, head=128, inner=12288, vocabulary=151_936)
BF16, FP32 = "bfloat16", "float32"

# Shapes


def test_an_engine_of_a_command_takes_what_others_leave_of_its_cards() -> None:
    def with_free(free: int) -> Card:
        return Card(0, "H200", 100, free, "580.65.06", (9, 0))

    assert beside_others(EngineConfig(), [with_free(100)]).gpu_memory_utilization == 0.9
    assert beside_others(EngineConfig(), [with_free(60), with_free(10)]).gpu_memory_utilization == 0.57
    assert (
        beside_others(EngineConfig(tensor_parallel_size=2), [with_free(60), with_free(40)]).gpu_memory_utilization
        == 0.38
    )
    assert beside_others(EngineConfig(gpu_memory_utilization=0.3), [with_free(60)]).gpu_memory_utilization == 0.3
    assert beside_others(EngineConfig(), []) == EngineConfig()


@pytest.mark.parametrize(("free", "held"), [(0, ", held by process 4321"), (1.6, "")])
def test_an_engine_of_a_command_is_refused_where_others_leave_nothing(free: float, held: str) -> None:
    """A share of 0 is none for vLLM, which then takes 0.9 of the card."""
    taken = card(80, free, index=1, holders=(4321,) if held else ())
    with pytest.raises(ValueError) as refused:
        beside_others(EngineConfig(tensor_parallel_size=2), [card(80), taken])
    assert str(refused.value) == (
        f"placement: asked a share of GPU 1 for an engine, found {free:.1f} of 80.0 GiB free{held}; expected a card of "
        "its own: end the other run, or choose a card with CUDA_VISIBLE_DEVICES"
    )
    assert beside_others(EngineConfig(), [card(80, 1.7)]).gpu_memory_utilization == 0.02


def test_published_sizes_come_out() -> None:
    assert EIGHT_B.parameters == pytest.approx(8.19e9, rel=0.001)  # Qwen3-8B
    assert EIGHT_B.cache_bytes(BF16) == 36 * 2 * 8 * 128 * 2 == 147_456


# Learner and engines


def test_weights_masters_moments_and_gradients_of_the_default_model(default_model: Path) -> None:
    """2.4 GB, measured (docs/benchmarks): 18 bytes a parameter on one rank."""
    shape = shape_of(str(default_model))
    memory = learner_memory(shape, LearnerConfig(), shape.parameters, 512)
    assert memory.idle - CONTEXT == 18 * shape.parameters == pytest.approx(2.4e9, rel=0.02)


@pytest.mark.parametrize(
    ("stage", "ranks", "expected"),
    [(0, 4, 2 + 12 + 4), (1, 4, 2 + 3 + 4), (2, 4, 2 + 3 + 1), (3, 4, 0.5 + 3 + 1), (3, 1, 18)],
)
def test_zero_stages_share_out_what_they_say(stage: int, ranks: int, expected: float) -> None:
    """Bytes a parameter (arXiv 1910.02054, with float32 sums of the gradient)."""
    memory = learner_memory(EIGHT_B, LearnerConfig(zero_stage=stage, num_ranks=ranks), EIGHT_B.parameters, 512)
    assert memory.idle - CONTEXT - memory.resident["buffers"] == pytest.approx(expected * EIGHT_B.parameters)


@pytest.mark.parametrize(
    ("settings", "kept", "in_a_step"),
    [
        ({"zero_stage": 0}, 0, 2),
        ({"zero_stage": 1}, 0, 0),
        ({"zero_stage": 1, "dtype": "float32"}, 0, 4 + 4),
        ({"zero_stage": 1, "optimizer": "adamw_16bit"}, 0, 2 + 2 + 4),
        ({"zero_stage": 2}, 0, 2 + 2 + 4),
        ({"zero_stage": 3}, 4, 4),
    ],
    ids=str,
)
def test_what_gradients_are_reduced_in_counts(settings: dict[str, Any], kept: int, in_a_step: int) -> None:
    """Bytes of each of a bucket's 500 million numbers; a small model fills less of one that is made whole."""
    config = LearnerConfig(**settings)
    assert bucket_bytes(config, EIGHT_B.parameters) == (kept * BUCKET, in_a_step * BUCKET)
    of_few, made = bucket_bytes(config, 1000), kept or in_a_step * (config.zero_stage > 0)
    assert of_few[0] == kept * BUCKET and of_few[1] < max(made * BUCKET, 3000)
    memory = learner_memory(EIGHT_B, config, EIGHT_B.parameters, 512)
    gathered = 2 * 10**9 if config.zero_stage == 3 else 0
    assert memory.resident["buffers"] == kept * BUCKET
    assert memory.working["buffers"] == in_a_step * BUCKET + gathered


def test_float32_rows_are_padded_on_a_gpu_and_count_so() -> None:
    """Queries, keys, values and what comes of them, for four times the tokens at most (`learner.config.UNPACKED`)."""
    wide = LearnerConfig(dtype=FP32, micro_batch_tokens=1000)
    padding = learner_memory(EIGHT_B, wide, 1, 512).working["padding"]
    assert padding == 36 * 4 * (4 * 4096) * 4000
    again = learner_memory(EIGHT_B, replace(wide, gradient_checkpointing=True), 1, 512).working["padding"]
    assert again * 36 == padding and learner_memory(EIGHT_B, LearnerConfig(), 1, 512).working["padding"] == 0


EMBEDDING = 151_936 * 4096  # numbers of the largest tensor: 1.16 GiB in 16 bits


@pytest.mark.parametrize(
    ("transport", "stage", "average", "expected"),
    [
        ("shm", 3, False, 0),
        ("ray", 1, False, 0),
        ("ipc", 1, False, 2 * EMBEDDING),
        ("ipc", 3, False, 4 * EMBEDDING),
        ("ipc", 1, True, 8 * EMBEDDING),
        ("nccl", 1, False, GIB + 2 * EMBEDDING),
        ("nccl", 3, False, 2 * (GIB + 2 * EMBEDDING) + 2 * EMBEDDING),
    ],
)
def test_what_a_push_takes_of_the_learners_card(transport: str, stage: int, average: bool, expected: int) -> None:
    """The buffer that tensors are packed into, as large as the largest; and what is gathered for it, or copied."""
    assert push_bytes(EIGHT_B, LearnerConfig(zero_stage=stage), transport, average) == expected
    small = replace(EIGHT_B, parameters=10**8, vocabulary=1000)
    assert push_bytes(small, LearnerConfig(), "ipc") == GIB and push_bytes(small, LearnerConfig(), "nccl") == 2 * 10**8


@pytest.mark.parametrize(
    ("transport", "parts"), [("shm", 0), ("ipc", 2 * EMBEDDING), ("nccl", 2 * (GIB + 2 * EMBEDDING))]
)
def test_what_a_push_takes_of_an_engines_card(transport: str, parts: int) -> None:
    layer = 2 * EMBEDDING if parts else 0
    assert received_bytes(EIGHT_B, BF16, transport, 1) == parts + layer
    assert received_bytes(EIGHT_B, BF16, transport, 2) == parts + layer / 2
    received, alone = received_bytes(EIGHT_B, BF16, transport, 1), engine_memory(EIGHT_B, EngineConfig())
    memory = engine_memory(EIGHT_B, EngineConfig(), received)
    assert memory.fixed["work"] + memory.fixed["push"] == max(alone.fixed["work"], received)  # not at the same time


def test_what_an_h200_was_seen_to_hold_is_within_the_plan_and_near_it(default_model: Path) -> None:
    """The default model, 2026-11-29: torch's own peak of a learner's step over 16 rows of 1,024 tokens, and what
    nvidia-smi said of an engine with a cache of 1.5 GiB, its context included."""
    shape = shape_of(str(default_model))
    learner = learner_memory(shape, LearnerConfig(micro_batch_tokens=4096), shape.parameters, 1024)
    engine = engine_memory(shape, EngineConfig(enforce_eager=True, kv_cache_gib=1.5))
    assert 0.9 < 7_056_618_496 / (learner.peak - CONTEXT) < 1
    assert 0.9 < 2644 * MIB / engine.bytes(64) < 1


@pytest.mark.parametrize(("layers", "vocabulary", "seen"), [(16, 128_256, 33_500_600_000), (4, 50_000, 10_196_368_384)])
def test_a_learner_of_a_large_vocabulary_is_within_its_plan_on_an_h200(
    tmp_path: Path, layers: int, vocabulary: int, seen: int
) -> None:
    """Llama 3.2's 1B, and a quarter of its layers with fewer words, the same day, rows and micro-batches."""
    LlamaConfig(
        vocab_size=vocabulary, hidden_size=2048, head_dim=64, num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=8192, num_hidden_layers=layers, dtype="bfloat16", tie_word_embeddings=True,
    ).save_pretrained(tmp_path)  # fmt: skip
    shape = shape_of(str(tmp_path))
    learner = learner_memory(shape, LearnerConfig(micro_batch_tokens=4096), shape.parameters, 1024)
    assert 0.9 < seen / (learner.peak - CONTEXT) < 1


def test_a_frozen_model_and_an_adapter_count(tiny_model: Path) -> None:
    config = LearnerConfig(lora_rank=4)
    trained = trained_parameters(str(tiny_model), config)
    causal_lm = load_causal_lm(str(tiny_model), torch.float32)
    add_adapter(causal_lm, config)
    assert trained == sum(p.numel() for p in causal_lm.parameters() if p.requires_grad)
    memory = learner_memory(EIGHT_B, LearnerConfig(), trained, 512, frozen_models=2)
    assert memory.idle - CONTEXT == 3 * 2 * EIGHT_B.parameters + 16 * trained


def test_a_longer_row_than_the_micro_batch_is_what_counts() -> None:
    few, many = (learner_memory(EIGHT_B, LearnerConfig(), 1, longest).working["activations"] for longest in (100, 4096))
    assert many == 4 * few


def test_logits_are_a_gib_a_copy_and_the_heads_gradient() -> None:
    expected = 1766 * 151_936 * 6 + 151_936 * 4096 * 8
    assert logit_bytes(EIGHT_B, LearnerConfig()) == expected
    assert logit_bytes(EIGHT_B, LearnerConfig(objective="jsd")) > expected + 3 * GIB
    assert logit_bytes(EIGHT_B, LearnerConfig(lora_rank=8)) == 1766 * 151_936 * 6  # the head is frozen


def test_an_engines_cache_grows_by_the_window() -> None:
    memory = engine_memory(EIGHT_B, EngineConfig(window=1000, max_num_seqs=7))
    assert memory.bytes(3) - memory.bytes(2) == 1008 * 147_456  # in blocks of 16
    assert memory.cache_bytes(1) == 1024 * 147_456  # and one of vLLM's own
    halves = engine_memory(EIGHT_B, EngineConfig(window=1000, tensor_parallel_size=2))
    assert halves.token * 2 == memory.token and halves.fixed["weights"] * 2 == memory.fixed["weights"]
    assert engine_memory(EIGHT_B, EngineConfig(enforce_eager=True)).fixed["graphs"] == 0
    wide = engine_memory(EIGHT_B, TeacherConfig(dtype=FP32))
    assert wide.fixed["weights"] == 2 * memory.fixed["weights"] and wide.token == 2 * memory.token


# Cards


def test_cards_are_read_as_the_driver_tells_them() -> None:
    both = [card(80, 79.5, holders=(4321, 4400)), card(24, 1.5, index=1, name="NVIDIA A10", capability=(8, 6))]
    assert find_cards(smi(*both)) == both
    assert visible(both, "") == visible(both, "0,1") == both
    assert visible(both, "1") == [both[1]]
    assert visible(both, "1, 0") == visible(both, "GPU-1-uuid,GPU-0") == [both[1], both[0]]  # CUDA's first is card 1
    assert visible(both, "7") == visible(both, "GPU-aa") == visible(both, "-1,0") == visible(both, "NoDevFiles") == []
    assert find_cards(no_smi) == []


def test_mig_instances_are_cards_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their UUIDs, which stand in another answer of the driver than their memory."""
    cards = [card(80), card(80, index=1, holders=(4321,)), card(80, index=2)]
    parts = [
        card(39.5, free, index=1, uuid=f"MIG-{free}", name="NVIDIA H100 80GB HBM3 MIG 3g.40gb") for free in (39, 9)
    ]
    ask = smi(*cards, instances=parts)
    expected = [replace(part, holders=(4321,)) for part in parts]
    assert find_instances(ask) == expected and find_cards(ask) == [cards[0], cards[2]]
    for name, find in (("find_cards", find_cards), ("find_instances", find_instances)):
        monkeypatch.setattr(f"cluster.sizing.cards.{name}", partial(find, ask))
    for devices, found in {"MIG-9": expected[1:], "MIG-9,2": [expected[1], cards[2]], "1": [], "2": cards[2:]}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
        assert own_cards() == found


@pytest.mark.parametrize(
    ("given", "settled"),
    [
        ("1, 0", "1,0"), ("GPU-1", "GPU-1-uuid"), ("GPU-1-uuid,0", "GPU-1-uuid,0"), ("MIG-a", "MIG-aa"),
        ("-1", ""), ("NoDevFiles", ""), ("0,-1,1", "0"), ("", ""),
    ],
)  # fmt: skip
def test_what_cuda_makes_of_the_visible_devices_is_said_in_full(given: str, settled: str) -> None:
    ask = smi(card(80), card(80, index=1), card(80, index=2), instances=[card(40, index=1, uuid="MIG-aa")])
    environment = {"CUDA_VISIBLE_DEVICES": given}
    settle_devices(environment, ask)
    assert environment == {"CUDA_VISIBLE_DEVICES": settled, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def test_visible_devices_that_no_card_has_are_refused() -> None:
    for given, found in {
        "0,GPU-b": "GPU-b, which is no GPU of",
        "GPU-": "GPU-, which begins the UUIDs of 2 GPUs",
    }.items():
        with pytest.raises(
            ValueError, match=f"^CUDA_VISIBLE_DEVICES: found {found}.+expected numbers or UUIDs that `nv"
        ):
            settle_devices({"CUDA_VISIBLE_DEVICES": given}, smi(card(80), card(80, index=1)))
    environment = {"CUDA_DEVICE_ORDER": "FASTEST_FIRST", "CUDA_VISIBLE_DEVICES": "GPU-a"}  # and no driver
    settle_devices(environment, no_smi)
    assert environment == {"CUDA_DEVICE_ORDER": "FASTEST_FIRST", "CUDA_VISIBLE_DEVICES": "GPU-a"}
    environment = {}
    settle_devices(environment, no_smi)
    assert "CUDA_VISIBLE_DEVICES" not in environment  # Ray then counts what there is


def test_a_card_whose_memory_the_driver_does_not_tell_is_left_out() -> None:
    """As one that shares the processor's memory."""
    told = smi(card(index=0), card(index=1))

    def ask(arguments: Sequence[str]) -> str:
        return told(arguments).replace("81920, 81408", "[N/A], [N/A]", 1)

    assert [one.index for one in find_cards(ask)] == [1]


@pytest.mark.parametrize(
    ("driver", "cuda", "problem"),
    [
        ("580.95.05", "13.0", ""),
        ("580.65.06", "13.0", ""),
        ("535.104.05", "13.0", "found 535.104.05, expected at least 580.65.06, which CUDA 13.0 of this torch needs"),
        ("580.65.05", "13.0", "found 580.65.05, expected at least 580.65.06"),
        ("535.104.05", "12.8", ""),
        ("470.1", "12.8", "found 470.1, expected at least 525.60.13"),
        ("470.1", None, ""),
        ("470.1", "14.0", ""),
    ],
)
def test_a_driver_older_than_cuda_needs(driver: str, cuda: str | None, problem: str) -> None:
    assert problem in driver_problem(driver, cuda)
    assert bool(driver_problem(driver, cuda)) is bool(problem)


# Plans

ONE_GPU, FOUR = [Share(16, 1)], [Share(64, 4)]


def recipe_of(lag: int = 0, **tables: Any) -> Recipe:
    return Recipe(run=RunConfig(max_policy_lag=lag), **tables)


def planned(recipe: Recipe, nodes: Sequence[Share], shape: ModelShape, *cards: Card) -> list[Any]:
    plan = make_plan(recipe, nodes)
    return plan_memory(recipe, plan, {"student": shape, "teacher": shape}, shape.parameters, cards)


def test_on_one_card_everyone_has_a_share_that_fits(default_model: Path) -> None:
    shape = shape_of(str(default_model))
    (budget,) = planned(recipe_of(), ONE_GPU, shape, card(80))
    assert asked(budget) < 0.96 * 80 * GIB
    assert {pool: sequences for pool, (_, sequences) in budget.engines.items()} == {"student": 64, "teacher": 64}
    told = with_shares(recipe_of(), [budget])
    assert told.student.kv_cache_gib * GIB == pytest.approx((64 * 512 + 16) * shape.cache_bytes("bfloat16"))
    assert 0.02 < told.student.gpu_memory_utilization < 0.1
    memory, sequences = budget.engines["student"]
    assert told.student.gpu_memory_utilization == pytest.approx(memory.bytes(sequences) / (80 * GIB), abs=1e-4)
    line = budget.line()
    assert line.startswith("memory of NVIDIA H100 80GB HBM3 (80.0 GiB): learner ") and "\n" not in line
    assert "student engine" in line and "a cache for 64 of 64 sequences" in line


def test_a_share_that_the_recipe_has_stays() -> None:
    recipe = recipe_of(student=EngineConfig(gpu_memory_utilization=0.4))
    shape = replace(EIGHT_B, parameters=10**8)
    told = with_shares(recipe, planned(recipe, ONE_GPU, shape, card(80)))
    assert told.student.gpu_memory_utilization == 0.4 and 0 < told.teacher.gpu_memory_utilization < 0.4


def test_a_cache_that_the_recipe_has_stays() -> None:
    recipe = recipe_of(student=EngineConfig(kv_cache_gib=3.0))
    shape = replace(EIGHT_B, parameters=10**8)
    (own,) = planned(recipe, ONE_GPU, shape, card(80))
    (budget,) = planned(recipe_of(), ONE_GPU, shape, card(80))
    (memory, sequences), (other, others) = own.engines["student"], budget.engines["student"]
    assert memory.bytes(sequences) - 3 * GIB == other.bytes(others) - other.cache_bytes(others)
    assert "a cache of 3.0 GiB" in own.line() and own.line().count("sequences") == 1


def test_a_cache_is_as_small_as_it_must_be() -> None:
    """An 8B model's cache for 512 sequences of 8,192 tokens is 576 GiB; an engine of its own takes all of its card."""
    recipe = recipe_of(student=EngineConfig(window=8192, max_num_seqs=512))
    learner, student, teacher = planned(recipe_of_four(recipe), FOUR, EIGHT_B, *[card(180)] * 4)
    memory, sequences = student.engines["student"]
    assert 1 < sequences < 512
    assert memory.bytes(sequences) <= 0.96 * 180 * GIB < memory.bytes(sequences + 1)
    assert learner.learner is not None and not learner.engines and teacher.learner is None
    assert with_shares(recipe, [learner, student, teacher]).student.gpu_memory_utilization == 0.9
    assert student.engines["student"][0].fixed["push"] > 0 == teacher.engines["teacher"][0].fixed["push"]  # frozen


def test_an_engine_with_a_card_of_its_own_takes_what_others_leave() -> None:
    """vLLM refuses to start where less is free than the share that it is given."""
    shape = replace(EIGHT_B, parameters=10**9)
    told = with_shares(recipe_of(), planned(recipe_of(), FOUR, shape, card(80, 60)))
    assert told.student.gpu_memory_utilization == told.teacher.gpu_memory_utilization == 0.712
    own = recipe_of(student=EngineConfig(gpu_memory_utilization=0.4))
    assert with_shares(own, planned(own, FOUR, shape, card(80, 60))).student.gpu_memory_utilization == 0.4


def test_of_cards_that_differ_the_one_with_the_least_room_counts_and_no_share_is_more_than_was_planned() -> None:
    """A share of a card's memory is left for what is not planned: of 40 free GiB the card of 141 has less room than the
    one of 40. An engine's share of the largest has to be free there."""
    shape, cards = replace(EIGHT_B, parameters=10**8), [card(40, 39.5), card(141, 40, name="NVIDIA H200")]
    for both in (cards, cards[::-1]):
        (budget,) = planned(recipe_of(), ONE_GPU, shape, *both)
        assert budget.card.name == "NVIDIA H200" and asked(budget) <= (40 - 0.04 * 141) * GIB
    (budget,) = planned(recipe_of(), ONE_GPU, shape, card(40, 39.5), card(141, name="NVIDIA H200"))
    assert budget.card.total == 40 * GIB
    memory, sequences = budget.engines["student"]
    share = with_shares(recipe_of(), [budget]).student.gpu_memory_utilization
    assert share == pytest.approx(memory.bytes(sequences) / (141 * GIB), abs=1e-4)


def test_a_push_is_planned_and_told_before_anything_starts() -> None:
    shape = replace(EIGHT_B, parameters=10**8, vocabulary=1000)
    (budget,) = planned(recipe_of(), ONE_GPU, shape, card(24))
    learner = budget.learner
    assert budget.engines_sleep and learner is not None and learner.push == GIB
    states = (learner.idle + GIB) / GIB
    assert f" tokens a batch, {states:.1f} in a push; student engine" in budget.line()
    awake = sum(memory.bytes(sequences) for memory, sequences in budget.engines.values())
    assert asked(budget) >= awake + learner.idle + GIB  # engines are awake while they receive
    lora = recipe_of(learner=LearnerConfig(lora_rank=8))
    (small,) = planned(lora, ONE_GPU, shape, card(24))
    assert small.learner is not None and small.learner.push == 0 and "push" not in small.line()
    wide = recipe_of(learner=LearnerConfig(dtype=FP32))
    (padded,) = planned(wide, ONE_GPU, shape, card(80))
    assert re.search(r"in a step of \d+ tokens a batch that attention pads, \d+\.\d in a push", padded.line())


def recipe_of_four(recipe: Recipe) -> Recipe:
    return replace(recipe, learner=LearnerConfig(num_ranks=2, zero_stage=2))


def test_engines_that_sleep_leave_the_learner_room() -> None:
    shape = replace(EIGHT_B, parameters=10**9)
    (asleep,), (awake,) = (planned(recipe_of(lag), ONE_GPU, shape, card(48)) for lag in (0, 1))
    assert asleep.engines_sleep and not awake.engines_sleep
    assert asleep.engines["student"][1] > awake.engines["student"][1]  # sequences that a cache has room for
    assert asleep.line().endswith("; engines sleep while the learner works") and "sleep" not in awake.line()


def test_micro_batches_are_as_large_as_fit() -> None:
    shape = replace(EIGHT_B, parameters=10**8)

    def found(gib: float, **changed: Any) -> tuple[int, bool]:
        (budget,) = planned(recipe_of(**changed), ONE_GPU, shape, card(gib))
        assert (
            budget.learner is not None and f"in a step of {budget.learner.micro_batch} tokens a batch" in budget.line()
        )
        told = with_shares(recipe_of(**changed), [budget]).learner.micro_batch_tokens
        assert told == budget.learner.micro_batch
        return told, budget.engines_sleep

    assert [found(gib) for gib in (20, 28, 36, 40, 60, 80, 141)] == [
        (1024, True), (2048, True), (1024, False), (2048, False), (4096, False), (4096, False), (8192, False)
    ]  # fmt: skip
    assert found(141, learner=LearnerConfig(micro_batch_tokens=512)) == (512, False)
    (learner, *_) = planned(recipe_of_four(recipe_of()), FOUR, EIGHT_B, *[card(120)] * 4)
    assert learner.learner is not None and learner.learner.micro_batch == 4096


def test_a_share_of_the_recipes_own_is_what_its_engine_takes() -> None:
    """All of it, whatever the model needs; beside 0.5 and 0.4 of a card a learner has its room while they sleep."""
    shape = replace(EIGHT_B, parameters=10**8)

    def found(student: float, teacher: float, lag: int = 0, cache: float = 0.0) -> Any:
        pools = {
            "student": EngineConfig(gpu_memory_utilization=student, kv_cache_gib=cache),
            "teacher": TeacherConfig(gpu_memory_utilization=teacher, kv_cache_gib=cache),
        }
        (budget,) = planned(recipe_of(lag, **pools), ONE_GPU, shape, card(141))
        return budget

    budget = found(0.5, 0.4)
    assert sum(memory.bytes(1) for memory, _ in budget.engines.values()) == pytest.approx(0.9 * 141 * GIB)
    assert budget.engines_sleep and budget.learner.micro_batch == 8192
    with pytest.raises(ValueError, match=r"^placement: asked 1\d\d\.\d GiB of a GPU "):
        found(0.5, 0.4, lag=1)
    narrow = found(0.3, 0.2, lag=1)
    assert not narrow.engines_sleep and asked(narrow) <= 0.96 * 141 * GIB
    assert not found(0.2, 0.2, cache=2.0).engines_sleep  # of 2 GiB each, whatever the share


def test_beside_others_the_cache_is_what_they_leave() -> None:
    recipe = recipe_of(student=EngineConfig(window=4096, max_num_seqs=256))
    (budget,) = planned(recipe, ONE_GPU, replace(EIGHT_B, parameters=10**9), card(80, 40))
    assert asked(budget) <= (40 - 0.04 * 80) * GIB and 1 < budget.engines["student"][1] < 256


def test_where_whole_caches_do_not_fit_batches_are_as_large_as_cost_no_cache() -> None:
    recipe = recipe_of(student=EngineConfig(window=4096, max_num_seqs=256))
    (budget,) = planned(recipe, ONE_GPU, replace(EIGHT_B, parameters=2 * 10**9), card(141))
    assert budget.engines_sleep and budget.learner is not None and budget.learner.micro_batch == 8192
    assert budget.engines["student"][1] < 256 and asked(budget) <= 0.96 * 141 * GIB


@pytest.mark.parametrize("window", [1000, 1024])
def test_a_cache_that_has_no_room_for_a_sequence_is_refused(window: int) -> None:
    needed = 1024 if window == 1000 else 1040  # whole blocks, and vLLM's own
    least = needed * EIGHT_B.cache_bytes("bfloat16") / GIB
    recipe = recipe_of(student=EngineConfig(window=window, kv_cache_gib=0.99 * least))
    with pytest.raises(ValueError, match=rf"^student\.kv_cache_gib: found 0\.1\d+, expected at least .* {window} tok"):
        planned(recipe, ONE_GPU, EIGHT_B, card(180))
    enough = recipe_of(student=EngineConfig(window=window, kv_cache_gib=1.01 * least))
    assert planned(enough, ONE_GPU, replace(EIGHT_B, parameters=10**8), card(180))


def test_engines_stay_awake_where_all_fits_at_once() -> None:
    shape = replace(EIGHT_B, parameters=10**8)
    (roomy,) = planned(recipe_of(), ONE_GPU, shape, card(40))
    (tight,) = planned(recipe_of(), ONE_GPU, shape, card(24))
    assert not roomy.engines_sleep and asked(roomy) < 0.96 * 40 * GIB and tight.engines_sleep
    assert {sequences for _, sequences in roomy.engines.values()} == {64}
    (shared,) = planned(recipe_of(), ONE_GPU, shape, card(80, 26))  # beside others, who leave 26 GiB
    assert shared.engines_sleep and asked(shared) < 22.8 * GIB


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({}, "more learner.num_ranks, learner.optimizer = 'adamw_16bit' or learner.lora_rank"),
        ({"learner": LearnerConfig(micro_batch_tokens=131_072)}, KEYS["activations"]),
        ({"learner": LearnerConfig(head_chunk_tokens=10**6)}, KEYS["logits"]),
    ],
    ids=["states", "activations", "logits"],
)
def test_a_card_that_is_too_small_is_refused_in_one_line(changed: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError) as refused:
        planned(recipe_of(**changed), ONE_GPU, EIGHT_B, card(80))
    found = str(refused.value)
    assert re.match(r"placement: asked \d+\.\d GiB of a GPU \(learner: .+\), found 76\.8 GiB to plan with on", found)
    assert found.endswith(f"expected a larger card, or {key}") and "\n" not in found


def test_two_runs_on_one_card_are_refused_in_one_line() -> None:
    shape = replace(EIGHT_B, parameters=10**8)
    with pytest.raises(ValueError) as refused:
        planned(recipe_of(), ONE_GPU, shape, card(80, 6, holders=(4321, 4400)))
    assert re.fullmatch(
        r"placement: asked \d+\.\d GiB of GPU 0, found 6\.0 of 80\.0 GiB free, held by process 4321, 4400; expected a "
        "card of its own: end the other run, or choose a card with CUDA_VISIBLE_DEVICES",
        str(refused.value),
    )


def test_a_run_plans_its_memory_before_it_starts(tiny_model: Path) -> None:
    recipe, said = Recipe(model=ModelConfig(path=str(tiny_model))), list[str]()

    def told(*cards: Card) -> tuple[Recipe, Plan]:
        plan: Plan = make_plan(recipe, ONE_GPU)
        return with_planned_memory(recipe, plan, str(tiny_model), cards, "13.0", said.append)

    of_80, plan = told(card(80))
    assert of_80.student.gpu_memory_utilization > 0 and of_80.student.kv_cache_gib > 0
    assert not plan.starts_in_turn and not plan.engines_sleep
    assert len(said) == 1 and said[0].startswith("memory of NVIDIA H100 80GB HBM3 (80.0 GiB): learner")
    unknown, plan = told()
    assert unknown.teacher.gpu_memory_utilization == 0.3 and unknown.teacher.kv_cache_gib == 0
    assert plan.starts_in_turn and plan.engines_sleep
    assert said[1].startswith("memory: found no card whose memory")
    with pytest.raises(ValueError, match=r"GPU driver: found 535\.1, expected at least 580\.65\.06"):
        told(card(80, driver="535.1"))


@pytest.fixture
def begun(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunDir]:
    """One start of a run as far as its services, on a card of 80 GiB or on CPUs, with settings of the learner."""
    folder = RunDir(fake_run(tmp_path / "run", {}))

    async def serve(*_: Any) -> None:
        pass

    def begin(nodes: Sequence[Share], **learner: Any) -> RunDir:
        recipe = Recipe(model=ModelConfig(path=str(tiny_model)), learner=LearnerConfig(**learner))
        monkeypatch.setattr(start, "plan_for", lambda recipe: make_plan(recipe, nodes))
        monkeypatch.setattr(start, "cluster_cards", lambda left=list: left([card(80)]))
        monkeypatch.setattr("cluster.sizing.claims.FOLDER", Path(mkdtemp(dir=tmp_path)))  # each start is a process
        monkeypatch.setattr(start, "check_caches", lambda *_: None)
        monkeypatch.setattr(start, "_serve", serve)
        monkeypatch.setattr("torch.version.cuda", "13.0")
        sink, inputs = MetricsSink(1), SimpleNamespace(model=str(tiny_model))
        asyncio.run(start._survive(recipe, folder, sink, False, inputs, SimpleNamespace()))  # type: ignore[arg-type]
        return folder

    return begin


def test_what_was_planned_is_in_the_runs_folder_start_by_start(
    begun: Callable[..., RunDir], capsys: pytest.CaptureFixture[str]
) -> None:
    begun(ONE_GPU)
    folder = begun(ONE_GPU, micro_batch_tokens=512)  # a resume may have another
    chosen, given = read_plans(folder.memory)
    assert (chosen.device, chosen.micro_batch_tokens, given.micro_batch_tokens) == ("cuda", 8192, 512)
    assert set(chosen.engines) == {"student", "teacher"} and not chosen.engines_sleep
    assert all(plan.gpu_memory_utilization > 0 and plan.kv_cache_gib > 0 for plan in chosen.engines.values())
    assert 0 < given.time - chosen.time < 60
    (line,) = given.said
    assert "in a step of 512 tokens a batch" in line and line in capsys.readouterr().out
    assert read_seen(folder.root).notes == [line], "the page shows the last start's"


def test_on_a_cluster_of_rays_a_run_neither_waits_for_who_looks_nor_claims(
    begun: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Ray gives to one run it gives to nobody else."""

    def look() -> None:
        raise AssertionError("this host's lock is asked for")

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(start, "Look", look)
    (plan,) = read_plans(begun(ONE_GPU).memory)
    assert plan.device == "cuda" and plan.engines["student"].kv_cache_gib > 0


def test_the_nodes_of_a_cluster_are_asked_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each starts a worker for it, which takes seconds. Their cards stay in the nodes' order."""
    done, (first, second, dead, cpus) = list[str](), [name * 56 for name in "abcd"]
    cards = {first: card(80, index=0), second: card(80, index=1)}
    nodes = [
        {"NodeID": name, "Alive": name != dead, "Resources": {"GPU": float(name != cpus)}}
        for name in (*cards, dead, cpus)
    ]

    def ask(scheduling_strategy: Any, **_: Any) -> Any:
        node = scheduling_strategy.node_id

        def remote() -> str:
            done.append(f"ask {node[0]}")
            return str(node)

        return SimpleNamespace(remote=remote)

    def get(asked: str | Sequence[str], timeout: float) -> list[Card] | list[list[Card]]:
        done.append("get")
        return [cards[asked]] if isinstance(asked, str) else [[cards[node]] for node in asked]

    told = SimpleNamespace(nodes=lambda: nodes, remote=lambda _: SimpleNamespace(options=ask), get=get)
    monkeypatch.setattr(ray_cluster, "ray", told)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert ray_cluster.cluster_cards() == [*cards.values()]
    assert done == ["ask a", "ask b", "get"]


def test_on_cpus_the_defaults_in_use_are_there_too(begun: Callable[..., RunDir]) -> None:
    folder = begun([Share(2, 0)], lora_rank=4)
    (plan,) = read_plans(folder.memory)
    assert (plan.device, plan.micro_batch_tokens, plan.said) == ("cpu", 1024, ())
    assert plan.engines == {"student": EnginePlan(0.0, 1.0)} and read_seen(folder.root).notes == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"micro_batch_tokens": "many"}, "micro_batch_tokens: found 'many', expected a number"),
        ({"engines": {"student": {"kv_cache_gib": "all"}}}, "missing 1 required positional argument"),
        ({"format": 9}, "format: found 9, expected 1: a newer version wrote it"),
    ],
)
def test_a_damaged_plan_is_named_with_its_line(
    begun: Callable[..., RunDir], changes: dict[str, Any], words: str
) -> None:
    path = begun(ONE_GPU).memory
    path.write_text(json.dumps(json.loads(path.read_text()) | changes) + "\n")
    with pytest.raises(ValueError, match=rf"memory\.jsonl: line 1: .*{words}.*expected the memory plan of a run's st"):
        read_plans(path)
