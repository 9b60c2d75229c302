"""A run whose export fails, and `edge-opd export` afterwards."""

import asyncio
import re
from pathlib import Path

import pytest

from cluster.config import Recipe, dump
from cluster.run.rundir import RunDir
from cluster.run.start import export
from cluster.typed import build
from learner.sealed import SealedFile
from tests.runs import edge_opd


class Learner:
    """A learner service whose export and checkpoint may fail."""

    def __init__(self, exports: Exception | None, saves: Exception | None) -> None:
        self.exports, self.saves, self.saved = exports, saves, list[tuple[Path, int]]()

    async def export(self, folder: Path) -> None:
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


FULL = RuntimeError("export: run/export: No space left on device")


def attempt(learner: Learner, folder: RunDir) -> str:
    with pytest.raises(RuntimeError) as error:
        asyncio.run(export(learner, folder, 20))  # type: ignore[arg-type]
    return str(error.value)


def test_a_failed_export_leaves_a_checkpoint_and_says_how_to_export_later(tmp_path: Path) -> None:
    learner, folder = Learner(FULL, None), RunDir(tmp_path)
    folder.checkpoints.mkdir()
    told = attempt(learner, folder)
    assert told.startswith(f"{FULL}; the model is in {tmp_path}/checkpoints: ")
    assert f"`edge-opd export {tmp_path}`" in told and "\n" not in told
    assert learner.saved == [(folder.checkpoints, 20)]


def test_a_checkpoint_that_fails_too_is_named_beside_it(tmp_path: Path) -> None:
    learner = Learner(FULL, OSError(28, "No space left on device"))
    RunDir(tmp_path).checkpoints.mkdir()
    assert re.fullmatch(rf"{FULL}; no checkpoint either: .*No space left on device", attempt(learner, RunDir(tmp_path)))


def test_an_export_that_succeeds_writes_no_checkpoint(tmp_path: Path) -> None:
    learner = Learner(None, None)
    asyncio.run(export(learner, RunDir(tmp_path), 20))  # type: ignore[arg-type]
    assert learner.saved == []


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ((), "found no config.toml, expected a run"),
        (("config.toml",), "checkpoints: found no checkpoint, expected one that can be exported"),
    ],
)
def test_a_folder_without_a_run_or_a_checkpoint_is_one_line(tmp_path: Path, files: tuple[str, ...], told: str) -> None:
    for name in files:
        (tmp_path / name).write_text(dump(build(Recipe, {}, "test")))
    done = edge_opd("export", str(tmp_path))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith(f"edge-opd: {tmp_path}") and told in done.stderr
