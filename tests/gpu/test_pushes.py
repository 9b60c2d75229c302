"""Weights from a learner's process into an engine's, over CUDA's handles and over NCCL."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.sizing.cards import Card
from cluster.weights.transports import BUFFER
from tests.engine.test_weight_handoff import changed_model, hf_logprobs
from tests.fakes import tiny_model
from tests.gpu.conftest import TELL
from tests.runs import side_by_side

# A tied embedding of 1.2 GB, and 2.4 GB in all where there are layers to it.
LARGE = {"vocab": 300_000, "hidden_size": 2048, "head_dim": 64, "num_attention_heads": 32, "num_key_value_heads": 8,
         "intermediate_size": 8192, "num_hidden_layers": 10, "dtype": "bfloat16",
         "initializer_range": 0.03}  # fmt: skip


@pytest.fixture(scope="module")
def large(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("large"), tokenizer_from=default_model, **LARGE)  # type: ignore[arg-type]


def pushed(model: Path, transport: str, trainer: int, target: Path) -> Any:
    side_by_side({transport: ["-m", "tests.gpu.drive", "push", str(target), str(model), transport, str(trainer)]})
    return json.loads(target.read_text())


def require_arrived(found: Any, model: Path) -> None:
    """Every tensor, by the digest on both sides; and what the engine computes with them, by log-probs."""
    original = hf_logprobs(AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.float32))
    expected = np.array(hf_logprobs(changed_model(str(model))))
    assert found["state"] == [5, found["sent"]]
    assert np.abs(np.array(found["before"]) - original).mean() < 0.1
    assert np.abs(expected - original).mean() > 0.3  # the update is not a small one
    assert np.abs(np.array(found["after"]) - expected).mean() < 0.1


def test_every_tensor_arrives_over_cuda_ipc(default_model: Path, tmp_path: Path) -> None:
    require_arrived(pushed(default_model, "ipc", 0, tmp_path / "ipc.json"), default_model)


def test_a_tensor_larger_than_the_buffer_arrives_and_fast(large: Path, tmp_path: Path, tell: TELL) -> None:
    found = pushed(large, "ipc", 0, tmp_path / "large.json")
    assert found["largest"] > BUFFER and found["bytes"] > 2e9
    require_arrived(found, large)
    seconds = found["seconds"]
    tell("push of 2 GB over CUDA IPC, with its checks: seconds", seconds["in all"] * 2e9 / found["bytes"], "<= 0.5")
    for part, spent in seconds.items():
        tell(f"push over CUDA IPC, {part}: seconds a GB", spent * 1e9 / found["bytes"], "")


def test_every_tensor_arrives_over_nccl(two_cards: list[Card], default_model: Path, tmp_path: Path, tell: TELL) -> None:
    found = pushed(default_model, "nccl", 1, tmp_path / "nccl.json")
    require_arrived(found, default_model)
    tell("push over NCCL: seconds a GB", found["seconds"]["in all"] * 1e9 / found["bytes"], "")
