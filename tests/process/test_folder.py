"""Folders that cannot be trained, each refused in one line that says what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from learner.folder import check_model_folder
from learner.load import load_causal_lm
from tests import fakes
from tests.families import tiny

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 4932658432\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fakes.tiny_model(tmp_path / "model")


def with_config(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def quantised(method: str) -> Callable[[Path], None]:
    return with_config(quantization_config={"quant_method": method, "bits": 4})


def pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text(POINTER)


def tokenizers_pointer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(POINTER)


def vocabularys_pointer(folder: Path) -> None:
    (folder / "vocab.json").write_text(POINTER)


def configs_pointer(folder: Path) -> None:
    (folder / "config.json").write_text(POINTER)


def quantised_long_ago(folder: Path) -> None:
    (folder / "quantize_config.json").write_text('{"bits": 4, "group_size": 128}')


def half(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def half_a_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def half_a_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "lla')


def in_shards(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    halves = {f"model-0000{i + 1}-of-00002.safetensors": dict(list(tensors.items())[i::2]) for i in range(2)}
    for name, part in halves.items():
        save_file(part, folder / name)
    mapped = {tensor: name for name, part in halves.items() for tensor in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": mapped}))


def without_a_shard(folder: Path) -> None:
    in_shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def a_shards_pointer(folder: Path) -> None:
    in_shards(folder)
    (folder / "model-00002-of-00002.safetensors").write_text(POINTER)


def half_of_torchs(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(1000)}, folder / "pytorch_model.bin")
    check_model_folder(str(folder))
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:2000])


def torchs_pointer(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_text(POINTER)


def beside(*names: str) -> Callable[[Path], None]:
    def copy(folder: Path) -> None:
        for name in names:
            shutil.copyfile(folder / "model.safetensors", folder / name)

    return copy


def shards_beside_the_whole(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    in_shards(folder)
    (folder / "model.safetensors").write_bytes(whole)


def torchs_beside_an_adapter(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    torch.save({"weight": torch.zeros(10)}, folder / "pytorch_model.bin")


def two_of_torchs(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "pytorch_model_old.bin"):
        torch.save({"weight": torch.zeros(10)}, folder / name)


BY_VLLM = "found weights that vLLM would read and transformers would not, expected one set of weights"


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (beside("consolidated.safetensors"), rf"/consolidated\.safetensors: {BY_VLLM}"),
        (beside("model_backup.safetensors"), rf"/model_backup\.safetensors: {BY_VLLM}"),
        (shards_beside_the_whole, rf"/model-00001-of-00002\.safetensors: {BY_VLLM}"),
        (torchs_beside_an_adapter, rf"/adapter_model\.safetensors: {BY_VLLM}"),
        (two_of_torchs, rf"/pytorch_model_old\.bin: {BY_VLLM}"),
        *((quantised(m), rf"config\.json: found weights that are quantised \({m}\), expected bfloat16.*name the model")
          for m in ("gptq", "awq", "bitsandbytes", "compressed-tensors", "fp8", "mxfp4")),
        (with_config(text_config={"quantization_config": {"quant_method": "awq"}}), r"that are quantised \(awq\)"),
        (with_config(compression_config={"format": "pack"}), r"quantised \(no method named\), expected bfloat16"),
        (pointer, r"model\.safetensors: found a git-lfs pointer, expected the weights: run `git lfs pull` in "),
        (quantised_long_ago, r"quantize_config\.json: found weights that are quantised \(GPTQ or AWQ\)"),
        (tokenizers_pointer, r"tokenizer\.json: found a git-lfs pointer, expected the tokenizer: run `git lfs"),
        (vocabularys_pointer, r"vocab\.json: found a git-lfs pointer, expected the tokenizer"),
        (configs_pointer, r"config\.json: found a git-lfs pointer, expected the file itself: run `git lfs"),
        (a_shards_pointer, r"model-00002-of-00002\.safetensors: found a git-lfs pointer"),
        (torchs_pointer, r"pytorch_model\.bin: found a git-lfs pointer"),
        (half_of_torchs, r"pytorch_model\.bin: found a part of a file, expected weights"),
        (half, r"model\.safetensors: found [\d,]+ bytes that are no whole safetensors file .*download it again"),
        (half_a_header, r"model\.safetensors: found 100 bytes that are no whole safetensors file"),
        (empty, r"model\.safetensors: found 0 bytes that are no whole safetensors file"),
        (without_a_shard, r"index\.json: found no model-00002-of-00002\.safetensors beside it, expected all 2 shards"),
        (without_weights, r"found no weights, expected model\.safetensors or model\.safetensors\.index\.json"),
        (without_config, r"found no config\.json in /.*, expected a Hugging Face model folder"),
        (half_a_config, r"config\.json: found no JSON"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_trained_is_one_line(folder: Path, damage: Callable[[Path], None], told: str) -> None:
    damage(folder)
    with pytest.raises(ValueError, match=told) as error:
        check_model_folder(str(folder), "teacher.path")
    assert str(error.value).startswith("teacher.path: ") and "\n" not in str(error.value)


def in_shards_beside_another_set(folder: Path) -> None:
    beside("consolidated.safetensors")(folder)
    in_shards(folder)


def torchs_beside_a_trainers(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.bin"):
        torch.save({"weight": torch.zeros(10)}, folder / name)


def beside_torchs(folder: Path) -> None:
    torch.save({"weight": torch.zeros(10)}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    "kind", [None, in_shards, in_shards_beside_another_set, torchs_beside_a_trainers, beside_torchs]
)
def test_a_good_folder_passes(folder: Path, kind: Callable[[Path], None] | None) -> None:
    if kind is not None:
        kind(folder)
    check_model_folder(str(folder))


def counted(file: str, key: str) -> int:
    """A number that Linux tells of this process."""
    lines = dict(line.split(":") for line in Path(f"/proc/self/{file}").read_text().splitlines())
    return int(lines[key].split()[0])


def test_it_reads_headers_only(folder: Path, tmp_path: Path) -> None:
    check_model_folder(str(folder))  # imports what it needs
    save_file({"large": torch.zeros(50_000_000)}, folder / "model.safetensors")
    Path("/proc/self/clear_refs").write_text("5")  # the most memory so far is what it has now
    read, most = counted("io", "rchar"), counted("status", "VmHWM")
    check_model_folder(str(folder))
    assert counted("io", "rchar") - read < 10_000_000  # of 200 MB
    assert counted("status", "VmHWM") - most < 100_000  # kB, in which a file that is mapped counts too


# What only reading it shows


def without(*names: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def cut(name: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: tensors | {name: tensors[name][:-2].clone()}


def packed_by_gptq(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace("down_proj.weight", "down_proj.qweight"): tensor for name, tensor in tensors.items()}


def not_a_number(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {"model.norm.weight": torch.full_like(tensors["model.norm.weight"], torch.nan)}


DOWN, EXPERT = "model.layers.1.mlp.down_proj.weight", "model.layers.0.mlp.experts.1.down_proj.weight"


@pytest.mark.parametrize(
    ("family", "change", "told"),
    [
        ("llama", without(DOWN), f"found no {DOWN} in its files, expected every tensor of LlamaForCausalLM"),
        ("llama", without("lm_head.weight", DOWN), r"found no lm_head\.weight in its files \(and 1 more\), expected"),
        ("llama", packed_by_gptq, r"found no .*down_proj\.weight in its files \(and 1 more\), expected every tensor"),
        ("llama", cut(DOWN), rf"{DOWN}: found \(30, 48\), expected \(32, 48\)"),
        ("qwen3_moe", without(EXPERT), r"experts\.down_proj: found \(3, 32, 16\), expected \(4, 32, 16\)"),
        ("qwen3_moe", cut(EXPERT), r"found weights that cannot be read \(RuntimeError: "),
        ("deepseek_v3", without("model.layers.1.mlp.gate.e_score_correction_bias"), "found no .*correction_bias in"),
        ("llama", not_a_number, "found weights that make NaN of a text, expected numbers"),
    ],
)
def test_a_tensor_that_would_be_drawn_at_random_is_refused(
    tmp_path: Path, family: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], told: str
) -> None:
    file = tiny(family, tmp_path) / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"^model\.path: {tmp_path}: .*{told}") as error:
        load_causal_lm(str(tmp_path), torch.float32)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"<html>sign in</html>", b"\x80\x02}q\x00."])
def test_torchs_file_that_is_none_is_one_line(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^model\.path: {folder}: found ") as error:
        load_causal_lm(str(folder), torch.float32)
    assert "\n" not in str(error.value)


def test_an_index_of_names_alone_is_one_line(folder: Path) -> None:
    in_shards(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": json.loads(index.read_text())["weight_map"]}))
    with pytest.raises(ValueError, match=rf"^model\.path: {folder}: found weights that cannot be read \(KeyError"):
        load_causal_lm(str(folder), torch.float32)


def test_a_tied_head_is_none_that_a_file_lacks(tmp_path: Path) -> None:
    file = tiny("llama", tmp_path, tie_word_embeddings=True) / "model.safetensors"
    assert "lm_head.weight" not in load_file(file)
    load_causal_lm(str(tmp_path), torch.float32)
