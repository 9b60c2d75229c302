"""Which layers an adapter goes to: all that are linear, or exactly those that are named."""

import json
from pathlib import Path

import pytest
import torch

from learner.adapter import adapted_names, adapter_files, add_adapter
from learner.config import LearnerConfig
from learner.load import ONE_ROW, load_causal_lm
from tests.families import tiny

LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# What each family has, by default adapted as a whole. Experts that are fused, and a router, are no linear layers.
LINEAR = {
    "llama": LLAMA,
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    "gpt_neox": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    "qwen3_moe": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "olmoe": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "phimoe": ("q_proj", "k_proj", "v_proj", "o_proj"),  # its router gives a tuple
    "qwen2_moe": LLAMA,  # its shared expert is ordinary, and has a gate of one number
    "glm4_moe": LLAMA,  # its first layer and its shared experts are ordinary
}


def config(*targets: str) -> LearnerConfig:
    return LearnerConfig(dtype="float32", lora_rank=4, **({"lora_targets": targets} if targets else {}))


@pytest.mark.parametrize("family", LINEAR)
def test_by_default_every_linear_layer_before_the_head_is_adapted(tmp_path: Path, family: str) -> None:
    path, told = str(tiny(family, tmp_path)), config()
    assert sorted(adapted_names(path, told)) == sorted(LINEAR[family])
    causal_lm = load_causal_lm(path, torch.float32)
    ids = torch.arange(3, 15)[None]
    before = causal_lm.base_model(ids, packed=ONE_ROW).last_hidden_state
    add_adapter(causal_lm, told)
    after = causal_lm.base_model(ids, packed=ONE_ROW).last_hidden_state
    assert torch.equal(before, after)
    trained = [(name, parameter) for name, parameter in causal_lm.named_parameters() if parameter.requires_grad]
    assert all(".lora_" in name and "lm_head" not in name and ".experts." not in name for name, _ in trained)
    described = json.loads(adapter_files(trained, told)["adapter_config.json"])
    assert sorted(described["target_modules"]) == sorted(LINEAR[family])


def test_those_that_are_named_and_no_others_are_adapted(tmp_path: Path) -> None:
    path, told = str(tiny("llama", tmp_path)), config("q_proj", "down_proj")
    assert adapted_names(path, told) == ("q_proj", "down_proj")
    causal_lm = load_causal_lm(path, torch.float32)
    add_adapter(causal_lm, told)
    adapted = {
        name.split(".lora_")[0].rsplit(".", 1)[-1] for name, p in causal_lm.named_parameters() if p.requires_grad
    }
    assert adapted == {"q_proj", "down_proj"}


@pytest.mark.parametrize(
    ("family", "targets", "told"),
    [
        (
            "phi3",
            LLAMA,
            "found q_proj, k_proj, v_proj, gate_proj, up_proj, expected linear layers of Phi3",
        ),
        (
            "qwen3_moe",
            ("q_proj", "gate_proj"),
            "found gate_proj, expected linear layers of Qwen3MoeForCausalLM: q_",
        ),
        ("mixtral", ("w1",), "found w1, expected linear layers of MixtralForCausalLM: q_proj, k_proj, v_proj, o_proj"),
        ("gpt2", (), "found all-linear, expected linear layers of GPT2LMHeadModel: it has none"),
        ("llama", ("proj",), "found proj, expected linear layers of LlamaForCausalLM: q_proj"),
    ],
)
def test_a_name_that_the_model_lacks_is_refused(
    tmp_path: Path, family: str, targets: tuple[str, ...], told: str
) -> None:
    path = str(tiny(family, tmp_path))
    with pytest.raises(ValueError, match=rf"learner\.lora_targets: {told}"):
        adapted_names(path, config(*targets))
    with pytest.raises(ValueError, match=rf"learner\.lora_targets: {told}"):
        add_adapter(load_causal_lm(path, torch.float32), config(*targets))


def test_all_linear_beside_names_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lora_targets: found \('all-linear', 'q_proj'\), expected 'all-lin"):
        config("all-linear", "q_proj")
