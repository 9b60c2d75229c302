"""A model of the hub is one commit, on every host and on every day. The hub is a stand-in of two commits."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.config import Recipe, load_recipe
from cluster.models import called, for_every_host, is_hub_id, pinned, resolve_model
from cluster.run.inputs import pin, pins_of
from cluster.run.rundir import RunDir, settled
from learner.folder import check_model_folder
from rollout.tasks import build_task
from tests.runs import RECIPE, hub_at
from tests.s3 import unreachable
from tests.servers import Hub, answering

OLD, NEW = "a1" * 20, "b2" * 20
SMALL_FILES = {"config.json", "generation_config.json", "tokenizer.json", "LICENSE"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = {name: f'{{"of": "{name}"}}'.encode() for name in SMALL_FILES} | {
        "model.safetensors": b"weights",
        "pytorch_model.bin": b"again",
        "consolidated.safetensors": b"another layout",
        "original/model.safetensors": b"another place",
    }
    found = Hub("org/model", {OLD: files, NEW: files | {"LICENSE": b"another"}}, OLD, {"v1": OLD})
    with answering(found.answer) as address:
        hub_at(f"http://{address}", monkeypatch)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("learner.folder.check_model_folder", lambda *_: None)  # weights of seven bytes
        yield found


def another_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new process, for which nothing has been asked yet."""
    from huggingface_hub import constants

    hub_at(constants.ENDPOINT, monkeypatch)


def names(folder: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("path", "commit"),
    [("org/model", OLD), ("org/model@main", OLD), ("org/model@v1", OLD), (f"org/model@{NEW}", NEW)],
)
def test_a_name_is_the_commit_that_the_hub_says(hub: Hub, path: str, commit: str) -> None:
    assert pinned(path) == for_every_host(path) == f"org/model@{commit}"
    folder = resolve_model(path)
    assert Path(folder).name == commit and called(path) == path and is_hub_id(path)


def test_other_names_stay_as_they_are(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "m@1").mkdir()
    for path in ("default", str(tmp_path / "m@1"), "./none", "a/b/c@v1"):
        assert pinned(path) == path and not is_hub_id(path)
    assert hub.asked == []


def test_a_resume_has_the_commit_of_the_start(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = of_hub(load_recipe(RECIPE), "org/model", "org/model@v1")
    folder = RunDir(tmp_path / "run")
    first = settled(recipe, folder)
    assert (first.model.path, first.teacher.path) == (f"org/model@{OLD}", f"org/model@{OLD}")
    folder.claim(first, resume=False)
    assert f'path = "org/model@{OLD}"' in folder.config.read_text()
    hub.main = NEW
    another_day(monkeypatch)
    assert settled(recipe, folder) == first and settled(recipe, RunDir(tmp_path / "another")).model.path.endswith(NEW)
    folder.check_same(recipe)
    hub.others["v1"] = NEW  # who names a revision means it
    another_day(monkeypatch)
    with pytest.raises(ValueError, match=rf"teacher.path: found 'org/model@{OLD}', expected 'org/model@{NEW}'"):
        folder.check_same(recipe)


def test_a_run_of_before_commits_goes_on_with_its_own_and_with_no_other(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = of_hub(load_recipe(RECIPE, ["run.date=2026-01-01"]), "org/model", "")
    folder = RunDir(tmp_path / "run")
    folder.claim(recipe, resume=False)
    task = build_task(recipe.task)
    pins = {"model.path: org/model": OLD}
    pin(folder.inputs, pins, resume=False)
    again = settled(recipe, folder)
    assert again == recipe
    pin(folder.inputs, pins_of(again, resolve_model("org/model"), task), resume=True)
    hub.main = NEW
    another_day(monkeypatch)
    with pytest.raises(ValueError, match=rf"^model.path: org/model: found {NEW}, expected {OLD} as when the run"):
        pin(folder.inputs, pins_of(again, resolve_model("org/model"), task), resume=True)


def test_files_come_without_weights_until_they_are_asked_for(hub: Hub) -> None:
    assert names(resolve_model("org/model")) == SMALL_FILES
    whole = names(resolve_model("org/model", weights=True))
    assert whole == SMALL_FILES | {"model.safetensors"}


def test_torchs_weights_come_where_there_are_no_others(hub: Hub) -> None:
    del hub.commits[OLD]["model.safetensors"]
    hub.commits[OLD]["training_args.bin"] = b"a trainer's"
    assert names(resolve_model("org/model", weights=True)) == SMALL_FILES | {"pytorch_model.bin"}


def test_weights_of_the_hub_are_looked_at(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.folder.check_model_folder", check_model_folder)
    with pytest.raises(ValueError, match=r"^model.path: org/model: .*model.safetensors: found 7 bytes"):
        resolve_model("org/model", weights=True)


def test_what_is_in_the_cache_serves_when_the_hub_does_not(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resolve_model("org/model", weights=True)
    hub_at("http://127.0.0.1:9", monkeypatch)
    assert pinned("org/model") == f"org/model@{OLD}" and resolve_model("org/model", weights=True) == folder
    with pytest.raises(ValueError, match=r"^model.path: found no folder 'org/model@v2' here, and as a hub id: .*Con"):
        pinned("org/model@v2")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    another_day(monkeypatch)
    assert resolve_model("org/model", weights=True) == folder


def test_a_part_of_a_model_is_told_when_the_hub_does_not_answer(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_model("org/model")
    hub_at("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(ValueError, match=r"as a hub id: .*cannot find the requested files in the local cache"):
        resolve_model("org/model", weights=True)


def test_what_the_hub_does_not_have_is_told_whatever_the_cache_has(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_model("org/model@v1")
    del hub.others["v1"]
    another_day(monkeypatch)
    for path, said in (
        ("org/model@v1", "404"), ("org/modle", "404"), (f"org/model@{'c3' * 20}", "404"), ("org/my model", "HFValid"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"^model.path: found no folder '{path}' here, and as a hub id: .*{said}"):
            resolve_model(path)


def of_hub(recipe: Recipe, model: str, teacher: str) -> Recipe:
    return replace(recipe, model=replace(recipe.model, path=model), teacher=replace(recipe.teacher, path=teacher))


def test_the_card_names_the_model_without_its_commit() -> None:
    from cluster.run.model_card import _base

    assert _base(f"org/model@{OLD}", "/cache/snapshots/x") == "org/model"


def test_shards_and_lines_name_the_commit(hub: Hub, tmp_path: Path) -> None:
    from cluster.run.start import shard_metadata

    recipe = of_hub(load_recipe(RECIPE), f"org/model@{OLD}", "")
    assert shard_metadata(recipe, "run")["model_id"] == f"org/model@{OLD}"
    shutil.copytree(resolve_model("org/model"), tmp_path / "own")
    local = of_hub(recipe, str(tmp_path / "own"), "")
    assert shard_metadata(local, "run")["model_id"] == str(tmp_path / "own")


def test_a_silent_hub_is_given_up_for_what_is_in_the_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resolve_model("org/model")
    monkeypatch.setattr("cluster.hub.HUB_S", 1.0)
    with unreachable("silent") as port:
        hub_at(f"http://127.0.0.1:{port}", monkeypatch)
        assert resolve_model("org/model") == folder
