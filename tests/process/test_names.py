"""Names and tensors as save_pretrained writes them to a file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from learner.load import load_causal_lm
from learner.names import FileNames, held_tensors
from tests.families import tiny

FUSED = ("qwen3_moe", "mixtral", "olmoe", "deepseek_v3", "glm4_moe")


@pytest.mark.parametrize("family", [*FUSED, "granitemoe", "llama", "gemma3", "gemma4", "gpt2", "apertus"])
def test_names_and_tensors_are_those_of_the_file(tmp_path: Path, family: str) -> None:
    written = load_file(tiny(family, tmp_path) / "model.safetensors")
    causal_lm = load_causal_lm(str(tmp_path), torch.float32)
    names, held = FileNames(causal_lm), held_tensors(causal_lm)
    found = names.split_all(held)
    assert found.keys() == written.keys() == names.owner.keys()
    for name, tensor in written.items():
        assert torch.equal(found[name], tensor), name
    assert list(names.shapes(held)) == [(name, t.dtype, tuple(t.shape)) for name, t in found.items()]
    assert (found.keys() != held.keys()) == (family in FUSED or family == "granitemoe")


@pytest.mark.parametrize("family", FUSED)
def test_an_experts_parts_are_named_one_by_one(tmp_path: Path, family: str) -> None:
    causal_lm = load_causal_lm(str(tiny(family, tmp_path)), torch.float32)
    owners = FileNames(causal_lm).owner
    fused = {owner for part, owner in owners.items() if part != owner and "experts" in owner}
    assert fused and all(sum(owner == one for owner in owners.values()) in (4, 8) for one in fused)
