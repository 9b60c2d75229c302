"""What formulas say of bytes against what models have and keep, and a driver that fails."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.sizing.cards import nvidia_smi
from cluster.sizing.memory import BUCKET, GATHERED, activation_bytes, layer_bytes
from cluster.sizing.shape import ModelShape, shape_of
from learner.config import LearnerConfig
from learner.load import DTYPES, load_causal_lm
from learner.model import checkpoint_layers, hidden_states
from tests.families import tiny
from tests.reference import kept_for_backward
from tests.unit.test_student import make_row, packed

WIDE = {"hidden_size": 64, "intermediate_size": 128}  # norms and routers are not most of it
BF16, FP32 = "bfloat16", "float32"


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "mixtral", "granite"])
def test_a_shapes_formula_counts_a_models_parameters(family: str, tmp_path: Path) -> None:
    path = tiny(family, tmp_path, **WIDE)
    causal_lm, found = load_causal_lm(str(path), torch.float32), shape_of(str(path))
    assert found.parameters == sum(parameter.numel() for parameter in causal_lm.parameters())
    number, used, inner = {"qwen3_moe": (4, 2, 16), "mixtral": (4, 2, 128)}.get(family, (0, 0, 128))
    formula = ModelShape.decoder(
        layers=2, hidden=64, heads=4, key_heads=2, head=8 if family == "qwen3_moe" else 16, inner=inner, vocabulary=320,
        tied=causal_lm.get_output_embeddings().weight is causal_lm.get_input_embeddings().weight,
        experts=number, experts_used=used,
    )  # fmt: skip
    assert formula.parameters == pytest.approx(found.parameters, rel=0.02)  # tiny ones have norms and routers, too
    assert formula.active == pytest.approx(found.active, rel=0.03)
    told = ("layers", "hidden", "queries", "values", "inner", "vocabulary", "experts_used")
    assert [getattr(formula, name) for name in told] == [getattr(found, name) for name in told]


def test_what_the_plan_says_of_buckets_is_what_deepspeed_does_untold() -> None:
    """`zero_settings` leaves them to it on a GPU, which is all that is planned."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    for stage, doubles in ((1, False), (2, False), (3, True)):
        made = DeepSpeedZeroConfig(stage=stage)
        assert (made.reduce_bucket_size, made.max_live_parameters) == (BUCKET, GATHERED)
        assert made.contiguous_gradients and made.overlap_comm is doubles  # stage 3 has one bucket all the same


# What layers keep, measured


def kept_by(path: Path, dtype: str, checkpointed: bool = False) -> tuple[int, int]:
    """(bytes that autograd keeps of a forward pass beside the parameters, tokens)."""
    causal_lm = load_causal_lm(str(path), DTYPES[dtype])
    if checkpointed:
        checkpoint_layers(causal_lm, 1)
    row = make_row(20, 30)
    tokens = packed([replace(row, prompt_ids=row.prompt_ids % 300, response_ids=row.response_ids % 300)]).tokens
    with kept_for_backward() as sizes:
        hidden_states(causal_lm, tokens.input_ids_S, tokens.position_ids_S, tokens.packed)
    own = {parameter.untyped_storage().data_ptr() for parameter in causal_lm.parameters()}
    return sum(size for place, size in sizes.items() if place not in own), len(tokens.input_ids_S)


@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("family", ["llama", "granite", "cohere", "phi3", "qwen3_moe", "mixtral", "olmoe", "glm4_moe"])
def test_activations_are_within_a_fifth_of_what_a_forward_pass_keeps(family: str, dtype: str, tmp_path: Path) -> None:
    path = tiny(family, tmp_path, **WIDE)
    kept, tokens = kept_by(path, dtype)
    assert activation_bytes(shape_of(str(path)), LearnerConfig(dtype=dtype), tokens) == pytest.approx(kept, rel=0.2)


def test_activations_of_the_default_model(default_model: Path) -> None:
    """0.8 GB for 1,024 tokens, as docs/benchmarks found beside what an allocator keeps."""
    shape = shape_of(str(default_model))
    kept, tokens = kept_by(default_model, BF16)
    assert activation_bytes(shape, LearnerConfig(), tokens) == pytest.approx(kept, rel=0.1)
    assert activation_bytes(shape, LearnerConfig(), 1024) == pytest.approx(0.8e9, rel=0.2)


def test_checkpointed_layers_keep_their_inputs_and_one_layers_rest(default_model: Path) -> None:
    shape, config = shape_of(str(default_model)), LearnerConfig(gradient_checkpointing=True)
    kept, tokens = kept_by(default_model, BF16, checkpointed=True)
    one_layer = tokens * layer_bytes(shape, 2)
    assert activation_bytes(shape, config, tokens) - one_layer == pytest.approx(kept, rel=0.2)


def test_a_driver_in_trouble_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\necho "{said}"\nexit 9\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(OSError, match=re.escape(f"nvidia-smi ended with 9: {said}")):
        nvidia_smi(["-L"])
