"""`edge-opd sweep`: a recipe with some of its settings varied, and a table over all of the runs.

A sweep is a TOML file. Each combination of what it varies, with each seed, is a run of its own, in a process of its
own, under one folder. A finished run is kept, so that the command goes on where it was stopped.
"""

import itertools
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

from cluster.commands.reproduce import Told, arguments_of, is_finished, run_process
from cluster.config import Recipe, load_recipe
from cluster.errors import EXPECTED, PREEMPTED, Preempted, printable
from cluster.observe.sinks import probe_line
from cluster.report.sweep import Key, Whole, write_summary
from cluster.run.gap import required
from cluster.run.record import read_gap, read_probes
from cluster.run.rundir import RunDir
from cluster.sizing.cards import DEVICES, SHARED_BY, find_cards, parts_of
from evidence.require import first_line

Settings = tuple[str, ...]  # each TABLE.KEY=VALUE, as `--set` takes it
Cell = tuple[str, ...]  # a value's name of each thing that is varied
# Of `edge-opd`: arguments, its log, `Told.times`, what its environment has besides; its status.
Run = Callable[[list[str], Path, Callable[[], int], Mapping[str, str]], int]
KEYS = {"recipe", "set", "seeds", "vary"}
NAME = "a name of letters, digits, _ and ."


@dataclass(frozen=True)
class Sweep:
    """path, recipe: their files. settings: of every run. vary: by what is varied, the settings of each of its values by
    name."""

    path: Path
    recipe: Path
    settings: Settings
    seeds: tuple[int, ...]
    vary: Mapping[str, Mapping[str, Settings]]

    def cells(self) -> dict[Cell, Settings]:
        """The settings of each combination."""
        combined = itertools.product(*(values.items() for values in self.vary.values()))
        return {
            tuple(name for name, _ in one): (*self.settings, *(part for _, own in one for part in own))
            for one in combined
        }


def name_of(cell: Cell) -> str:
    """Such as `robin-system`."""
    return "-".join(cell) or "all"


def load_sweep(path: Path) -> Sweep:
    """ValueError: the file, the key, what was found and what was expected; every cell's recipe is built once."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: found no such file, expected a sweep in TOML") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: found no sweep ({error}), expected a TOML file") from None
    _require(not (unknown := sorted(table.keys() - KEYS)), path, "", unknown, f"keys of {', '.join(sorted(KEYS))}")
    recipe, seeds, vary = table.get("recipe"), table.get("seeds", [0]), table.get("vary", {})
    _require(isinstance(recipe, str), path, "recipe", recipe, "the path of a recipe, from this file's folder on")
    whole = isinstance(seeds, list) and seeds and all(type(seed) is int and seed >= 0 for seed in seeds)
    _require(whole and len({*seeds}) == len(seeds), path, "seeds", seeds, "a list of different whole numbers")
    _require(isinstance(vary, dict), path, "vary", vary, "tables [vary.WHAT]")
    for what, values in vary.items():
        _require(isinstance(values, dict) and values, path, f"vary.{what}", values, "NAME = [settings]")
        for name in values:
            _require(name.replace("_", "a").replace(".", "a").isalnum(), path, f"vary.{what}", name, NAME)
    settings = {
        what: {name: _settings(path, f"vary.{what}.{name}", own) for name, own in values.items()}
        for what, values in vary.items()
    }
    everywhere = _settings(path, "set", table.get("set", []))
    sweep = Sweep(path, path.parent / str(recipe), everywhere, tuple(seeds), settings)
    _recipes(sweep, ())
    return sweep


def print_sweep(path: Path, folder: str | None, jobs: int, overrides: Sequence[str]) -> int:
    """Runs the sweep of a file, by default in runs/NAME, and prints its table; the exit status."""

    def run(arguments: list[str], log: Path, told: Callable[[], int], environment: Mapping[str, str]) -> int:
        return run_process(arguments, log=log, told=told, environment=environment)

    out = run_sweep(
        load_sweep(path), Path(folder or f"runs/{path.stem}"), jobs, overrides,
        run, lambda line: print(line, flush=True), cards_of(os.environ) if jobs > 1 else (),
    )  # fmt: skip
    print(f"\n{out.read_text(encoding='utf-8')}\n{out}")
    return 0


def _require(holds: object, path: Path, key: str, found: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{path}: {key + ': ' if key else ''}found {found!r}, expected {expected}")


def _settings(path: Path, key: str, found: object) -> Settings:
    whole = isinstance(found, list) and all(isinstance(part, str) and "=" in part for part in found)
    _require(whole, path, key, found, 'a list of settings, each "table.key=value"')
    settings: Settings = tuple(found)  # type: ignore[arg-type]
    _require(not any(_is_seed(part) for part in settings), path, key, found, "seeds in the list `seeds`")
    return settings


def _is_seed(setting: str) -> bool:
    return setting.partition("=")[0].strip() == "run.seed"


def _recipes(sweep: Sweep, overrides: Sequence[str]) -> dict[Cell, Recipe]:
    """Of each cell, with the recipe's own seed. ValueError where two cells are the same run."""
    made: dict[Cell, Recipe] = {}
    for cell, settings in sweep.cells().items():
        try:
            recipe = load_recipe(sweep.recipe, [*settings, *overrides])
        except ValueError as error:
            raise ValueError(f"{sweep.path}: {name_of(cell)}: {error}") from None
        for other, same in made.items():
            if same == recipe:
                raise ValueError(
                    f"{sweep.path}: found the same settings in {name_of(other)} and {name_of(cell)}, expected others"
                )
        made[cell] = recipe
    return made


@dataclass(frozen=True)
class _Place:
    """Where one run of a sweep is, and what it is."""

    folder: RunDir
    recipe: Recipe
    arguments: list[str]

    @property
    def log(self) -> Path:
        return self.folder.root.with_name(f"{self.folder.root.name}.log")

    def is_finished(self) -> bool:
        return is_finished(self.folder, self.recipe)

    def whole(self) -> Whole:
        """What a finished run found."""
        gap = read_gap(self.folder.gap)
        probes = [probe for _, probe in sorted(read_probes(self.folder.probes).items())]
        return Whole(probes, {} if gap is None else gap.teacher, required(self.recipe, gap))

    def line(self) -> str:
        """Of its last probe."""
        whole = self.whole()
        return probe_line(whole.last) + ("" if whole.is_enough else f"  below the {whole.required:.2f} required")


def cards_of(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that runs of this machine may share, as CUDA_VISIBLE_DEVICES has them; on a cluster Ray gives each its
    own."""
    if environment.get("RAY_ADDRESS"):
        return []
    devices = environment.get(DEVICES, "")
    return parts_of(devices) if devices.strip() else [str(card.index) for card in find_cards()]


def dealt(cards: Sequence[str], jobs: int) -> list[dict[str, str]]:
    """What the environment of each of so many runs beside each other has besides: its share of the cards, or one of
    them in turn where there are fewer, and how many runs that one has. A run that is alone has them all."""
    if jobs == 1 or not cards:
        return [{}] * jobs
    each, runs = max(1, len(cards) // jobs), -(-jobs // len(cards))
    shares = ([cards[(job * each + place) % len(cards)] for place in range(each)] for job in range(jobs))
    beside = {SHARED_BY: str(runs)} if runs > 1 else {}
    return [{DEVICES: ",".join(share)} | beside for share in shares]


class _Lanes:
    """Runs beside each other, each with a share of the cards of its own."""

    def __init__(self, shares: Sequence[dict[str, str]], run: Run, say: Callable[[str], None]) -> None:
        self._run, self._say, self._told, self._failed = run, say, Told(), list[_Place]()
        self._num_lanes, self._free = len(shares), SimpleQueue[dict[str, str]]()
        for share in shares:
            self._free.put(share)

    def go(self, places: Sequence[_Place]) -> list[_Place]:
        """Runs them, as many at a time as there are shares; those that failed. None begins once this process was told
        to end."""
        with self._told.heeding(), ThreadPoolExecutor(self._num_lanes) as pool:
            list(pool.map(self._one, places))
        return self._failed

    def _one(self, place: _Place) -> None:
        told, name = self._told.times, place.folder.root.name
        if told():
            return
        share = self._free.get_nowait()  # as many as there are threads
        try:
            status = self._run(place.arguments, place.log, told, share)
            said = place.line() if place.is_finished() else "stopped" if status == PREEMPTED or told() else ""
        except EXPECTED as error:
            said = ""
            self._say(printable(f"{name}: {first_line(error)}"))
        finally:
            self._free.put(share)
        if not said:
            self._failed.append(place)
        self._say(printable(f"{name}: {said or f'failed, see {place.log}'}"))


def run_sweep(
    sweep: Sweep, folder: Path, jobs: int, overrides: Sequence[str], run: Run, say: Callable[[str], None],
    cards: Sequence[str] = (),
) -> Path:  # fmt: skip
    """Runs what is missing, `jobs` at a time, seed by seed, each with its log in `folder`; returns the table's file.

    cards: the GPUs that the runs share.

    Raises:
        ValueError: no job, two cells that are the same run, or a folder that holds another recipe's run.
        RuntimeError: names the runs that failed, and the first one's log. The others are finished, and in the table.
        Preempted: it was told to end, and so were its runs; what is finished is in the table.
    """
    if jobs < 1:
        raise ValueError(f"--jobs: found {jobs}, expected at least 1")
    places = _places(sweep, folder, overrides)
    missing = [place for place in places.values() if not place.is_finished()]
    folder.mkdir(parents=True, exist_ok=True)
    failed = _Lanes(dealt(cards, jobs), run, say).go(missing)
    finished = {key: place.whole() for key, place in places.items() if place not in failed and place.is_finished()}
    out = _write(folder, [*sweep.vary], finished)
    if failed:
        names = ", ".join(place.folder.root.name for place in failed)
        raise RuntimeError(f"sweep: {len(failed)} of {len(places)} runs failed: {names}; see {failed[0].log}")
    if len(finished) < len(places):
        raise Preempted(f"sweep: stopped as asked; {len(finished)} of {len(places)} runs are finished")
    return out


def _write(folder: Path, varied: Sequence[str], finished: Mapping[Key, Whole]) -> Path:
    """The table, whose file is returned, and the picture."""
    from cluster.report.tradeoff import write_tradeoff  # matplotlib takes a second, for which no other command waits

    write_tradeoff(folder, varied, finished)
    return write_summary(folder, varied, finished)


def _places(sweep: Sweep, folder: Path, overrides: Sequence[str]) -> dict[Key, _Place]:
    """Seed by seed, so that a sweep that is stopped early has every cell."""
    if given := [setting for setting in overrides if _is_seed(setting)]:
        raise ValueError(f"--set {given[0]}: found a seed, expected it in the list `seeds` of {sweep.path}")
    cells, recipes = sweep.cells(), _recipes(sweep, overrides)
    places: dict[Key, _Place] = {}
    for seed, (cell, settings) in itertools.product(sweep.seeds, cells.items()):
        place = RunDir(folder / f"{name_of(cell)}-seed{seed}")
        recipe = replace(recipes[cell], run=replace(recipes[cell].run, seed=seed))
        arguments = arguments_of(sweep.recipe, place, [*settings, *overrides, f"run.seed={seed}"])
        places[(cell, seed)] = _Place(place, recipe, arguments)
    return places
