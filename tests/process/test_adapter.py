"""LoRA: what the learner adds, what leaves it, and what a real engine makes of it, against plain float32 forwards."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from learner.adapter import adapter_files, add_adapter, merged
from learner.config import LearnerConfig

CONFIG = LearnerConfig(lora_rank=6, lora_alpha=12)  # not a rank that vLLM has a table for
IDS = torch.arange(5, 25)[None]


def plain(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32)


def adapted(path: Path, seed: int) -> Any:
    """The model with an adapter that changes it much."""
    model = plain(path)
    add_adapter(model, CONFIG)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in trained(model):
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def trained(model: Any) -> list[tuple[str, Any]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_a_new_adapter_changes_nothing_and_is_all_that_learns(tiny_model: Path) -> None:
    model, base = plain(tiny_model), plain(tiny_model)
    add_adapter(model, CONFIG)
    assert torch.equal(model(IDS).logits, base(IDS).logits)
    layers = {name.rsplit(".", 3)[0] for name, _ in trained(model)}
    assert len(layers) == 2 * 7 and not any("lm_head" in name for name in layers)
    twin = plain(tiny_model)
    add_adapter(twin, CONFIG)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(trained(model), trained(twin), strict=True))


def test_the_merged_model_computes_the_same(tiny_model: Path) -> None:
    model, ordinary = adapted(tiny_model, 0), plain(tiny_model)
    state = merged({name: parameter.detach() for name, parameter in model.named_parameters()}, CONFIG)
    missing, unexpected = ordinary.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}  # tied
    expected = model(IDS).logits
    assert (expected - plain(tiny_model)(IDS).logits).abs().max() > 0.1
    torch.testing.assert_close(ordinary(IDS).logits, expected, atol=1e-4, rtol=1e-4)


def test_its_files_are_pefts_own(tiny_model: Path, tmp_path: Path) -> None:
    model = adapted(tiny_model, 0)
    for name, content in adapter_files(trained(model), CONFIG).items():
        (tmp_path / name).write_bytes(content)
    loaded = PeftModel.from_pretrained(plain(tiny_model), str(tmp_path))
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits)
