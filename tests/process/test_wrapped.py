"""A text model in a wrapper for images: its text part is trained, and what is beside it stays as it was."""

import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from cluster.commands.doctor import check_build
from cluster.models import TEXT_PART, resolve_model
from cluster.run import checks
from cluster.run.checks import check_family
from evidence.records import TrainRow
from learner.config import LearnerConfig
from learner.load import load_causal_lm
from learner.train import Trainer
from tests import fakes
from tests.families import VOCAB, tiny, wrapped_gemma3
from tests.process.test_export import EXPORTED, assert_computes, exported
from tests.process.test_train import ROWS, SETTINGS
from tests.unit.test_student import row_logprobs


@pytest.fixture(scope="module")
def wrapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wrapped_gemma3(tmp_path_factory.mktemp("wrapped"))


def in_vocabulary(row: TrainRow) -> TrainRow:
    ids = {name: getattr(row, name) % (VOCAB - 2) for name in ("prompt_ids", "context_prompt_ids", "response_ids")}
    return replace(row, **ids)


def text_model(folder: Path) -> torch.nn.Module:
    """A causal language model of its own with the text part's weights, by their names in the file."""
    config = transformers.AutoConfig.from_pretrained(folder).text_config
    alone = transformers.Gemma3ForCausalLM(config)
    prefix = "language_model."
    held = {
        name.removeprefix(prefix): t for name, t in load_file(folder / "model.safetensors").items() if prefix in name
    }
    missing, unexpected = alone.load_state_dict(held, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected  # tied
    return alone.eval()


BUILDS = [  # torch, torchvision, what a run expects, whether `edge-opd doctor` has a problem with the two
    ("2.13.0+cpu", "", "a text model: vLLM needs torchvision for it, and pip's does not fit a torch for CPUs", False),
    ("2.13.0+cpu", "0.28.0", "a text model: vLLM needs torchvision for it, and pip's", True),
    ("2.13.0+cpu", "0.28.0+cpu", "", False),
    ("2.13.0", "", "torchvision to be installed, without which vLLM does not load it", False),
    ("2.13.0", "0.28.0", "", False),
]


@pytest.mark.parametrize(("torch", "torchvision", "expected", "is_problem"), BUILDS)
def test_a_run_and_the_doctor_agree_on_torchvision(
    wrapped: Path, monkeypatch: pytest.MonkeyPatch, torch: str, torchvision: str, expected: str, is_problem: bool
) -> None:
    """Never does one ask for what the other wants away."""
    packages = {"torch": torch} | ({"torchvision": torchvision} if torchvision else {})
    monkeypatch.setattr(checks, "installed", lambda name: packages.get(name, ""))
    problems = [finding.text for finding in check_build(packages, has_accelerator=True)]
    assert bool(problems) == is_problem
    if not expected:
        return check_family(str(wrapped), "model.path")
    found = rf"^model.path: {wrapped}: found 'gemma3' \(vision_config beside a text model\), expected "
    with pytest.raises(ValueError, match=rf"{found}{expected}.*; `python -c .* {wrapped}` writes its text model$"):
        check_family(str(wrapped), "model.path")
    return None


def test_the_command_of_the_refusal_writes_the_text_model(wrapped: Path, tmp_path: Path, default_model: Path) -> None:
    folder = tmp_path / "Ada's model"
    shutil.copytree(wrapped, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(default_model / name, folder / name)
    command = shlex.split(f"{TEXT_PART} {shlex.quote(str(folder))}".replace("python", sys.executable, 1))
    subprocess.run(command, check=True, timeout=500)
    alone = f"{folder}-text"
    check_family(resolve_model(alone), "model.path")
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        found = transformers.AutoModelForCausalLM.from_pretrained(alone, dtype=torch.float32)(ids).logits
        assert torch.allclose(found, text_model(wrapped)(ids).logits, atol=1e-5)
    load_causal_lm(alone, torch.float32)  # which the learner takes
    assert (Path(alone) / "tokenizer.json").is_file() and (Path(alone) / "generation_config.json").is_file()


def test_log_probs_are_those_of_the_text_model_alone(wrapped: Path) -> None:
    """Packed rows, first and last token included."""
    rows, config = [in_vocabulary(row) for row in ROWS], LearnerConfig(**SETTINGS | {"beta_kl": 0.05})  # type: ignore[arg-type]
    report = Trainer(fakes.PlainLearner(wrapped, config), config).step(rows)  # type: ignore[arg-type]
    alone = text_model(wrapped)
    with torch.no_grad():
        for row in rows:
            assert report.logprobs[row.rollout_id].tolist() == pytest.approx(
                row_logprobs(alone, row).tolist(), abs=2e-5
            )


def test_a_step_moves_every_tensor_of_the_text_and_none_beside_it(wrapped: Path) -> None:
    config = LearnerConfig(**SETTINGS)  # type: ignore[arg-type]
    engine = fakes.PlainLearner(wrapped, config)
    causal_lm = engine.student.causal_lm
    before = {name: tensor.detach().clone() for name, tensor in causal_lm.named_parameters()}
    Trainer(engine, config).step([in_vocabulary(row) for row in ROWS])  # type: ignore[arg-type]
    moved = {name for name, tensor in causal_lm.named_parameters() if not torch.equal(tensor, before[name])}
    text = {name for name in before if "language_model" in name}
    assert moved == text == {name for name, tensor in causal_lm.named_parameters() if tensor.requires_grad}
    assert len(before) - len(text) > 10  # eyes and what leads from them


def test_its_export_is_the_wrapper_with_another_text_part(wrapped: Path, tmp_path: Path) -> None:
    logprobs = exported(wrapped, tmp_path / "export")
    assert_computes(tmp_path / "export", logprobs)
    old, new = (load_file(folder / "model.safetensors") for folder in (wrapped, tmp_path / "export"))
    assert old.keys() == new.keys()
    same = {name for name in old if torch.equal(old[name], new[name])}
    assert same == {name for name in old if not name.startswith("language_model.")}


def test_every_tensor_of_a_plain_model_is_trained(tmp_path: Path) -> None:
    for family in EXPORTED:
        causal_lm = load_causal_lm(str(tiny(family, tmp_path / family)), torch.float32)
        assert all(parameter.requires_grad for parameter in causal_lm.parameters()), family
