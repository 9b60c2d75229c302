"""RUN/: one folder a run, which belongs to one resolved recipe."""

import json
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path

from cluster.config import Recipe, dump, located
from cluster.models import hub_id, is_hub_id, pinned
from cluster.resolved import difference, of_today, read_resolved
from cluster.run.inputs import Pins, read_pins
from cluster.run.lock import LOCK, OWNER, FolderLock
from evidence.files import write_whole
from evidence.lines import from_json
from evidence.patience import REMOVAL_S, Hung, bounded


class RunDir:
    """Paths of a run directory. `claim` makes it this recipe's, or refuses."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.toml"
        self.shards = root / "shards"
        self.student = root / "student"
        self.inputs = root / "inputs.json"  # what it was begun with, by content
        self.manifest = root / "manifest.jsonl"
        self.checkpoints = root / "checkpoints"
        self.teacher = root / "teacher.json"  # what a frozen one said of a fixed text at first
        self.chosen = root / "chosen"  # the weights to end with as a checkpoint, where `export.choose` made other ones
        self.metrics = root / "metrics.jsonl"
        self.probes = root / "probes.jsonl"
        self.gap = root / "gap.json"
        self.memory = root / "memory.jsonl"  # what each start gave engines and learner of the machine's memory
        self.answers = root / "answers"
        self.export = root / "export"
        self.ended = root / "ended.json"  # what the run's end left in the export
        self._lock = FolderLock(root)

    @property
    def has_begun(self) -> bool:
        """Whether there is something of a run to lose, or to continue."""
        return any(path.exists() for path in (self.manifest, self.probes, self.metrics))

    def has_ended(self) -> bool:
        """Whether the run came to its end, and the model that it left is still in its export."""
        try:
            return bool(from_json(self.ended.read_bytes())["export"] == self._exported())
        except (OSError, ValueError, KeyError, TypeError):  # none, or a damaged one
            return False

    def note_end(self) -> None:
        """The run's model is in its export, with its card. Weights of another size or time are another model's, such as
        those that `edge-opd export` writes."""
        write_whole(self.ended, json.dumps({"format": 1, "export": self._exported()}) + "\n")

    def _exported(self) -> dict[str, list[int]]:
        weights = (path for path in self.export.iterdir() if path.suffix == ".safetensors")
        return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(weights)}

    def claim(self, recipe: Recipe, resume: bool) -> None:
        """Creates the folder with the resolved recipe, or checks that it belongs to the same one, and holds it for this
        process.

        Raises:
            ValueError: it belongs to another recipe, holds a run and `resume` was not given, or holds none and it was,
                or another process has a run under way in it.
        """
        if not self.config.exists():
            self._check(recipe, resume)  # first, so that nothing is left in a folder that is no run
        self.hold()
        if self._check(recipe, resume):
            return
        write_whole(self.config, dump(recipe))
        for folder in (self.shards, self.student, self.checkpoints, self.answers):
            folder.mkdir(exist_ok=True)

    def hold(self) -> None:
        """Keeps other processes' runs out, for as long as this object is there. ValueError names who has the folder."""
        self.root.mkdir(parents=True, exist_ok=True)
        self._lock.take()

    def release(self) -> None:
        """Another process may hold it; where its disk hangs, once this process has ended."""
        with suppress(Hung):
            bounded(self.root, self._lock.release, REMOVAL_S)

    def _check(self, recipe: Recipe, resume: bool) -> bool:
        """Whether it is this recipe's run already."""
        if self.config.exists() and (self.has_begun or resume):
            self.check_same(recipe)
            if not resume and self.metrics.exists():
                raise ValueError(f"{self.root}: found a run of this recipe, expected --resume or another --run-dir")
            return True
        if resume:
            raise ValueError(f"{self.root}: found no config.toml, expected a run to resume")
        if not self.config.exists() and self._is_taken():
            raise ValueError(f"{self.root}: found something that is not a run, expected an empty or a new one")
        return False

    def _is_taken(self) -> bool:
        if not self.root.is_dir():
            return self.root.exists()
        half = f".{self.config.name}."  # what a start that was killed may have left
        return any(path.name not in (LOCK, OWNER) and not path.name.startswith(half) for path in self.root.iterdir())

    def check_same(self, recipe: Recipe) -> None:
        """ValueError, naming the key, when the folder's recipe is not this one. One without a date is of any day."""
        theirs = settled(located(of_today(read_resolved(self.root).recipe)), self)  # older runs keep relative paths
        recipe = settled(recipe, self)
        differs = difference(theirs, recipe)
        if differs is None:
            return
        table, key = differs
        old, new = (asdict(one)[table].get(key) for one in (theirs, recipe))
        raise ValueError(
            f"{self.config}: {table}.{key}: found {old!r}, expected {new!r}: the run belongs to another recipe"
        )

    def answers_of(self, step: int) -> Path:
        """The file with the answers of the probe at `step`."""
        return self.answers / f"step-{step:06d}.jsonl"


def settled(recipe: Recipe, folder: RunDir) -> Recipe:
    """The recipe with what its run's first start settles, which are those of the recipe in the folder, where there is
    one: the date, and the commit of each model of the hub. A run that is older than run.date keeps the machine's own
    clock.

    Raises:
        ValueError: the folder has a run whose config.toml is no recipe, or the hub has no such model.
    """
    begun = _begun(folder)
    day = recipe.run.date or (date.today().isoformat() if begun is None else begun.run.date)
    pins = read_pins(folder.inputs) if begun is not None and folder.inputs.is_file() else {}
    model, teacher = ("", "") if begun is None else (begun.model.path, begun.teacher.path)
    return replace(
        recipe,
        run=replace(recipe.run, date=day),
        model=replace(recipe.model, path=_settled(recipe.model.path, model, "model.path", pins)),
        teacher=replace(recipe.teacher, path=_settled(recipe.teacher.path, teacher, "teacher.path", pins)),
    )


def _begun(folder: RunDir) -> Recipe | None:
    """The recipe in the folder. Half a one is none where no run has begun: a start of an older version was cut."""
    if not folder.config.exists() or not (folder.has_begun or folder.config.stat().st_size):
        return None
    try:
        return read_resolved(folder.root).recipe
    except ValueError:
        if folder.has_begun:
            raise
        return None


def _settled(path: str, begun: str, key: str, pins: Pins) -> str:
    """begun: what the run has in its place. pins: of a run that is older than commits in a recipe."""
    if not path or not is_hub_id(path):
        return path
    asked = hub_id(path, key)
    if is_hub_id(begun):
        of_run = hub_id(begun, key)
        if of_run.asked == asked and (commit := of_run.commit or pins.get(f"{key}: {asked.name}", "")):
            return str(replace(asked, commit=commit))
    return pinned(path, key)


def run_folder(recipe: Recipe, given: str | None) -> Path:
    """RUN: as given, or runs/NAME."""
    return Path(given) if given else Path("runs") / (recipe.run.name or "run")
