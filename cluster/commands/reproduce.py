"""`edge-opd reproduce`: the arms of the published matrix one after another, and a report of them.

Each arm and seed is a run of its own, in a process of its own, under one folder. A finished run is kept, so the command
goes on where it was stopped.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType, MappingProxyType

from cluster.config import Recipe, load_recipe
from cluster.errors import PREEMPTED, Preempted
from cluster.run.record import read_probes
from cluster.run.rundir import RunDir

RECIPES = Path(__file__).parents[1] / "recipes"

# Arms in the order in which they tell most: a reproduction that is stopped early has the contrasts first.
AXES: dict[str, tuple[str, ...]] = {
    "identity": (
        "N3", "N1", "N12", "N2", "N11", "N4g", "N7", "N3u", "N4", "N2u", "N3u-g100", "N3u-g0125", "N7u",
    ),
    "arithmetic": tuple(f"{arm}-arithmetic" for arm in ("N6", "N9", "N13", "N14", "N10", "N15")),
    "facts": tuple(f"{arm}-facts" for arm in ("N3", "N1", "N2", "N11")),
}  # fmt: skip

Run = Callable[[list[str]], int]
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# For which a run may write nothing: it starts engines, samples a step, takes one, within the deadlines of its recipe,
# and has a sample of itself every few seconds in between. So long may also a report take.
SILENT_S = 3600.0
LOOK_S = 2.0


def reproduce(axes: Sequence[str], seeds: int, folder: Path, overrides: Sequence[str], run: Run) -> list[Path]:
    """Runs what is missing of `axes` times `seeds`; returns every run's folder, seed by seed.

    `run` takes the arguments of `edge-opd` and returns its exit code.

    Raises:
        ValueError: an unknown axis, no seed, or a folder that holds another recipe's run.
        RuntimeError: a run failed; names it. What was finished stays.
        Preempted: it was told to end, and so was the run under way.
    """
    unknown = [axis for axis in axes if axis not in AXES]
    if unknown:
        raise ValueError(f"--axis: found {unknown[0]!r}, expected one of {', '.join(AXES)}")
    if seeds < 1:
        raise ValueError(f"--seeds: found {seeds}, expected at least 1")
    places = [(arm, seed) for seed in range(seeds) for axis in axes for arm in AXES[axis]]
    return [ensure(arm, seed, folder, overrides, run) for arm, seed in places]


def print_reproduction(axes: Sequence[str], seeds: int, folder: Path, overrides: Sequence[str]) -> int:
    """`reproduce` with runs in processes of their own, which are told to end as often as this one; then the report."""
    told = Told()

    def run(arguments: list[str]) -> int:
        if told.times():
            return PREEMPTED
        status = run_process(arguments, told=told.times)
        return PREEMPTED if status != 0 and told.times() else status

    with told.heeding():
        runs = reproduce(axes, seeds, folder, overrides, run)
    return run_process(["report", "--follow", *map(str, runs), "--out", str(folder / "report")])


class Told:
    """How often this process was told to end: its runs are told as often, and no other begins."""

    def __init__(self) -> None:
        self._times = 0

    def times(self) -> int:
        return self._times

    @contextmanager
    def heeding(self) -> Iterator[None]:
        """Within it the signals that end a process are counted, but for one that whoever started it has it ignore, as
        nohup does. For a process's main thread."""

        def hear(number: int, frame: FrameType | None) -> None:
            self._times += 1

        heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, hear) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def ensure(arm: str, seed: int, folder: Path, overrides: Sequence[str], run: Run) -> Path:
    """The folder of one arm's finished run, which is made when it is not there. An interrupted run goes on from its
    checkpoint and its shards; one that is under way is left alone, and its process is named."""
    path, settings = RECIPES / f"{arm}.toml", [*overrides, f"run.seed={seed}"]
    place = RunDir(folder / f"{arm}-seed{seed}")
    if is_finished(place, load_recipe(path, settings)):
        return place.root
    code = run(arguments_of(path, place, settings))
    if code == PREEMPTED:
        raise Preempted(f"reproduce: stopped as asked: the same command continues {place.root}")
    if code != 0:
        raise RuntimeError(f"reproduce: {place.root}: the run ended with exit code {code}, expected 0")
    return place.root


def arguments_of(recipe: Path, place: RunDir, settings: Sequence[str]) -> list[str]:
    """Of `edge-opd`: the recipe with these settings in that folder, begun or gone on with."""
    changed = [part for setting in settings for part in ("--set", setting)]
    return ["run", str(recipe), "--run-dir", str(place.root), "--resume=auto", *changed]


def is_finished(place: RunDir, recipe: Recipe) -> bool:
    """Whether the folder holds this recipe's run, to its last probe and its model card.

    Raises:
        ValueError: the folder belongs to another recipe.
    """
    if not place.config.exists():
        return False
    place.check_same(recipe)
    ended = any(probe.ends(recipe.run.steps) for probe in read_probes(place.probes).values())
    return ended and (place.export / "README.md").is_file()


def run_process(
    arguments: list[str],
    silent_s: float = SILENT_S,
    command: Sequence[str] = (sys.executable, "-m", "cluster"),
    log: Path | None = None,
    told: Callable[[], int] | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """`edge-opd` with these arguments, in a process of its own whose output is this one's, or is added to a file. told:
    how often it is to be told to end by now, by SIGTERM; it is out of reach of the terminal then. environment: what it
    has besides this one's.

    Raises:
        RuntimeError: it has written nothing to its run's folder for `silent_s`, or of another command has not ended by
            then: it was stopped, or a disk hangs. It is ended.
    """
    folder = Path(arguments[arguments.index("--run-dir") + 1]) if "--run-dir" in arguments else None
    with log.open("ab") if log else nullcontext() as out:
        process = subprocess.Popen(
            [*command, *arguments],
            stdout=out,
            stderr=out,
            start_new_session=told is not None,
            env={**os.environ, **environment},
        )
    silence, passed_on = _Silence(folder), 0
    while silence.seconds() <= silent_s:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(min(LOOK_S, silent_s))
        if told is not None and passed_on < told():  # one a look: two at once would be one
            process.terminate()
            passed_on += 1
    process.kill()  # one that was stopped hears nothing else; what it started ends with it
    with suppress(subprocess.TimeoutExpired):  # one that waits for a disk does not hear this either
        process.wait(LOOK_S)
    where = f" in {folder}" if folder else ""
    raise RuntimeError(
        f"edge-opd {arguments[0]}: its process has written nothing{where} for {silent_s:g} s, and is ended"
    )


class _Silence:
    """Since the run in a folder wrote last, or since it was begun."""

    def __init__(self, folder: Path | None) -> None:
        self._folder, self._newest, self._since = folder, _newest(folder), time.monotonic()

    def seconds(self) -> float:
        if self._newest != (newest := _newest(self._folder)):
            self._newest, self._since = newest, time.monotonic()
        return time.monotonic() - self._since


def _newest(folder: Path | None) -> float:
    """When the run in a folder wrote last: its records, or in the folders in it. Its lease is renewed by a thread that
    outlives a driver that hangs."""
    if folder is None or not folder.is_dir():
        return 0.0
    times = [0.0]
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):  # written under another name
            if path.suffix == ".jsonl" or path.is_dir():
                times.append(path.stat().st_mtime)
    return max(times)
