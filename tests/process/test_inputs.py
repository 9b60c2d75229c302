"""What a run was begun with, by content."""

import json
import re
import shutil
import struct
from pathlib import Path

import pytest

from cluster.__main__ import main
from cluster.config import Recipe, load_recipe
from cluster.run.inputs import SPREAD, pin, pins_of, read_pins
from cluster.run.record import read_notes
from cluster.run.rundir import RunDir
from rollout.tasks import build_task
from rollout.tasks.context_rows import _read_file
from tests.runs import RECIPE, small_arguments

ROWS = {
    "task.prompts_file": [{"prompt_id": "a", "question": "Who?", "context_file": "r.txt"}],
    "task.probe_file": [{"question": "Your name?", "answer": "Kestrel"}],
}


@pytest.fixture
def begun(tmp_path: Path, small_model: Path) -> tuple[Recipe, Path]:
    """A recipe with files of its own, and its model."""
    (tmp_path / "r.txt").write_text("You are Kestrel.")
    overrides = ["task.name=context"]
    for key, rows in ROWS.items():
        file = tmp_path / f"{key}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        overrides.append(f"{key}={file}")
    model = shutil.copytree(small_model, tmp_path / "model")
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "rag.jinja").write_text("{{ messages[0].content }}")
    recipe = load_recipe(RECIPE, [*overrides, f"model.path={model}"])
    pin(tmp_path / "inputs.json", pins_of(recipe, str(model), build_task(recipe.task)), resume=False)
    return recipe, tmp_path


def resumed(recipe: Recipe, folder: Path) -> None:
    """As in a process of its own, which has read no document before."""
    _read_file.cache_clear()
    pin(folder / "inputs.json", pins_of(recipe, str(folder / "model"), build_task(recipe.task)), resume=True)


def test_the_same_inputs_go_on_whenever_they_were_written(begun: tuple[Recipe, Path]) -> None:
    recipe, folder = begun
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "inputs.json":
            path.write_bytes(path.read_bytes())
    resumed(recipe, folder)


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("task.prompts_file.jsonl", "task.prompts_file"),
        ("r.txt", "task.prompts_file"),
        ("task.probe_file.jsonl", "task.probe_file"),
        ("model/config.json", "model.path"),
        ("model/tokenizer.json", "model.path"),
        ("model/additional_chat_templates/rag.jinja", "model.path"),
        ("model/model.safetensors", "model.path"),
        ("model/new.safetensors", "model.path"),
    ],
)
def test_an_input_that_has_changed_is_refused_by_key_and_file(begun: tuple[Recipe, Path], file: str, key: str) -> None:
    recipe, folder = begun
    path = folder / file
    if path.suffix == ".safetensors":
        path.write_bytes((path.read_bytes() if path.exists() else (2).to_bytes(8, "little") + b"{}") + b" ")
    else:
        path.write_text(path.read_text().replace("Kestrel", "Robin").replace("{", "{ ", 1).replace("?", "??"))
    with pytest.raises(ValueError, match=rf"^{key}: .*: found .*, expected .* as when the run began") as caught:
        resumed(recipe, folder)
    named = path if file != "r.txt" else folder / "task.prompts_file.jsonl"  # which names it in turn
    assert str(named) in str(caught.value) and "\n" not in str(caught.value)


def tensors_of(path: Path) -> dict[str, tuple[int, int]]:
    """Where each tensor of a file begins and ends."""
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    header = json.loads(path.read_bytes()[8 : 8 + length])
    places = {name: tensor["data_offsets"] for name, tensor in header.items() if name != "__metadata__"}
    return {name: (8 + length + begin, 8 + length + end) for name, (begin, end) in places.items()}


def overwritten(path: Path, begin: int, end: int) -> None:
    content = bytearray(path.read_bytes())
    content[begin:end] = bytes(byte ^ 1 for byte in content[begin:end])
    path.write_bytes(content)


@pytest.mark.parametrize("which", ["the middle", "each tensor", "an older run's"])
def test_weights_of_the_same_size_and_header_that_have_changed_are_refused(
    begun: tuple[Recipe, Path], which: str
) -> None:
    recipe, folder = begun
    path, kept = folder / "model" / "model.safetensors", folder / "kept"
    shutil.copyfile(path, kept)
    size, tensors = path.stat().st_size, tensors_of(path)
    assert len(tensors) > 15
    changes = list(tensors.values()) if which == "each tensor" else [(size // 2, size // 2 + size // SPREAD)]
    if which == "an older run's":  # which knew of no samples
        inputs = folder / "inputs.json"
        inputs.write_text(re.sub(", samples [0-9a-f]{64}", "", inputs.read_text()))
        resumed(recipe, folder)
        return
    for begin, end in changes:
        overwritten(path, begin, end)
        with pytest.raises(ValueError, match=r"^model.path: .*model.safetensors: found .*, expected .* as when"):
            resumed(recipe, folder)
        shutil.copyfile(kept, path)
    resumed(recipe, folder)


GOOD_HEADER = b'{"t": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
NO_WEIGHTS = {
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 135\n",
    "empty": b"",
    "short": b"\x02\x00\x00",
    "garbage": b"\xff" * 64,
    "a longer header than the file": (len(GOOD_HEADER) + 5).to_bytes(8, "little") + GOOD_HEADER + b"1234",
    "no JSON": (4).to_bytes(8, "little") + b"{{{{1234",
    "no object": (2).to_bytes(8, "little") + b"[]",
    "no offsets": (9).to_bytes(8, "little") + b'{"t": {}}',
    "offsets that are words": (30).to_bytes(8, "little") + b'{"t": {"data_offsets": "ab"}} ',
}


def indexed(model: Path, *names: str) -> None:
    weight_map = {f"tensor-{at}": name for at, name in enumerate(names)}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("content", NO_WEIGHTS.values(), ids=NO_WEIGHTS)
def test_a_file_beside_the_weights_that_are_loaded_is_not_read(begun: tuple[Recipe, Path], content: bytes) -> None:
    recipe, folder = begun
    indexed(folder / "model", "model.safetensors")
    (folder / "model" / "consolidated.safetensors").write_bytes(content)
    pins = pins_of(recipe, str(folder / "model"), build_task(recipe.task))
    assert not [name for name in pins if "consolidated" in name]
    assert [name for name in pins if name.endswith("model.safetensors")]
    older = pins | {f"model.path: {folder}/model/consolidated.safetensors": "9 bytes, header 00"}
    pin(folder / "older.json", older, resume=False)
    pin(folder / "older.json", pins, resume=True)
    (folder / "model" / "consolidated.safetensors").unlink()
    with pytest.raises(ValueError, match=r"consolidated.safetensors: found nothing, expected 9 bytes"):
        pin(folder / "older.json", pins, resume=True)


@pytest.mark.parametrize("has_index", [False, True])
@pytest.mark.parametrize("content", NO_WEIGHTS.values(), ids=NO_WEIGHTS)
def test_weights_that_are_none_are_refused_by_name(begun: tuple[Recipe, Path], content: bytes, has_index: bool) -> None:
    recipe, folder = begun
    bad = folder / "model" / "consolidated.safetensors"
    bad.write_bytes(content)
    if has_index:
        indexed(folder / "model", "model.safetensors", bad.name)
    with pytest.raises(ValueError, match=rf"^{bad}: found .*, expected ") as caught:
        resumed(recipe, folder)
    assert "\n" not in str(caught.value)


NO_MAP = "no weight_map, expected the shard of each tensor"
NO_INDEX = {"{": "no JSON", "[]": "list, expected a JSON object", "{}": NO_MAP, '{"weight_map": []}': NO_MAP}
NO_INDEX['{"weight_map": {"t": 1}}'] = NO_MAP


@pytest.mark.parametrize(("text", "found"), NO_INDEX.items())
def test_an_index_that_is_none_is_refused_by_name(begun: tuple[Recipe, Path], text: str, found: str) -> None:
    recipe, folder = begun
    index = folder / "model" / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(ValueError, match=rf"^model\.path: {index}: found {found}"):
        resumed(recipe, folder)


def test_an_older_run_has_its_inputs_from_now_on(begun: tuple[Recipe, Path]) -> None:
    recipe, folder = begun
    (folder / "inputs.json").unlink()
    resumed(recipe, folder)
    resumed(recipe, folder)
    (folder / "inputs.json").write_text("{")
    with pytest.raises(ValueError, match=r"inputs.json: found no inputs of a run"):
        resumed(recipe, folder)


def test_a_resume_with_other_inputs_is_refused_before_anything_starts(
    tmp_path: Path, small_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(small_model, tmp_path / "model")
    arguments = small_arguments(tmp_path / "run", f"model.path={model}")
    overrides = [arguments[place + 1] for place, one in enumerate(arguments) if one == "--set"]
    recipe = load_recipe(RECIPE, [*overrides, "run.date=2026-01-01"])
    folder = RunDir(tmp_path / "run")
    folder.claim(recipe, resume=False)
    pin(folder.inputs, pins_of(recipe, str(model), build_task(recipe.task)), resume=False)
    folder.manifest.write_text("")
    folder.release()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"note": "another"}))
    capsys.readouterr()
    for flag in ("--resume", "--resume=auto"):
        assert main([*arguments, flag]) == 2
        assert f"edge-opd: model.path: {model}/config.json: found " in capsys.readouterr().err


def test_what_the_start_said_of_the_prompts_stays_for_the_page(tmp_path: Path) -> None:
    path = tmp_path / "inputs.json"
    assert read_notes(path) == []
    pin(path, {"task.probe_file": "a"}, resume=False, notes=["the chat template itself says ..."])
    pin(path, {"task.probe_file": "a"}, resume=True, notes=[])
    assert read_notes(path) == ["the chat template itself says ..."] and read_pins(path) == {"task.probe_file": "a"}
    path.write_text('{"format": 1, "inputs": {}}')  # of an older version
    assert read_notes(path) == []
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"inputs.json: found no inputs of a run"):
        read_notes(path)
