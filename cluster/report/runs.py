"""A run directory as a report reads it: recipe, probes and diagnostics, from its files alone."""

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.config import Recipe
from cluster.report.arms import DECIDING
from cluster.report.numbers import Source
from cluster.resolved import ADDED, Key, read_resolved
from cluster.run.record import Answer, ProbeRecord, StepRecord, read_answers, read_probes, read_steps
from evidence.lines import from_json
from evidence.manifest import Manifest
from evidence.schema import shard_metadata
from evidence.shards import Elsewhere, read_shard, shard_of

Part = tuple[float, int, Source]

BASE_ANSWERS, SHARD = "answers/step-000000.jsonl", "shard.json"
RECORD = ("config.toml", "probes.jsonl", "metrics.jsonl", BASE_ANSWERS)  # the files of a run that a report reads


@dataclass(frozen=True)
class Run:
    """One run directory. `probes` and `steps` map a step to its line: k updates made before it."""

    name: str  # the directory's name; with its parents' where two runs share it
    recipe: Recipe
    stated: tuple[Key, ...]  # of its recipe, what its config.toml has
    probes: Mapping[int, ProbeRecord]
    steps: Mapping[int, StepRecord]
    base_answers: tuple[Answer, ...]  # of the probe at step 0; empty when they are not there
    shard: Mapping[str, str]  # metadata of its first shard; empty when it is not there
    record: Mapping[str, str]  # path -> text: all that is known of it, a run directory that reads as this run

    @property
    def seed(self) -> int:
        """run.seed."""
        return self.recipe.run.seed

    @property
    def planned(self) -> int:
        """run.steps."""
        return self.recipe.run.steps

    @property
    def learned(self) -> int:
        """Steps that were learned."""
        return max(self.steps, default=-1) + 1

    @property
    def finished(self) -> bool:
        """Whether the probe of the weights that it ends with is there."""
        return any(probe.ends(self.planned) for probe in self.probes.values())

    @property
    def status(self) -> str:
        """finished, or how far it came."""
        if any(probe.is_early(self.planned) for probe in self.probes.values()):
            return f"finished (level at step {self.learned} of {self.planned})"
        return "finished" if self.finished else f"unfinished (step {self.learned} of {self.planned})"

    def rate(self, name: str, step: int) -> tuple[int, int, Source] | None:
        """(successes, answers, source) of one probe; None where that probe or rate is missing."""
        found = self.probes[step].rates.get(name) if step in self.probes else None
        return None if found is None else (found.k, found.n, Source(self.name, "probes.jsonl", step))

    def diagnostic(self, name: str, split: str, step: int) -> Part | None:
        """(mean, what it is a mean of, source) of one step's diagnostics; None where it is missing or of nothing."""
        found = self.steps[step].mean(name, split) if step in self.steps else None
        return None if found is None else (found.value, found.bound, Source(self.name, "metrics.jsonl", step))


def read_runs(folders: Sequence[Path], follow: bool = False) -> list[Run]:
    """The runs of these directories, in the order given. follow: with what their first shards say, wherever they are.

    Raises:
        ValueError: a folder that is not a run, a run without probes, a malformed file, or a folder given twice.
    """
    resolved = [folder.resolve() for folder in folders]
    for folder in resolved:
        if resolved.count(folder) > 1:
            raise ValueError(f"{folder}: found this run twice, expected it once")
    return [_read_run(folder, name, follow) for folder, name in zip(resolved, _names(resolved), strict=True)]


def _names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, or as many parts as tell all of them apart."""
    for depth in range(1, max((len(folder.parts) for folder in folders), default=0) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names if folders else []


def _read_run(folder: Path, name: str, follow: bool) -> Run:
    resolved, shard = read_resolved(folder), _shard_metadata(folder, follow)
    _check_whole(folder, resolved.stated)
    probes = read_probes(folder / "probes.jsonl")
    if not probes:
        raise ValueError(f"{folder}: found no probes in probes.jsonl, expected at least one")
    return Run(
        name=name,
        recipe=resolved.recipe,
        stated=resolved.stated,
        probes=probes,
        steps=read_steps(folder / "metrics.jsonl"),
        base_answers=tuple(read_answers(folder / BASE_ANSWERS)),
        shard=shard,
        record={name: (folder / name).read_text(encoding="utf-8") for name in RECORD if (folder / name).is_file()}
        | {SHARD: json.dumps(shard, indent=1) + "\n"},
    )


def _check_whole(folder: Path, stated: Collection[Key]) -> None:
    """Keys that every run has had: a file without one of them is no resolved recipe, whatever else it is."""
    for table, key in sorted({*DECIDING, ("run", "seed"), ("run", "steps")} - ADDED.keys()):
        if (table, key) not in stated:
            raise ValueError(f"{folder / 'config.toml'}: {table}.{key}: found nothing, expected a resolved recipe")


def _shard_metadata(folder: Path, follow: bool) -> dict[str, str]:
    """What the first shard says of model and code, or a report's record of it. A run whose shards were deleted, or are
    elsewhere, can still be reported."""
    file = folder / SHARD
    if file.is_file():
        try:
            return dict(from_json(file.read_bytes()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file}: found no metadata of a shard ({error}), expected what a report wrote") from None
    for info in list(Manifest(folder / "manifest.jsonl").written().values())[:1]:
        with suppress(OSError, Elsewhere):
            found = shard_metadata(read_shard(shard_of(folder, info, follow)))
            return found | {"model_id": model_name(found["model_id"])}
    return {}


def model_name(model_id: str) -> str:
    """A hub id as it is; of a local folder its last part, since the rest is about a machine."""
    return model_id.rstrip("/").rsplit("/", 1)[-1] if model_id.startswith(("/", ".", "~")) else model_id
