"""Checkpoints as the driver keeps them, with files of real ranks' names: whole or not one, whatever happened to the
disk or to a rank."""

import asyncio
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.run.checkpoints import Checkpoints
from cluster.run.record import append_step
from cluster.run.replay import Resumed, require_same_weights
from cluster.run.rundir import RunDir
from learner.sealed import SealedFile, faults, owner, seal
from tests.unit.test_record import a_step

NAMES = ("mp_rank_00_model_states.pt", "bf16_zero_pp_rank_{}_mp_rank_00_optim_states.pt", "kept-rank-{}.safetensors")


class Killed(BaseException):
    """The driver is, or its task is cancelled."""


class Ranks:
    """A learner service of `num_ranks` ranks, which write a few bytes each. One may die amid a save, and with `killed`
    the driver does."""

    def __init__(self, num_ranks: int = 2, dies: int | None = None, killed: bool = False) -> None:
        self.num_ranks, self.dies, self.killed = num_ranks, dies, killed
        self.loaded, self.saved = list[int](), list[int]()

    async def checkpoint_bytes(self) -> int:
        return 1

    async def save(self, folder: Path, step: int) -> list[SealedFile]:
        place = folder / f"step-{step:06d}"
        place.mkdir(parents=True)
        for rank in range(self.num_ranks):
            for name in NAMES if rank == 0 else NAMES[1:]:
                if rank == self.dies:
                    (place / name.format(rank)).write_bytes(b"half")
                    if self.killed:
                        raise Killed
                    raise RuntimeError(f"saving a checkpoint: learner rank {rank} died")
                (place / name.format(rank)).write_bytes(os.urandom(3000 + rank))
        self.saved.append(step)
        return [file for rank in range(self.num_ranks) for file in seal(place, rank)]

    async def verify(self, folder: Path, files: Sequence[SealedFile]) -> list[str]:
        shares = [files[rank :: self.num_ranks] for rank in range(self.num_ranks)]
        return [fault for share in shares for fault in faults(folder, share)]

    async def load(self, folder: Path, step: int) -> None:
        self.loaded.append(step)


def save(folder: Path, *steps: int, keep: int = 2, ranks: Any = None) -> Checkpoints:
    checkpoints = Checkpoints(folder)
    folder.mkdir(exist_ok=True)
    for step in steps:
        asyncio.run(checkpoints.save(ranks or Ranks(), step, keep))
    return checkpoints


def load(checkpoints: Checkpoints) -> tuple[int, str]:
    """The step that every rank loaded, and what was said."""
    ranks: Any = Ranks()
    said: list[str] = []
    step = asyncio.run(checkpoints.load(ranks, said.append))
    assert ranks.loaded == ([step] if step else [])
    return step, "\n".join(said)


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


@pytest.mark.parametrize(("name", "rank"), [(NAMES[0], 0), (NAMES[1].format(11), 11), (NAMES[2].format(1), 1)])
def test_a_file_is_its_ranks(name: str, rank: int) -> None:
    assert owner(name) == rank


def test_a_ranks_files_and_their_folders_are_synced_before_they_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a disk keeps after the power failed no test can see: here, that the kernel was asked to write each."""
    (place := tmp_path / "step-000008").mkdir()
    for name in (name.format(rank) for name in NAMES for rank in (0, 1)):
        (place / name).write_bytes(b"weights")
    synced, fsync = list[Path](), os.fsync

    def record(file: int) -> None:
        fsync(file)
        synced.append(Path(os.readlink(f"/proc/self/fd/{file}")))

    monkeypatch.setattr(os, "fsync", record)
    for rank, files in ((0, {name.format(0) for name in NAMES}), (1, {name.format(1) for name in NAMES[1:]})):
        synced.clear()
        assert {file.name for file in seal(place, rank)} == files
        assert set(synced) == {*(place / name for name in files), place, tmp_path}
        assert set(synced[-2:]) == {place, tmp_path}, "a folder is synced once its files are"


def test_a_checkpoint_has_every_ranks_files_with_size_and_checksum(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 8)
    (found,) = checkpoints.complete()
    assert found.files is not None
    assert sorted(file.name for file in found.files) == sorted(
        path.name for path in found.folder.iterdir() if path.name != "complete.json"
    )
    assert len(found.files) == 5 and (tmp_path / "latest").read_text() == "step-000008"
    assert json.loads((found.folder / "complete.json").read_text())["step"] == 8


@pytest.mark.parametrize("dies", [0, 1])
def test_a_rank_that_dies_in_a_save_leaves_the_checkpoint_before(tmp_path: Path, dies: int) -> None:
    checkpoints = save(tmp_path, 8)
    with pytest.raises(RuntimeError, match=f"saving a checkpoint: learner rank {dies} died"):
        save(tmp_path, 16, ranks=Ranks(dies=dies))
    assert steps_in(tmp_path) == [8] and load(checkpoints) == (8, "")


def test_a_driver_that_is_killed_in_a_save_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """Nothing is removed then: what the ranks had written stands without a complete.json, until the next one."""
    checkpoints = save(tmp_path, 8)
    with pytest.raises(Killed):
        save(tmp_path, 16, ranks=Ranks(dies=1, killed=True))
    assert steps_in(tmp_path) == [8, 16] and load(checkpoints) == (8, "")
    save(tmp_path, 12)
    assert steps_in(tmp_path) == [8, 12] and load(checkpoints) == (12, "")


@pytest.mark.parametrize("dies", [0, 1])
@pytest.mark.parametrize("before", [8, 0])
def test_one_that_is_written_again_is_none_until_it_is_whole(tmp_path: Path, before: int, dies: int) -> None:
    """As where the newest was damaged, and the run has learned its step again."""
    checkpoints = save(tmp_path, *[before] * bool(before), 16)
    with pytest.raises(Killed):
        save(tmp_path, 16, ranks=Ranks(dies=dies, killed=True))
    assert load(checkpoints) == (before, "")
    if before:
        assert checkpoints.sound() == checkpoints.place(8)
    else:
        with pytest.raises(ValueError, match="found no checkpoint, expected one"):
            checkpoints.sound()


def test_what_this_run_has_saved_it_does_not_save_again(tmp_path: Path) -> None:
    ranks, checkpoints = Ranks(), Checkpoints(tmp_path)
    for step in (8, 8, 16, 16):
        asyncio.run(checkpoints.save(ranks, step, keep=2))  # type: ignore[arg-type]
    assert ranks.saved == [8, 16] and load(checkpoints) == (16, "")


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("how", ["cut", "bit", "gone", "empty"])
def test_the_newest_that_is_whole_is_loaded_and_the_other_is_named(tmp_path: Path, how: str, place: int) -> None:
    checkpoints = save(tmp_path, 8, 16)
    newest = checkpoints.complete()[0]
    assert newest.files is not None
    path = newest.folder / newest.files[place].name
    content = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    else:
        content[1234] ^= 4
        path.write_bytes({"cut": content[:2999], "bit": content, "empty": b""}[how])
    step, said = load(checkpoints)
    assert step == 8 and said.startswith(f"checkpoint at step 16 is passed over: {path}: ")
    assert "expected" in said and "\n" not in said
    assert checkpoints.sound() == checkpoints.place(8)


def test_a_file_that_no_rank_wrote_is_not_read(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 8, 16)
    (checkpoints.place(16) / ".nfs00000000012").write_bytes(b"of a file that was open when it was removed")
    assert load(checkpoints) == (16, "")
    more = checkpoints.place(16) / "zero_pp_rank_7_mp_rank_00_optim_states.pt"
    more.write_bytes(b"more")
    said = f"checkpoint at step 16 is passed over: {more}: found a file that complete.json does not name"
    assert load(checkpoints) == (8, f"{said}, expected those alone")
    assert checkpoints.sound() == checkpoints.place(8)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"files": [{}]}', b'{"files": []}', b"\xff\x00"])
def test_a_damaged_complete_json_is_no_complete_one(tmp_path: Path, content: bytes) -> None:
    checkpoints = save(tmp_path, 8, 16)
    (checkpoints.place(16) / "complete.json").write_bytes(content)
    assert load(checkpoints) == (8, "")


@pytest.mark.parametrize("latest", ["", "step-000099", "\x00", None])
def test_latest_is_not_believed(tmp_path: Path, latest: str | None) -> None:
    checkpoints = save(tmp_path, 8, 16)
    (tmp_path / "latest").unlink()
    if latest is not None:
        (tmp_path / "latest").write_text(latest)
    assert load(checkpoints) == (16, "")


def test_where_none_is_whole_nothing_is_loaded(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 8)
    assert load(Checkpoints(tmp_path / "none")) == (0, "")
    (checkpoints.place(8) / NAMES[0]).unlink()
    assert load(checkpoints)[0] == 0
    with pytest.raises(ValueError, match=r"found no checkpoint \(.*mp_rank_00_model_states.pt: found no such file"):
        checkpoints.sound()


def test_one_of_an_older_version_is_the_one_that_latest_names(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 8, 16)
    for step in (8, 16):
        (checkpoints.place(step) / "complete.json").unlink()
    (tmp_path / "latest").write_text("step-000008\n")
    assert load(checkpoints) == (8, "")
    with pytest.raises(Killed):
        save(tmp_path, 24, ranks=Ranks(dies=1, killed=True))
    assert load(checkpoints) == (8, "")
    with pytest.raises(Killed):
        save(tmp_path, 8, ranks=Ranks(dies=1, killed=True))
    assert load(checkpoints) == (0, "")


@pytest.mark.parametrize(("keep", "left"), [(1, [12]), (2, [8, 12]), (9, [4, 8, 12]), (0, [4, 8, 12])])
def test_the_newest_are_kept(tmp_path: Path, keep: int, left: list[int]) -> None:
    save(tmp_path, 4, 8, 12, keep=keep)
    assert steps_in(tmp_path) == left


def test_what_is_of_a_later_step_that_is_learned_anew_goes(tmp_path: Path) -> None:
    """The one at 16 was damaged: the run went on from 8, and has another step 16 to come."""
    checkpoints = save(tmp_path, 8, 16)
    (checkpoints.place(16) / NAMES[0]).write_bytes(b"")
    save(tmp_path, 12)
    assert steps_in(tmp_path) == [8, 12]


def test_room_is_looked_for_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(Ranks):
        async def checkpoint_bytes(self) -> int:
            return shutil.disk_usage(tmp_path).total + (1 << 30)

    with pytest.raises(OSError, match=r"GiB free, expected .* for a checkpoint$"):
        save(tmp_path, 8, ranks=Large())
    assert steps_in(tmp_path) == []


def resumed_with(folder: RunDir, resumed: Resumed, digest: str) -> list[str]:
    said: list[str] = []
    require_same_weights(resumed, digest, folder, said.append)
    return said


def test_what_is_pushed_first_is_what_was_pushed_then(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    for step in range(3):
        append_step(folder.metrics, a_step(step))
    digest = a_step(2).weights_digest
    assert digest and resumed_with(folder, Resumed(3, 3), digest) == []
    assert resumed_with(folder, Resumed(0, 0), "other") == [] == resumed_with(folder, Resumed(9, 9), "other")
    with pytest.raises(RuntimeError, match=r"^weights at step 3: found the digest other, expected .*: the checkpoint"):
        resumed_with(folder, Resumed(3, 3), "other")
    assert "weights at step 3: found the digest other" in resumed_with(folder, Resumed(3, 2), "other")[0]
