"""The exported folder: weights as trained, everything else as the base had it, the same log-probs when read again."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from cluster.commands.export import SAID
from learner import export
from learner.adapter import add_adapter
from learner.config import LearnerConfig
from learner.export import TOLERANCES, Exporter, logprobs_of, one_row
from learner.load import IDS, load_causal_lm
from learner.names import held_tensors
from tests import fakes
from tests.families import tiny
from tests.reference import logprobs_of as own_logprobs
from tests.reference import plain_model

FLOAT32 = LearnerConfig(dtype="float32")
# As a published model has it: transformers reads it, and refuses to write it.
UNWRITABLE = '{"temperature": 0.6, "top_p": 0.95, "eos_token_id": [2, 3], "note": "ours"}\n'


def trained(base: Path, config: LearnerConfig = FLOAT32) -> tuple[Exporter, dict[str, torch.Tensor], torch.Tensor]:
    """(exporter, tensors as an engine hands them out, log-probs) of the base after every parameter has moved."""
    causal_lm = load_causal_lm(str(base), torch.float32)
    exporter = Exporter(str(base), causal_lm, config)
    if config.lora_rank:
        add_adapter(causal_lm, config)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in causal_lm.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    held = {name: tensor.detach().clone() for name, tensor in held_tensors(causal_lm).items()}
    state = held if config.lora_rank else exporter.names.split_all(held)
    return exporter, state, logprobs_of(causal_lm)


def shapes(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.to("meta") for name, tensor in state.items()}


def exported(base: Path, folder: Path, config: LearnerConfig = FLOAT32) -> torch.Tensor:
    """Rehearsed and written to `folder`; the learner's log-probs."""
    exporter, state, logprobs = trained(base, config)
    exporter.rehearse(shapes(state), folder)
    assert not list(folder.parent.glob(".*-partial"))
    exporter.write(state, logprobs, folder)
    return logprobs


def assert_computes(folder: Path, logprobs: torch.Tensor) -> None:
    with torch.no_grad():
        found = own_logprobs(plain_model(folder), IDS[:1].tolist(), IDS[1:].tolist())
    assert found[0].item() == pytest.approx(logprobs[0].item(), abs=2e-5)
    assert found[-1].item() == pytest.approx(logprobs[-1].item(), abs=2e-5)
    assert found.tolist() == pytest.approx(logprobs.tolist(), abs=2e-5)


def beside(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


EXPORTED = ("llama", "deepseek_v3", "glm4_moe", "apertus", "qwen3_moe", "mixtral", "olmoe", "gemma3", "gemma4", "gpt2")


@pytest.mark.parametrize("family", EXPORTED)
def test_an_export_is_the_base_folder_with_other_weights(tmp_path: Path, family: str) -> None:
    base = tiny(family, tmp_path / "base")
    (base / "generation_config.json").write_text(UNWRITABLE)
    (base / "note.txt").write_text("whatever a base has")
    (base / "README.md").write_text("the base's own card")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    logprobs = exported(base, tmp_path / "export")
    assert_computes(tmp_path / "export", logprobs)
    files = beside(base)
    assert files.pop("README.md") and beside(tmp_path / "export") == files
    old, new = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "export"))
    assert {name: (t.shape, t.dtype) for name, t in old.items()} == {n: (t.shape, t.dtype) for n, t in new.items()}
    assert sum(not torch.equal(old[name], new[name]) for name in old) > 0.7 * len(old)


def test_what_transformers_refuses_to_write_is_what_the_test_above_keeps(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(UNWRITABLE)
    with pytest.raises(ValueError, match="temperature"):
        GenerationConfig.from_pretrained(str(tmp_path)).save_pretrained(tmp_path)


@pytest.mark.parametrize("use_cache", [True, False, None])
def test_the_cache_is_as_the_base_had_it(tmp_path: Path, use_cache: bool | None) -> None:
    base = fakes.tiny_model(tmp_path / "base")
    (base / "generation_config.json").unlink()
    config = json.loads((base / "config.json").read_text())
    del config["use_cache"]
    (base / "config.json").write_text(json.dumps(config | ({} if use_cache is None else {"use_cache": use_cache})))
    exported(base, tmp_path / "export")
    assert beside(tmp_path / "export") == beside(base)


def test_a_new_type_is_all_that_changes_in_the_config(tmp_path: Path) -> None:
    base = fakes.tiny_model(tmp_path / "base", dtype="bfloat16")
    exported(base, tmp_path / "export")
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (base, tmp_path / "export"))
    assert old | {"dtype": "float32"} == new != old
    written = load_file(tmp_path / "export" / "model.safetensors").values()
    assert {tensor.dtype for tensor in written} == {torch.float32}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_base_of_the_previous_generation_stays_readable_by_it(tmp_path: Path, dtype: str) -> None:
    """transformers 4 reads rope_theta and torch_dtype, and knows no tokenizer class of its successor."""
    base = fakes.tiny_model(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    del config["dtype"], config["rope_parameters"]
    config |= {"rope_theta": 500.0, "rope_scaling": None, "torch_dtype": dtype, "transformers_version": "4.46.0"}
    (base / "config.json").write_text(json.dumps(config, indent=4))
    (base / "note.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    logprobs = exported(base, tmp_path / "export")
    assert_computes(tmp_path / "export", logprobs)
    files = beside(tmp_path / "export")
    assert json.loads(files["config.json"]) == config | {"torch_dtype": "float32"}
    if dtype == "float32":
        assert files == beside(base)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_a_tied_config_whose_file_has_another_head_is_exported_untied(tmp_path: Path, family: str) -> None:
    base = tiny(family, tmp_path / "base", tie_word_embeddings=True)
    state = load_file(base / "model.safetensors")
    assert "lm_head.weight" not in state
    state["lm_head.weight"] = state["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(state, base / "model.safetensors", metadata={"format": "pt"})
    logprobs = exported(base, tmp_path / "export")
    assert_computes(tmp_path / "export", logprobs)
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config == json.loads((base / "config.json").read_text()) | {"tie_word_embeddings": False}
    # What went out before: the head replaced by the embedding.
    path = tmp_path / "export" / "model.safetensors"
    state = load_file(path)
    tied = {**state, "lm_head.weight": state["model.embed_tokens.weight"].clone()}
    save_file(tied, path, metadata={"format": "pt"})
    with torch.no_grad():
        other = own_logprobs(plain_model(tmp_path / "export"), IDS[:1].tolist(), IDS[1:].tolist())
    assert (other - logprobs).abs().mean() > 1


def test_a_tied_config_whose_file_repeats_the_head_stays_tied(tmp_path: Path) -> None:
    base = fakes.tiny_model(tmp_path / "base")
    state = load_file(base / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, base / "model.safetensors", metadata={"format": "pt"})
    assert_computes(tmp_path / "export", exported(base, tmp_path / "export"))
    assert beside(tmp_path / "export") == beside(base)


def test_another_model_than_the_learners_is_refused_and_what_was_there_stays(tmp_path: Path) -> None:
    base = fakes.tiny_model(tmp_path / "base")
    logprobs = exported(base, tmp_path / "export")
    exporter, state, _ = trained(base)
    before = (tmp_path / "export" / "model.safetensors").read_bytes()
    with pytest.raises(RuntimeError, match=r"export: .*/export: found a model that differs from the learner by \d"):
        exporter.write(state, logprobs + 0.01, tmp_path / "export")
    assert (tmp_path / "export" / "model.safetensors").read_bytes() == before


def test_a_weight_that_is_read_otherwise_than_it_was_written_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By less than log-probs show."""
    base = fakes.tiny_model(tmp_path / "base")
    exporter, state, logprobs = trained(base)

    def flipped(path: str, dtype: torch.dtype) -> Any:
        model = load_causal_lm(path, dtype)
        with torch.no_grad():
            model.model.norm.weight[3] += 1e-7
        return model

    monkeypatch.setattr(export, "load_causal_lm", flipped)
    with pytest.raises(RuntimeError, match=r"export: model\.norm\.weight: found other numbers when it is loaded again"):
        exporter.write(state, logprobs, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_a_number_that_is_none_is_the_same_when_it_is_read_again(tmp_path: Path) -> None:
    """In the row of a token that the text does not have."""
    base = fakes.tiny_model(tmp_path / "base", tied=False)
    exporter, state, logprobs = trained(base)
    state["model.embed_tokens.weight"][-1, 0] = float("nan")
    exporter.write(state, logprobs, tmp_path / "export")
    assert load_file(tmp_path / "export" / "model.safetensors")["model.embed_tokens.weight"].isnan().sum() == 1


@pytest.mark.parametrize("is_written", [True, False])
def test_an_adapter_that_is_rounded_into_the_weights_is_no_other_model(
    default_model: Path, tmp_path: Path, is_written: bool
) -> None:
    """On a text that people write, as `edge-opd export` has one; on tokens in the order of their ids it would be."""
    config = LearnerConfig(lora_rank=16)
    causal_lm = load_causal_lm(str(default_model), torch.bfloat16)
    exporter = Exporter(str(default_model), causal_lm, config)
    add_adapter(causal_lm, config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in causal_lm.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=2e-3)
    state = {name: tensor.detach().clone() for name, tensor in held_tensors(causal_lm).items()}
    said = AutoTokenizer.from_pretrained(str(default_model))(SAID).input_ids
    texts = (one_row(torch.tensor(said)),) if is_written else ()
    logprobs = logprobs_of(causal_lm, *texts)
    if is_written:
        exporter.write(state, logprobs, tmp_path / "export", *texts)
    else:
        with pytest.raises(RuntimeError, match="differs from the learner"):
            exporter.write(state, logprobs, tmp_path / "export")


def test_what_bfloat16_rounds_on_another_device_is_no_other_model(default_model: Path, tmp_path: Path) -> None:
    """A float32 forward stands for the other device: on a text that people write it is nearer than the bound, and on
    tokens in the order of their numbers it is not."""
    config = LearnerConfig()
    causal_lm = load_causal_lm(str(default_model), torch.bfloat16)
    exporter = Exporter(str(default_model), causal_lm, config)
    state = {name: tensor.detach().clone() for name, tensor in held_tensors(causal_lm).items()}
    said = AutoTokenizer.from_pretrained(str(default_model))(SAID).input_ids
    text = one_row(torch.tensor(said), 5)

    def found(dtype: torch.dtype, *of: Any) -> torch.Tensor:
        return logprobs_of(load_causal_lm(str(default_model), dtype), *of)

    expected = found(torch.float32, text)
    assert 0.005 < (found(torch.bfloat16, text) - expected).abs().mean() < TOLERANCES["bfloat16"] / 2
    assert (found(torch.bfloat16) - found(torch.float32)).abs().mean() > 2 * TOLERANCES["bfloat16"]
    assert len(expected) == len(said) - 5
    exporter.write(exporter.names.split_all(state), expected, tmp_path / "export", text)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_every_file_has_the_mode_that_the_umask_gives(tmp_path: Path, umask: int) -> None:
    base = fakes.tiny_model(tmp_path / "base")
    (base / "config.json").chmod(0o400)
    before = os.umask(umask)
    try:
        exported(base, tmp_path / "export")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "export").iterdir()}
    assert set(modes.values()) == {0o666 & ~umask} and "model.safetensors" in modes


def test_large_models_are_written_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "SHARD_BYTES", 200_000)
    base = fakes.tiny_model(tmp_path / "base")
    logprobs = exported(base, tmp_path / "export")
    assert len(list((tmp_path / "export").glob("model-*-of-*.safetensors"))) > 1
    assert_computes(tmp_path / "export", logprobs)


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen3_moe", "olmoe", "deepseek_v3"])
def test_an_adapter_is_merged(tmp_path: Path, family: str) -> None:
    base, config = tiny(family, tmp_path / "base"), LearnerConfig(dtype="float32", lora_rank=4)
    logprobs = exported(base, tmp_path / "export", config)
    assert_computes(tmp_path / "export", logprobs)
    old, new = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "export"))
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert old.keys() == new.keys() and moved and not any("experts." in n and "shared" not in n for n in moved)


# The rehearsal


def test_a_disk_without_room_is_found_before_the_first_step(tiny_disk: Path, tmp_path: Path) -> None:
    exporter, state, _ = trained(fakes.tiny_model(tmp_path / "base"))
    with pytest.raises(ValueError, match=r"export: .*: found 0\.00 GiB free, expected 0\.00 for the exported model"):
        exporter.rehearse(shapes(state), tiny_disk / "export")


def test_a_disk_that_is_full_at_the_end_is_one_line(tiny_disk: Path, tmp_path: Path) -> None:
    exporter, state, logprobs = trained(fakes.tiny_model(tmp_path / "base"))
    with pytest.raises(RuntimeError, match=r"export: .*/export: .*No space left") as error:
        exporter.write(state, logprobs, tiny_disk / "export")
    assert "\n" not in str(error.value) and not list(tiny_disk.iterdir())


def break_generation(base: Path) -> None:
    (base / "generation_config.json").write_text('{"temperature": ')


def add_a_layer(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (break_generation, r"export: .*/base: .*JSON"),
        (add_a_layer, r"model\.layers\.2\..*: found None, expected \("),
    ],
)
def test_what_could_not_be_read_again_is_found_before_the_first_step(tmp_path: Path, damage: Any, told: str) -> None:
    base = fakes.tiny_model(tmp_path / "base")
    exporter, state, _ = trained(base)
    damage(base)
    with pytest.raises(ValueError, match=told):
        exporter.rehearse(shapes(state), tmp_path / "export")
    assert not list(tmp_path.glob(".*")) and not (tmp_path / "export").exists()


def test_a_tensor_that_the_model_has_not_is_found_before_the_first_step(tmp_path: Path) -> None:
    exporter, state, _ = trained(fakes.tiny_model(tmp_path / "base"))
    with pytest.raises(ValueError, match=r"model\.extra: found \(2,\), expected None"):
        exporter.rehearse(shapes(state) | {"model.extra": torch.empty(2, device="meta")}, tmp_path / "export")


def test_the_exports_own_reader_is_the_ordinary_one(tmp_path: Path) -> None:
    """Without any of our code: AutoModelForCausalLM finds every tensor, and nothing else."""
    base = tiny("glm4_moe", tmp_path / "base")
    exported(base, tmp_path / "export")
    shutil.rmtree(base)
    _, told = AutoModelForCausalLM.from_pretrained(str(tmp_path / "export"), output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
