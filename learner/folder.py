"""Whether a folder holds weights that can be trained, from its config.json and its files' headers: milliseconds, before
anything starts."""

import json
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

SAFE_INDEX = "model.safetensors.index.json"
# What is read of a folder beside its weights.
SETTLES = ("*.json", "*.jinja", "additional_chat_templates/*.jinja", "*.model", "*.txt")
INDICES = (SAFE_INDEX, "pytorch_model.bin.index.json")
WEIGHTS = ("model.safetensors", INDICES[0], "pytorch_model.bin", INDICES[1])
# Weights, whatever their format.
ANY_WEIGHTS = (
    "*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.ot", "*.tflite", "*.npz", "*.nemo",
    "*.gguf", "*.onnx", "*.onnx_data*", "*.index.json",
)  # fmt: skip
STATES = ("training_args.bin", "optimizer.bin", "scheduler.bin")  # a trainer's, which vLLM passes over as well
TOKENS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)  # of a tokenizer: git-lfs takes what is large
QUANTISED = "quantize_config.json"  # how GPTQ was told before config.json had a place for it
POINTER = b"version https://git-lfs"  # how the file of three lines begins that git-lfs leaves in a weight's place


def check_model_folder(path: str, key: str = "model.path", weights: bool = True) -> None:
    """weights: whether the folder is to hold them already.

    Raises:
        ValueError: one line that names `key`, the file, what was found, and what to do.
    """
    folder = Path(path)
    check_unquantised(_json(folder / "config.json", key), f"{key}: {folder / 'config.json'}")
    if (folder / QUANTISED).is_file():
        raise _quantised(f"{key}: {folder / QUANTISED}", "GPTQ or AWQ")
    for name in TOKENS:
        if (folder / name).is_file():
            _check_no_pointer(folder / name, key, "the tokenizer")
    if not weights:
        return
    files = _weight_files(folder, key)
    for file in files:
        _check_file(file, key)
    _require_same_files(folder, files, key)


def check_unquantised(config: dict[str, Any], where: str) -> None:
    """ValueError, which begins with `where`, for GPTQ, AWQ, bitsandbytes, compressed-tensors and their like: training
    needs the weights themselves."""
    for part in (config, config.get("text_config")):
        quantised = isinstance(part, dict) and (part.get("quantization_config") or part.get("compression_config"))
        if not quantised:
            continue
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise _quantised(where, method or "no method named")


def _quantised(where: str, how: str) -> ValueError:
    return ValueError(
        f"{where}: found weights that are quantised ({how}), expected bfloat16, float16 or float32: name the model "
        "that they were made from, or save it dequantised"
    )


def has_weights(folder: str) -> bool:
    """Whether every file of a model's weights is in it, by name."""
    try:
        return bool(_weight_files(Path(folder), ""))
    except ValueError:
        return False


def _weight_files(folder: Path, key: str) -> list[Path]:
    """The files that hold a model's weights; ValueError where one is missing."""
    first = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if first is None:
        raise ValueError(f"{key}: {folder}: found no weights, expected {WEIGHTS[0]} or {WEIGHTS[1]}")
    if first.suffix != ".json":
        return [first]
    files = sorted({folder / name for name in mapped(first, key).values()})
    missing = next((file for file in files if not file.exists()), None)
    if missing is not None:
        raise ValueError(f"{key}: {first}: found no {missing.name} beside it, expected all {len(files)} shards")
    return files


def mapped(index: Path, key: str) -> dict[str, str]:
    """The file of each tensor by an index; ValueError where it is none."""
    mapped = _json(index, key).get("weight_map")
    if not isinstance(mapped, dict) or not mapped or not all(isinstance(name, str) for name in mapped.values()):
        raise ValueError(f"{key}: {index}: found no weight_map, expected the shard of each tensor")
    return mapped


def _require_same_files(folder: Path, ours: list[Path], key: str) -> None:
    """ValueError for weights that vLLM would read and transformers would not, or the other way about."""
    theirs = engines_files(folder, key)
    for file in sorted({*ours} ^ {*theirs}):
        one, other = ("vLLM", "transformers") if file in theirs else ("transformers", "vLLM")
        raise ValueError(
            f"{key}: {file}: found weights that {one} would read and {other} would not, expected one set of weights in "
            "the folder: move the other set, and its index, elsewhere"
        )


def engines_files(folder: Path, key: str) -> list[Path]:
    """What vLLM reads (seen in 0.32.0): every file of the first kind that there is; of safetensors those of the index,
    where there is one. Contract: test_the_files_that_an_engine_reads_are_the_learners."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return [file for file in sorted(folder.glob("*.bin")) if not file.name.endswith(STATES)]
    index = folder / SAFE_INDEX
    named = {folder / name for name in mapped(index, key).values()} if index.is_file() else {*files}
    return [file for file in files if file in named]


def _check_file(file: Path, key: str) -> None:
    head = _check_no_pointer(file, key, "the weights")
    if file.suffix != ".safetensors":
        if head.startswith(b"PK") and not zipfile.is_zipfile(file):
            raise ValueError(f"{key}: {file}: found a part of a file, expected weights: copy or download it again")
        return
    try:
        with safe_open(file, framework="np") as tensors:
            if not tensors.keys():
                raise ValueError(f"{key}: {file}: found no tensors, expected weights")
    except SafetensorError as error:
        size = file.stat().st_size
        raise ValueError(
            f"{key}: {file}: found {size:,} bytes that are no whole safetensors file ({error}), expected weights: copy "
            "or download it again"
        ) from None


def _check_no_pointer(file: Path, key: str, expected: str) -> bytes:
    """How the file begins."""
    with file.open("rb") as opened:
        head = opened.read(len(POINTER))
    if head == POINTER:
        raise ValueError(
            f"{key}: {file}: found a git-lfs pointer, expected {expected}: run `git lfs pull` in {file.parent}"
        )
    return head


def _json(file: Path, key: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{key}: found no {file.name} in {file.parent}, expected a Hugging Face model folder"
        ) from None
    except ValueError as error:
        _check_no_pointer(file, key, "the file itself")
        raise ValueError(f"{key}: {file}: found no JSON ({error}), expected a Hugging Face model folder") from None
    if not isinstance(content, dict):
        raise ValueError(f"{key}: {file}: found {type(content).__name__}, expected a JSON object")
    return content
