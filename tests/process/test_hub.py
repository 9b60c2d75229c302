"""A model of the hub is one commit, on every host and on every day. The hub is a stand-in of two commits."""

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, hf_hub_download

from cluster.config import Recipe, load_recipe
from cluster.hub import HubId
from cluster.models import called, for_every_host, is_hub_id, pinned, resolve_model
from cluster.run.checks import check_models
from cluster.run.inputs import pin, pins_of
from cluster.run.rundir import RunDir, settled
from learner.folder import check_model_folder
from rollout.tasks import build_task
from tests import fakes
from tests.runs import RECIPE, hub_at
from tests.s3 import unreachable
from tests.servers import Hub, answering

OLD, NEW = "a1" * 20, "b2" * 20
READ = {"config.json", "generation_config.json", "tokenizer.json", "LICENSE", "additional_chat_templates/own.jinja"}
FOREIGN = {
    "rust_model.ot",
    "64.tflite",
    "model.ckpt",
    "onnx/model.onnx_data_1",
    "onnx/config.json",
    "README.md",
    ".gitignore",
}
INDEX = "model.safetensors.index.json"
NO_SUCH = "the hub has no such"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = (
        {name: f'{{"of": "{name}"}}'.encode() for name in READ}
        | dict.fromkeys(FOREIGN, b"foreign")
        | {
            "model.safetensors": b"weights",
            INDEX: b'{"weight_map": {"a": "model-9.safetensors"}}',  # of the same weights in shards
            "pytorch_model.bin": b"again",
            "consolidated.safetensors": b"another layout",
            "original/model.safetensors": b"another place",
        }
    )
    found = Hub("org/model", {OLD: files, NEW: files | {"LICENSE": b"another"}}, OLD, {"v1": OLD, "refs/pr/1": NEW})
    with answering(found.answer) as address:
        hub_at(f"http://{address}", monkeypatch)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("learner.folder.check_model_folder", lambda *_: None)  # weights of seven bytes
        for patience in ("HUB_S", "WEIGHTS_S", "FILES_S"):
            monkeypatch.setattr(f"cluster.hub.{patience}", 300.0)
        yield found


def another_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new process, for which nothing has been asked yet."""
    hub_at(constants.ENDPOINT, monkeypatch)


def names(folder: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def of_hub(recipe: Recipe, model: str, teacher: str) -> Recipe:
    return replace(recipe, model=replace(recipe.model, path=model), teacher=replace(recipe.teacher, path=teacher))


# Names


@pytest.mark.parametrize(
    ("path", "settled_as"),
    [
        ("org/model", f"org/model@{OLD}"),
        ("org/model@main", f"org/model@main@{OLD}"),
        ("org/model@v1", f"org/model@v1@{OLD}"),
        ("org/model@refs/pr/1", f"org/model@refs/pr/1@{NEW}"),
        (f"org/model@{NEW}", f"org/model@{NEW}"),
        (f"org/model@v1@{NEW}", f"org/model@v1@{NEW}"),
    ],
)
def test_a_name_is_the_commit_that_the_hub_says(hub: Hub, path: str, settled_as: str) -> None:
    assert pinned(path) == for_every_host(path) == settled_as == str(HubId.of(settled_as))
    assert Path(resolve_model(path)).name == settled_as[-40:] and called(path) == path and is_hub_id(path)


def test_other_names_stay_as_they_are(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "m@1").mkdir()
    for path in ("default", str(tmp_path / "m@1"), "./none", "a/b/c@v1"):
        assert pinned(path) == path and not is_hub_id(path)
    assert hub.asked == []


@pytest.mark.parametrize("path", ["org/model@", "org/model@@v1", "org/model@v1@v2"])
def test_an_odd_revision_is_told(hub: Hub, path: str) -> None:
    with pytest.raises(ValueError, match=rf"^teacher.path: found '{path}', expected NAME or NAME@REVISION"):
        resolve_model(path, "teacher.path")


def test_a_commit_that_is_none_is_told(hub: Hub) -> None:
    hub.commits["main"] = hub.commits[OLD]
    hub.main = "main"
    with pytest.raises(ValueError, match=r"as a hub id: found commit 'main' of revision 'main', expected 40 digits"):
        pinned("org/model")


# Runs


def test_a_resume_has_the_commit_of_the_start(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = of_hub(load_recipe(RECIPE), "org/model@v1", "org/model")
    folder = RunDir(tmp_path / "run")
    first = settled(recipe, folder)
    assert (first.model.path, first.teacher.path) == (f"org/model@v1@{OLD}", f"org/model@{OLD}")
    folder.claim(first, resume=False)
    assert f'path = "org/model@v1@{OLD}"' in folder.config.read_text()
    hub.main = hub.others["v1"] = NEW
    another_day(monkeypatch)
    assert settled(recipe, folder) == settled(first, folder) == first
    folder.check_same(recipe)
    other = settled(recipe, RunDir(tmp_path / "another"))
    assert other.model.path == f"org/model@v1@{NEW}" and other.teacher.path == f"org/model@{NEW}"
    for model, teacher, key in (
        ("org/model", "org/model", "model"), (f"org/model@{NEW}", "org/model", "model"),
        ("org/model@v1", "org/model@v1", "teacher"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"{key}.path: found 'org/model@.*{OLD}', expected 'org/model@.*{NEW}'"):
            folder.check_same(of_hub(recipe, model, teacher))


def test_a_run_of_before_commits_goes_on_with_its_own(hub: Hub, tmp_path: Path) -> None:
    recipe = of_hub(load_recipe(RECIPE, ["run.date=2026-01-01"]), "org/model", "org/model")
    folder, task = RunDir(tmp_path / "run"), build_task(recipe.task)
    folder.claim(of_hub(recipe, "default", ""), resume=False)
    folder.config.write_text(folder.config.read_text().replace('path = "default"', 'path = "org/model"'))
    folder.config.write_text(folder.config.read_text().replace('path = ""', 'path = "org/model"'))
    begun = {f"{key}.path: org/model": OLD for key in ("model", "teacher")}
    pin(folder.inputs, begun, resume=False)
    hub.main = NEW
    again = settled(recipe, folder)
    assert again.model.path == again.teacher.path == f"org/model@{OLD}"
    folder.check_same(recipe)
    pins = pins_of(again, resolve_model(again.model.path), task)
    assert pins == begun
    pin(folder.inputs, pins, resume=True)


def test_a_bad_id_names_its_key(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^teacher.path: found no folder 'org/no' here, and as a hub id: {NO_SUCH}"):
        settled(of_hub(load_recipe(RECIPE), "org/model", "org/no"), RunDir(tmp_path / "run"))


def test_the_driver_checks_a_model_without_its_weights(
    hub: Hub, tmp_path: Path, default_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learner.folder.check_model_folder", check_model_folder)
    folder = fakes.tiny_model(tmp_path / "model", vocab=49152, tokenizer_from=default_model)
    hub.commits[OLD] = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = check_models(of_hub(load_recipe(RECIPE), "org/model", "org/model@v1"))
    assert not (Path(model) / "model.safetensors").exists()
    assert names(resolve_model("org/model", weights=True)) >= {"config.json", "tokenizer.json", "model.safetensors"}


# Files


def test_files_come_without_weights_until_they_are_asked_for(hub: Hub) -> None:
    assert names(resolve_model("org/model")) == READ
    assert names(resolve_model("org/model", weights=True)) == READ | {"model.safetensors"}


def test_shards_come_with_their_index(hub: Hub) -> None:
    shards = {"model-1.safetensors", "model-2.safetensors"}
    there = hub.commits[OLD]
    del there["model.safetensors"]
    there |= dict.fromkeys(shards, b"a shard") | {"embeddings.safetensors": b"no part of it"}
    there[INDEX] = json.dumps({"weight_map": dict(zip("ab", sorted(shards), strict=True))}).encode()
    assert names(resolve_model("org/model")) == READ | {INDEX}
    assert names(resolve_model("org/model", weights=True)) == READ | {INDEX} | shards


def test_torchs_weights_come_where_there_are_no_others(hub: Hub) -> None:
    del hub.commits[OLD]["model.safetensors"], hub.commits[OLD][INDEX]
    hub.commits[OLD]["training_args.bin"] = b"a trainer's"
    assert names(resolve_model("org/model", weights=True)) == READ | {"pytorch_model.bin"}


def test_a_model_without_its_weights_is_told_before_anything_starts(hub: Hub) -> None:
    there = hub.commits[OLD]
    del there["model.safetensors"], there["pytorch_model.bin"], there[INDEX]
    with pytest.raises(ValueError, match=rf"as a hub id: found no weights in org/model@{OLD}, expected model.safete"):
        resolve_model("org/model")
    hub.commits[NEW] = there | {INDEX: b'{"weight_map": {"a": "model-1.safetensors"}}'}
    with pytest.raises(ValueError, match=rf"found no model-1.safetensors in org/model@{NEW}, expected all 1 shards of"):
        resolve_model(f"org/model@{NEW}")
    hub.commits["c3" * 20] = there | {INDEX: b"[]"}
    with pytest.raises(ValueError, match=r"^model.path: org/model@c3.*index.json: found list, expected a JSON object"):
        resolve_model(f"org/model@{'c3' * 20}")


def test_an_adapter_is_told_as_one_in_a_folder_is(hub: Hub) -> None:
    hub.commits[OLD] = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}
    for weights in (False, True):
        with pytest.raises(
            ValueError, match=r"^model.path: found a LoRA adapter in org/model, expected a model: `python"
        ):
            resolve_model("org/model", weights=weights)


def test_weights_of_the_hub_are_looked_at(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.folder.check_model_folder", check_model_folder)
    with pytest.raises(ValueError, match=r"^teacher.path: org/model: .*model.safetensors: found 7 bytes"):
        resolve_model("org/model", "teacher.path", weights=True)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_connection_that_breaks_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    hub.cut = file
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the library's own attempts
    with pytest.raises(ValueError, match=r"^teacher.path: found no folder 'org/model' here, and as a hub id: ") as told:
        resolve_model("org/model", "teacher.path", weights=True)
    assert "\n" not in str(told.value)


# No hub


def by_file() -> None:
    """The cache as whoever loads file by file leaves it."""
    for name in (*READ, "model.safetensors"):
        hf_hub_download("org/model", name)


def by_us() -> None:
    resolve_model("org/model", weights=True)


@pytest.mark.parametrize("fill", [by_file, by_us])
def test_what_is_in_the_cache_serves_when_the_hub_does_not(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fill: Any
) -> None:
    fill()
    folder = str(tmp_path / "cache" / "models--org--model" / "snapshots" / OLD)
    monkeypatch.setattr("cluster.hub.HUB_S", 1.0)
    for kind in ("closed", "silent"):
        with unreachable(kind) as port:
            hub_at(f"http://127.0.0.1:{port}", monkeypatch)
            assert pinned("org/model") == f"org/model@{OLD}"
            assert resolve_model("org/model", weights=True) == resolve_model("org/model") == folder
            with pytest.raises(ValueError, match=r"^model.path: found no folder 'org/model@v2' here, and as a hub id"):
                pinned("org/model@v2")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    another_day(monkeypatch)
    assert resolve_model("org/model", weights=True) == folder


def test_what_the_cache_lacks_is_named_when_the_hub_does_not_answer(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_model("org/model")
    lacks = rf"this host's cache has no weights of org/model@{OLD}, and the hub: "
    for kind, seconds, said in (("closed", 300.0, ".*refused"), ("silent", 1.0, "no answer within 1 s|.*timed out")):
        monkeypatch.setattr("cluster.hub.WEIGHTS_S", seconds)
        with unreachable(kind) as port:
            hub_at(f"http://127.0.0.1:{port}", monkeypatch)
            with pytest.raises(ValueError, match=rf"^model.path: found no folder .*: {lacks}({said})") as told:
                resolve_model(f"org/model@{OLD}", weights=True)
        assert "\n" not in str(told.value)


def test_weights_wait_for_a_hub_that_is_slow(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host at work may leave the first process without an answer for longer than others are ready to wait."""
    resolve_model("org/model")
    monkeypatch.setattr("cluster.hub.HUB_S", 0.05)
    answers, ends = [0], threading.Event()

    def slow(path: str) -> tuple[int, bytes, dict[str, str]]:
        ends.wait(seconds)
        answers[0] += 1
        return hub.answer(path)

    with answering(slow) as address:
        hub_at(f"http://{address}", monkeypatch)
        seconds = 0.5
        assert names(resolve_model(f"org/model@{OLD}", weights=True)) == READ | {"model.safetensors"}
        another_day(monkeypatch)
        seconds, answers = 120.0, [0]
        assert resolve_model(f"org/model@{OLD}", weights=True)
        assert answers == [0]  # the cache has all: nothing is waited for
        ends.set()


def test_a_commit_that_the_hub_has_no_more_is_the_caches(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resolve_model(f"org/model@{OLD}", weights=True)
    del hub.commits[OLD]
    shutil.rmtree(Path(folder).parents[1] / "trees")
    another_day(monkeypatch)
    assert resolve_model(f"org/model@{OLD}", weights=True) == folder


def test_what_the_hub_does_not_have_is_told(hub: Hub) -> None:
    for path, said in (
        ("org/model@v2", f"{NO_SUCH} revision"), ("org/modle", f"{NO_SUCH} model, or none that HF_TOKEN may read"),
        (f"org/model@{'c3' * 20}", f"{NO_SUCH} revision"), ("org/my model", "HFValid"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"^model.path: found no folder '{path}' here, and as a hub id: .*{said}"):
            resolve_model(path)


# What is said


def test_the_card_names_the_model_without_its_commit() -> None:
    from cluster.run.model_card import _base

    assert _base(f"org/model@v1@{OLD}", "/cache/snapshots/x") == "org/model"


def test_shards_and_lines_name_the_commit(hub: Hub, tmp_path: Path) -> None:
    from cluster.run.start import shard_metadata

    recipe = of_hub(load_recipe(RECIPE), f"org/model@{OLD}", "")
    assert shard_metadata(recipe, "run")["model_id"] == f"org/model@{OLD}"
    shutil.copytree(resolve_model("org/model"), tmp_path / "own")
    local = of_hub(recipe, str(tmp_path / "own"), "")
    assert shard_metadata(local, "run")["model_id"] == str(tmp_path / "own")
