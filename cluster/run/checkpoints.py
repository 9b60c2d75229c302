"""RUN/checkpoints, which the driver owns: `step-NNNNNN` with the files of all ranks, and `latest`.

A checkpoint is one once its folder has `complete.json`: the driver writes it when every rank has reported its files,
which then are on the disk. `latest` names the newest for people and scripts; nothing here believes it where a
complete.json says more. Where no folder has one, an older version wrote them, and the one that `latest` names is taken
as it is.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evidence.files import write_whole
from evidence.lines import from_json
from evidence.patience import remove_beside, retried_beside
from learner.sealed import SealedFile, faults, size_fault

if TYPE_CHECKING:  # which needs Ray, where `edge-opd export` does without
    from cluster.fleet.services import LearnerService

COMPLETE, LATEST = "complete.json", "latest"
GIB = 1 << 30
PRUNE_S = 10.0  # for which the removal of an old one is tried again; the next save tries it too


@dataclass(frozen=True)
class Checkpoint:
    """One that is complete. files: None where an older version wrote it, which did not say."""

    step: int
    folder: Path
    files: tuple[SealedFile, ...] | None

    @property
    def fault(self) -> str:
        """What is wrong with it at a glance; empty where nothing is."""
        if self.files is None:
            return ""
        named = {COMPLETE, *(file.name for file in self.files)}
        there = self.folder.glob("[!.]*")  # a hidden file no loader reads, and a network's file system may leave one
        more = sorted(path for path in there if path.is_file() and path.name not in named)
        sizes = [size_fault(self.folder / file.name, file) for file in self.files]
        unsealed = [f"{path}: found a file that {COMPLETE} does not name, expected those alone" for path in more]
        return next(filter(None, [*sizes, *unsealed]), "")


class Checkpoints:
    """Those of one run. patience_s: seconds for which a disk is tried again that is full or refuses. say: is told of
    what cannot be removed."""

    def __init__(self, folder: Path, patience_s: float = 0.0, say: Callable[[str], None] = print) -> None:
        self.folder, self._patience_s, self._say = folder, patience_s, say
        self._saved: int | None = None  # the step of the last one that this object has written

    def place(self, step: int) -> Path:
        """The folder of the checkpoint at `step`."""
        return self.folder / f"step-{step:06d}"

    def complete(self) -> list[Checkpoint]:
        """The newest first."""
        folders = [one for one in self.folder.glob("step-*") if one.name.removeprefix("step-").isdecimal()]
        if not any((folder / COMPLETE).is_file() for folder in folders):
            return [Checkpoint(_step(one), one, None) for one in folders if one.name == self._latest()]
        found = [(_step(folder), folder, _files(folder / COMPLETE)) for folder in sorted(folders, reverse=True)]
        return [Checkpoint(*one) for one in found if one[-1]]

    def _latest(self) -> str:
        path = self.folder / LATEST
        return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""

    def sound(self) -> Path:
        """The folder of the newest one whose files are what they were, as this process alone finds.

        Raises:
            ValueError: there is none; names what is wrong with the newest.
        """
        wrong = []
        for found in self.complete():
            if not (some := [found.fault] if found.fault else faults(found.folder, found.files or ())):
                return found.folder
            wrong += some
        damaged = f" ({wrong[0]})" if wrong else ""
        raise ValueError(f"{self.folder}: found no checkpoint{damaged}, expected one that can be exported")

    async def save(self, learner: "LearnerService", step: int, keep: int) -> None:
        """The learner's weights at `step` as the newest checkpoint; of those before, `keep` - 1 stay (0: all). One that
        this object has written is not written again.

        Raises:
            RuntimeError, OSError: it could not be written; nothing of it is left, and those before are as they were.
        """
        if step == self._saved:
            return
        needed = await learner.checkpoint_bytes()
        place = self.place(step)
        await retried_beside(self._patience_s, self.folder, lambda: self.require_room(needed))
        await retried_beside(self._patience_s, place, lambda: self._make_way(step))
        try:
            files = await learner.save(self.folder, step)
            await retried_beside(self._patience_s, place / COMPLETE, lambda: self.commit(step, files))
        except (RuntimeError, OSError):
            await remove_beside(place)
            raise
        self._saved = step
        try:
            await retried_beside(min(self._patience_s, PRUNE_S), self.folder, lambda: self.prune(step, keep))
        except OSError as error:  # the next save tries again
            self._say(f"an older checkpoint could not be removed: {error}")

    async def load(self, learner: "LearnerService", say: Callable[[str], None]) -> int:
        """Every rank loads the newest one whose files are what they were. Returns its step; 0 where there is none.

        say: is told of each that is passed over, and why.
        """
        for found in await retried_beside(self._patience_s, self.folder, self.complete):
            wrong = [found.fault] if found.fault else await learner.verify(found.folder, found.files or ())
            if not wrong:
                await learner.load(self.folder, found.step)
                return found.step
            say(f"checkpoint at step {found.step} is passed over: {wrong[0]}")
        return 0

    def require_room(self, needed: int) -> None:
        """OSError when the disk has less than `needed` bytes left."""
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(
                f"{self.folder}: found {free / GIB:.2f} GiB free, expected {needed / GIB:.2f} for a checkpoint"
            )

    def _make_way(self, step: int) -> None:
        """What there is at `step`, of an attempt before and perhaps of more ranks, is no checkpoint any more."""
        if self._latest() == self.place(step).name:
            (self.folder / LATEST).unlink()
        shutil.rmtree(self.place(step), ignore_errors=True)

    def commit(self, step: int, files: Sequence[SealedFile]) -> None:
        """All files of the one at `step` are on the disk: it is the newest."""
        content = {"format": 1, "step": step, "files": [asdict(file) for file in files]}
        write_whole(self.place(step) / COMPLETE, json.dumps(content, indent=1) + "\n")
        write_whole(self.folder / LATEST, self.place(step).name)

    def prune(self, newest: int, keep: int) -> None:
        """Removes what is not among the last `keep` complete ones up to step `newest`, the one just written: older
        ones, attempts, and what is of a later step that is learned anew. keep: 0 removes nothing.
        """
        if not keep:
            return
        kept = {found.folder for found in [one for one in self.complete() if one.step <= newest][:keep]}
        for folder in self.folder.glob("step-*"):
            if folder not in kept:
                shutil.rmtree(folder)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _files(path: Path) -> tuple[SealedFile, ...]:
    """Those that a complete.json names; none where it is missing or damaged."""
    try:
        return tuple(SealedFile(**file) for file in from_json(path.read_bytes())["files"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return ()
