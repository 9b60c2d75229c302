"""Benchmarks of two checkouts in turns, so that a claim about a change is a pair from one run."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from rich.console import Console

from tests.bench.figures import MARK, Figure, figures_in

DEADLINE_S = 3600.0
GIT_S = 60.0


@dataclass(frozen=True)
class Measured:
    """A benchmark's figures, a list a round; None for a round that failed. base: of the other checkout, round by
    round; empty without one."""

    now: Sequence[list[Figure] | None]
    base: Sequence[list[Figure] | None] = ()

    @property
    def has_failed(self) -> bool:
        return None in self.now or None in self.base

    def figures(self) -> list[Figure]:
        """Each figure of this checkout, its value the mean of the rounds."""
        rounds = [{figure.name: figure for figure in part} for part in self.now if part is not None]
        names = dict.fromkeys(name for part in rounds for name in part)
        found = [[part[name] for part in rounds if name in part] for name in names]
        return [Figure(one[0].name, mean(figure.value for figure in one), one[0].target, one[-1].note) for one in found]

    def ratios(self, name: str) -> list[float]:
        """Of one figure, this checkout's over the other's, by round; without the rounds in which either has none."""
        pairs = [
            [next((figure.value for figure in part or () if figure.name == name), None) for part in pair]
            for pair in zip(self.now, self.base, strict=False)
        ]
        return [now / base for now, base in pairs if now is not None and base]


def measure(name: str, here: Path, base: Path | None, rounds: int, console: Console) -> Measured:
    """Runs a benchmark `rounds` times, each time in the other checkout too, which goes first in every second round."""
    found: dict[Path, list[list[Figure] | None]] = {place: [] for place in (here, base) if place}
    for turn in range(rounds):
        for place in list(found)[:: 1 if turn % 2 else -1]:
            console.rule(f"{name}{'' if base is None else ' at ' + commit_of(place)}")
            found[place].append(run(name, place, console))
    return Measured(found[here], found[base] if base else ())


def run(name: str, root: Path, console: Console) -> list[Figure] | None:
    """The figures of a checkout's benchmark; none of one that the checkout has not, None when it failed or took longer
    than the deadline."""
    if not (root / "tests" / "bench" / f"{name}.py").is_file():
        console.print(f"{root} has no benchmark of this name")
        return []
    command = [sys.executable, "-m", f"tests.bench.{name}"]
    environment = os.environ | {"PYTHONPATH": str(root)}  # its own packages, in the processes that it starts as well
    process = subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout
    deadline = threading.Timer(DEADLINE_S, _end, [process])
    deadline.daemon = True
    deadline.start()
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if not line.startswith(MARK):
                console.print(line, end="", markup=False, highlight=False, soft_wrap=True)
        code = process.wait()
    finally:
        deadline.cancel()
        _end(process)
    return figures_in(lines) if code == 0 else None


def _end(process: "subprocess.Popen[str]") -> None:
    """Whatever it started ends with it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def commit_of(root: Path) -> str:
    """A checkout's commit, with a + where files differ from it; "unknown" without git."""
    try:
        commit = _git(root, "rev-parse", "--short", "HEAD")
        return commit + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (subprocess.CalledProcessError, FileNotFoundError):
        return "unknown"


@contextmanager
def checkout(root: Path, revision: str) -> Iterator[Path]:
    """A second checkout of `root`'s repository at `revision`, for as long as it is asked for. It has `root`'s packages.

    Raises:
        ValueError: there is no such revision here.
    """
    try:
        commit = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except (subprocess.CalledProcessError, FileNotFoundError):
        raise ValueError(f"--base: found {revision!r}, expected a revision that git has in {root}") from None
    with tempfile.TemporaryDirectory(prefix="edge-opd-base-") as place:
        tree = Path(place) / "tree"
        _git(root, "worktree", "add", "--detach", str(tree), commit)
        try:
            if (root / ".venv").exists():
                (tree / ".venv").symlink_to(root / ".venv")
            yield tree
        finally:
            _git(root, "worktree", "remove", "--force", str(tree))


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=GIT_S, check=True
    )
    return done.stdout.strip()


def to_json(measured: Measured) -> list[dict[str, object]]:
    """Each figure with its value a round, of either checkout."""
    return [
        json.loads(json.dumps(vars(figure)))
        | {"rounds": _values(measured.now, figure.name)}
        | ({"base_rounds": _values(measured.base, figure.name)} if measured.base else {})
        for figure in measured.figures()
    ]


def _values(rounds: Sequence[list[Figure] | None], name: str) -> list[float | None]:
    return [next((figure.value for figure in part or () if figure.name == name), None) for part in rounds]
