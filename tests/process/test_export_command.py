"""A run whose export fails, and `edge-opd export` afterwards."""

import asyncio
import os
import re
import shutil
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ray.exceptions import RayTaskError
from safetensors.torch import load_file

from cluster.__main__ import main
from cluster.config import ExportConfig, Recipe, RunConfig, dump, load_recipe
from cluster.errors import explained
from cluster.fleet.calls import Died
from cluster.run.checkpoints import Checkpoints
from cluster.run.rundir import RunDir
from cluster.run.start import export
from cluster.typed import build
from evidence.records import Ids
from learner.sealed import SealedFile, seal
from rollout.waits import Late
from tests import fakes
from tests.runs import RECIPE, edge_opd

TEXT = np.zeros(0, np.int32), np.ones(0, np.int32)
STATES = "mp_rank_00_model_states.pt"  # what DeepSpeed calls the file of the model that ranks share


class Learner:
    """A learner service whose export and checkpoint may fail."""

    def __init__(self, exports: Exception | None, saves: Exception | None) -> None:
        self.exports, self.saves, self.saved = exports, saves, list[tuple[Path, int]]()

    async def export(self, folder: Path, text: tuple[Ids, Ids]) -> None:
        assert text is TEXT
        if self.exports is not None:
            raise self.exports

    async def checkpoint_bytes(self) -> int:
        return 1

    async def save(self, folder: Path, step: int) -> list[SealedFile]:
        if self.saves is not None:
            raise self.saves
        self.saved.append((folder, step))
        (folder / f"step-{step:06d}").mkdir()
        return []


RECIPE_20 = Recipe(run=RunConfig(steps=20))
FULL = RuntimeError("export: run/export: No space left on device")


def attempt(learner: Learner, folder: RunDir) -> str:
    with pytest.raises(RuntimeError) as error:
        asyncio.run(export(learner, folder, TEXT, RECIPE_20, Checkpoints(folder.checkpoints), 20))  # type: ignore[arg-type]
    return str(error.value)


def test_a_failed_export_leaves_a_checkpoint_and_says_how_to_export_later(tmp_path: Path) -> None:
    learner, folder = Learner(FULL, None), RunDir(tmp_path)
    folder.checkpoints.mkdir()
    told = attempt(learner, folder)
    assert told.startswith(f"{FULL}; the model is in {tmp_path}/checkpoints: ")
    assert f"`edge-opd export {tmp_path}`" in told and "\n" not in told
    assert learner.saved == [(folder.checkpoints, 20)]


def test_weights_that_the_run_chose_are_no_checkpoint_of_its_last_step(tmp_path: Path) -> None:
    """Which a resume would load, and refuse: it pushes what it loads, whose digest is that of other weights."""
    folder, learner = RunDir(tmp_path), Learner(FULL, None)
    folder.checkpoints.mkdir()
    place, recipe = Checkpoints(folder.checkpoints), replace(RECIPE_20, export=ExportConfig(choose="best"))
    with pytest.raises(RuntimeError, match=f"; the model is in {tmp_path}/chosen: `edge-opd export"):
        asyncio.run(export(learner, folder, TEXT, recipe, place, 20))  # type: ignore[arg-type]
    assert learner.saved == [(folder.chosen, 20)] and list(folder.checkpoints.iterdir()) == []
    learner.exports = None
    asyncio.run(export(learner, folder, TEXT, recipe, place, 20))  # type: ignore[arg-type]
    assert not folder.chosen.exists()


def test_a_checkpoint_that_fails_too_is_named_beside_it(tmp_path: Path) -> None:
    learner = Learner(FULL, OSError(28, "No space left on device"))
    RunDir(tmp_path).checkpoints.mkdir()
    assert re.fullmatch(rf"{FULL}; no checkpoint either: .*No space left on device", attempt(learner, RunDir(tmp_path)))


@pytest.mark.parametrize("mistake", [KeyError("model.norm.weight"), TypeError("unhashable type: 'list'")])
def test_a_mistake_of_our_own_leaves_a_checkpoint_too(tmp_path: Path, mistake: Exception) -> None:
    """As it comes out of the learner's process: a traceback, with how to export later below it."""
    learner, folder = (
        Learner(RayTaskError("export", "traceback", mistake).as_instanceof_cause(), None),
        RunDir(tmp_path),
    )
    folder.checkpoints.mkdir()
    with pytest.raises(type(mistake)) as error:
        asyncio.run(export(learner, folder, TEXT, RECIPE_20, Checkpoints(folder.checkpoints), 20))  # type: ignore[arg-type]
    assert learner.saved == [(folder.checkpoints, 20)]
    with pytest.raises(type(mistake)) as shown:
        explained(error.value)
    assert f"`edge-opd export {tmp_path}` writes it" in "".join(traceback.format_exception(shown.value))


@pytest.mark.parametrize(
    "lost", [Died("learner rank 1 died: its worker process has died"), Late("learner rank 0: no answer")]
)
def test_a_rank_that_is_lost_amid_the_export_is_started_again(tmp_path: Path, lost: Exception) -> None:
    """By who has the services: nothing more is asked of what is left of them."""
    learner = Learner(lost, None)
    with pytest.raises(type(lost)) as error:
        asyncio.run(export(learner, RunDir(tmp_path), TEXT, RECIPE_20, Checkpoints(RunDir(tmp_path).checkpoints), 20))  # type: ignore[arg-type]
    assert error.value is lost and learner.saved == []


def test_an_export_that_succeeds_writes_no_checkpoint(tmp_path: Path) -> None:
    learner = Learner(None, None)
    asyncio.run(export(learner, RunDir(tmp_path), TEXT, RECIPE_20, Checkpoints(RunDir(tmp_path).checkpoints), 20))  # type: ignore[arg-type]
    assert learner.saved == []


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ((), "found no config.toml, expected a run"),
        (("config.toml",), "checkpoints: found no checkpoint, expected one that can be exported"),
    ],
)
def test_a_folder_without_a_run_or_a_checkpoint_is_one_line(
    tmp_path: Path, files: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in files:
        (tmp_path / name).write_text(dump(build(Recipe, {}, "test")))
    assert main(["export", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.splitlines()[-1].startswith(f"edge-opd: {tmp_path}") and told in said.err


def test_a_run_that_goes_on_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.toml").write_text(dump(build(Recipe, {}, "test")))
    running = RunDir(tmp_path)
    running.hold()
    done = edge_opd("export", str(tmp_path))
    assert done.returncode == 2 and f"process {os.getpid()}" in done.stderr.splitlines()[-1], done.stderr
    running.release()
    assert main(["export", str(tmp_path)]) == 2 and "found no checkpoint" in capsys.readouterr().err


SAVED = Path(__file__).parents[1] / "data" / "small-run"


@pytest.mark.parametrize(("probed", "chosen"), [(False, False), (True, False), (False, True)])
def test_a_checkpoint_becomes_the_model_that_was_trained(
    tmp_path: Path, default_model: Path, probed: bool, chosen: bool
) -> None:
    """Beside a card where the run had probes. tests/engine/test_zero.py does the same with DeepSpeed's own files."""
    base, folder = tmp_path / "base", RunDir(tmp_path / "run")
    fakes.tiny_model(base, tokenizer_from=default_model, vocab=49152, dtype="bfloat16")
    checkpoints = Checkpoints(folder.checkpoints)
    if chosen:
        (last := checkpoints.place(16)).mkdir(parents=True)
        (last / STATES).write_bytes(b"of the last step")
        checkpoints.commit(16, seal(last, 0))
        checkpoints = Checkpoints(folder.chosen)
    place = checkpoints.place(16)
    place.mkdir(parents=True)
    trained = {name: tensor + 0.25 for name, tensor in load_file(base / "model.safetensors").items()}
    torch.save({"module": {f"causal_lm.{name}": tensor for name, tensor in trained.items()}}, place / STATES)
    checkpoints.commit(16, seal(place, 0))
    (folder.root / "config.toml").write_text(dump(load_recipe(RECIPE, [f"model.path={base}", "run.steps=16"])))
    if probed:
        for name in ("probes.jsonl", "gap.json"):
            shutil.copyfile(SAVED / name, folder.root / name)
    done = edge_opd("export", str(folder.root))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == str(folder.export)
    found = load_file(folder.export / "model.safetensors")
    assert found.keys() == trained.keys() and all(torch.equal(found[name], trained[name]) for name in found)
    assert (folder.export / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    card = folder.export / "README.md"
    assert card.is_file() is probed
    if probed:
        assert "base_model: base" in card.read_text() and "16 steps" in card.read_text()
