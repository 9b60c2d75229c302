"""`edge-opd sweep`: a recipe with some of its settings varied, and a table over all of the runs.

A sweep is a TOML file. Each combination of what it varies, with each seed, is a run of its own, in a process of its
own, under one folder. A finished run is kept, so that the command goes on where it was stopped.
"""

import itertools
import tomllib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cluster.commands.reproduce import is_finished, run_process
from cluster.config import Recipe, load_recipe
from cluster.errors import printable
from cluster.observe.sinks import probe_line
from cluster.report.sweep import write_summary
from cluster.run.record import read_probes
from cluster.run.rundir import RunDir

Settings = tuple[str, ...]  # each TABLE.KEY=VALUE, as `--set` takes it
Run = Callable[[list[str], Path], int]  # of `edge-opd`: from its arguments and a log to the exit status
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

    def cells(self) -> dict[str, Settings]:
        """The settings of each combination, by its name such as `robin-system`."""
        combined = itertools.product(*(values.items() for values in self.vary.values()))
        return {
            "-".join(name for name, _ in one) or "all": (*self.settings, *(part for _, own in one for part in own))
            for one in combined
        }


def load_sweep(path: Path) -> Sweep:
    """ValueError: the file, the key, what was found and what was expected; every run's recipe is built once."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
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
    for name, own in sweep.cells().items():
        _recipe(sweep, name, own, 0)
    return sweep


def print_sweep(path: Path, folder: str | None, jobs: int, overrides: Sequence[str]) -> int:
    """Runs the sweep of a file, by default in runs/NAME, and prints its table; the exit status."""
    out = run_sweep(
        load_sweep(path), Path(folder or f"runs/{path.stem}"), jobs, overrides,
        lambda arguments, log: run_process(arguments, log=log), lambda line: print(line, flush=True),
    )  # fmt: skip
    print(f"\n{out.read_text(encoding='utf-8')}\n{out}")
    return 0


def _require(holds: object, path: Path, key: str, found: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{path}: {key + ': ' if key else ''}found {found!r}, expected {expected}")


def _settings(path: Path, key: str, found: object) -> Settings:
    whole = isinstance(found, list) and all(isinstance(part, str) and "=" in part for part in found)
    _require(whole, path, key, found, 'a list of settings, each "table.key=value"')
    return tuple(found)  # type: ignore[arg-type]


def _recipe(sweep: Sweep, name: str, settings: Settings, seed: int) -> Recipe:
    try:
        return load_recipe(sweep.recipe, [*settings, f"run.seed={seed}"])
    except ValueError as error:
        raise ValueError(f"{sweep.path}: {name}: {error}") from None


def run_sweep(
    sweep: Sweep, folder: Path, jobs: int, overrides: Sequence[str], run: Run, say: Callable[[str], None]
) -> Path:
    """Runs what is missing, `jobs` at a time, seed by seed, each with its log in `folder`; returns the table's file.

    Raises:
        ValueError: no job, or a folder that holds another recipe's run.
        RuntimeError: names the runs that failed, and the first one's log. The others are finished, and in the table.
    """
    if jobs < 1:
        raise ValueError(f"--jobs: found {jobs}, expected at least 1")
    cells = {name: (*settings, *overrides) for name, settings in sweep.cells().items()}
    places = {(name, seed): RunDir(folder / f"{name}-seed{seed}") for seed in sweep.seeds for name in cells}
    recipes = {(name, seed): _recipe(sweep, name, cells[name], seed) for name, seed in places}
    missing = [key for key, place in places.items() if not is_finished(place, recipes[key])]
    folder.mkdir(parents=True, exist_ok=True)

    def one(key: tuple[str, int]) -> bool:
        (name, seed), place = key, places[key]
        log = folder / f"{place.root.name}.log"
        asked = [part for setting in (*cells[name], f"run.seed={seed}") for part in ("--set", setting)]
        run(["run", str(sweep.recipe), "--run-dir", str(place.root), "--resume=auto", *asked], log)
        done = is_finished(place, recipes[key])
        said = probe_line(read_probes(place.probes)[recipes[key].run.steps]) if done else f"failed, see {log}"
        say(printable(f"{place.root.name}: {said}"))
        return done

    with ThreadPoolExecutor(jobs) as pool:
        done = dict(zip(missing, pool.map(one, missing), strict=True))
    finished = {key: place for key, place in places.items() if done.get(key, True)}
    out = write_summary(folder, finished)
    if failed := [places[key].root.name for key, is_done in done.items() if not is_done]:
        raise RuntimeError(
            f"sweep: {len(failed)} of {len(places)} runs failed: {', '.join(failed)}; see {folder / failed[0]}.log"
        )
    return out
