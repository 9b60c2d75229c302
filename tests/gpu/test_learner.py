"""The learner's kernels, its speed and its memory on a GPU."""

import json
from pathlib import Path
from typing import Any

from cluster.sizing.budget import MICRO_BATCHES
from cluster.sizing.cards import Card
from cluster.sizing.memory import CONTEXT, learner_memory
from cluster.sizing.shape import shape_of
from cluster.sizing.speed import device_of, train_flops
from learner.config import LearnerConfig
from learner.report import PARTS
from tests.fakes import tiny_model
from tests.gpu.conftest import TELL
from tests.runs import side_by_side

# 1.2 billion random parameters, laid out as Llama 3.2's 1B.
ONE_B = {"vocab": 128_256, "hidden_size": 2048, "head_dim": 64, "num_attention_heads": 32, "num_key_value_heads": 8,
         "intermediate_size": 8192, "num_hidden_layers": 16, "dtype": "bfloat16",
         "initializer_range": 0.02}  # fmt: skip

TOKENS = MICRO_BATCHES[0]  # of a micro-batch: what a run takes where there is room, as there is here


def driven(act: str, target: Path, *arguments: str) -> Any:
    side_by_side({act: ["-m", "tests.gpu.drive", act, str(target), *arguments]})
    return json.loads(target.read_text())


def test_attention_and_norms_by_their_kernels_are_those_without(tmp_path: Path, tell: TELL) -> None:
    """Forward, and the gradients of queries, keys and values: as close to float32 as padded bfloat16 rows are. So of
    RMSNorm, with a family's own."""
    for kind, found in driven("attention", tmp_path / "attention.json").items():
        tell(f"learner's kernels from float32, {kind}: largest relative norm", max(found["kernel"]), "")
        for kernel, padded in zip(found["kernel"], found["padded"], strict=True):
            assert kernel < max(2 * padded, 0.01)


def test_a_checkpoint_brings_the_weights_back(default_model: Path, tmp_path: Path) -> None:
    """Of each kind of optimizer state that a card holds."""
    ways = [("1", "adamw"), ("3", "adamw"), ("1", "adamw_16bit"), ("2", "adamw_16bit")]
    targets = {way: tmp_path / f"{'-'.join(way)}.json" for way in ways}
    scripts = {
        "-".join(way): ["checkpoint", str(target), str(default_model), *way, str(target.with_suffix(""))]
        for way, target in targets.items()
    }
    side_by_side({name: ["-m", "tests.gpu.drive", *script] for name, script in scripts.items()})
    for target in targets.values():
        first, saved, later, back = json.loads(target.read_text())
        assert back == saved and len({first, saved, later}) == 3


def test_the_learners_speed_and_memory_on_a_model_of_1_b(cards: list[Card], tmp_path: Path, tell: TELL) -> None:
    model = tiny_model(tmp_path / "model", **ONE_B)  # type: ignore[arg-type]
    found, shape = driven("learner", tmp_path / "learner.json", str(model), str(TOKENS)), shape_of(str(model))
    flops = train_flops(shape, found["tokens"], 512) / found["seconds"]
    tell("learner's FLOP/s on a model of 1.2 B", flops, "")
    if device := device_of(cards[0].name):
        tell("learner's model FLOP utilisation", flops / device.flops, ">= 0.4")
    for part, seconds in found["parts"].items():
        tell(f"learner's {part}, s of a step of {found['last']:.3f}", seconds, "")
    busy = sum(found["kernels"].values())
    tell("learner: the GPU's time at work over a step", busy / found["seconds"], "")
    for kernel, seconds in list(found["kernels"].items())[:20]:
        tell(f"learner: share of the GPU's time in {kernel[:80]}", seconds / busy, "")
    assert set(found["parts"]) == set(PARTS) - {"frozen"} and min(found["parts"].values()) >= 0
    assert 0.9 < sum(found["parts"].values()) / found["last"] < 1.02
    planned = learner_memory(shape, LearnerConfig(micro_batch_tokens=TOKENS), shape.parameters, 1024)
    tensors = planned.peak - CONTEXT  # torch counts what it allocates, not what CUDA takes first
    tell("learner's peak memory over its plan", found["peak"] / tensors, "<= 1")
    assert found["peak"] <= 1.1 * tensors
