"""`python -m tests.bench --base`: a benchmark of two revisions in turns. The repository is a made-up one."""

import json
import subprocess
import sys
import threading
import time
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from rich.console import Console

from tests.bench import pairs
from tests.bench.figures import Figure
from tests.bench.pairs import Measured, checkout, commit_of, measure, run, to_json
from tests.bench.recovery import spent

TOY = """
import json
from pathlib import Path
import toy_value
with Path({log!r}).open("a") as log:
    log.write(str(toy_value.VALUE) + " ")
print("hello")
print("FIGURE " + json.dumps(dict(name="speed", value=toy_value.VALUE, target=">= 1", note="")))
"""


def git(root: Path, *arguments: str) -> None:
    author = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    subprocess.run(["git", "-C", str(root), *author, *arguments], check=True, capture_output=True, timeout=60)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Of two commits: `toy` says 2.0 in the first, tagged `before`, and 3.0 in the second. Beside it: log.txt."""
    root = tmp_path / "repository"
    bench = root / "tests" / "bench"
    bench.mkdir(parents=True)
    (bench / "toy.py").write_text(TOY.format(log=str(tmp_path / "log.txt")))
    git(root, "init", "--quiet")
    for value in (2.0, 3.0):
        (root / "toy_value.py").write_text(f"VALUE = {value}\n")
        git(root, "add", "--all")
        git(root, "commit", "--quiet", "--message", str(value))
        if value == 2.0:
            git(root, "tag", "before")
    return root


def test_two_revisions_are_measured_in_turns_each_with_its_own_code(repository: Path) -> None:
    console = Console(file=StringIO())
    with checkout(repository, "before") as base:
        assert base.parent != repository and commit_of(base) != commit_of(repository)
        measured = measure("toy", repository, base, 3, console)
    assert (repository.parent / "log.txt").read_text().split() == ["2.0", "3.0", "3.0", "2.0", "2.0", "3.0"]
    assert measured.ratios("speed") == [1.5] * 3 and not measured.has_failed
    (one,) = to_json(measured)
    assert one == {
        "name": "speed", "value": 3.0, "target": ">= 1", "note": "", "rounds": [3.0] * 3, "base_rounds": [2.0] * 3,
    }  # fmt: skip
    assert "hello" in console.file.getvalue() and "FIGURE" not in console.file.getvalue()  # type: ignore[attr-defined]
    assert not base.exists()
    trees = subprocess.run(["git", "-C", str(repository), "worktree", "list"], capture_output=True, text=True)
    assert len(trees.stdout.splitlines()) == 1


def test_a_revision_without_the_benchmark_gives_no_ratio_and_one_that_fails_is_told(repository: Path) -> None:
    (repository / "tests" / "bench" / "new.py").write_text("raise SystemExit(3)\n")
    with checkout(repository, "before") as base:
        measured = measure("new", repository, base, 1, Console(file=StringIO()))
    assert (measured.now, measured.base) == ([None], [[]]) and measured.has_failed
    assert Measured([[]], [None]).has_failed and not Measured([[]], [[]]).has_failed
    assert measured.figures() == [] and measured.ratios("speed") == []


def test_a_checkout_goes_whatever_happens_in_it_and_has_the_same_packages(repository: Path) -> None:
    (repository / ".venv").mkdir()
    with pytest.raises(KeyboardInterrupt), checkout(repository, "before") as base:
        assert (base / ".venv").resolve() == repository / ".venv"
        raise KeyboardInterrupt
    assert not base.exists() and (repository / ".venv").is_dir()
    trees = subprocess.run(["git", "-C", str(repository), "worktree", "list"], capture_output=True, text=True)
    assert len(trees.stdout.splitlines()) == 1


def test_a_benchmark_that_is_late_ends_with_all_that_it_started(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here another process, which holds its output."""
    sleeps = "open('there', 'w').close(); import time; time.sleep(3600)"
    script = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {sleeps!r}])\n"
    (repository / "tests" / "bench" / "late.py").write_text(script)

    class Late(threading.Timer):
        def run(self) -> None:
            while not (repository / "there").exists():
                time.sleep(0.05)
            super().run()

    monkeypatch.setattr(pairs, "DEADLINE_S", 0.1)
    monkeypatch.setattr(pairs, "threading", SimpleNamespace(Timer=Late))
    assert run("late", repository, Console(file=StringIO())) is None


def test_what_differs_from_the_commit_is_marked(repository: Path, tmp_path: Path) -> None:
    clean = commit_of(repository)
    (repository / "new.txt").write_text("not git's\n")
    assert commit_of(repository) == clean and not clean.endswith("+")
    (repository / "toy_value.py").write_text("VALUE = 4.0\n")
    assert commit_of(repository) == clean + "+"
    assert commit_of(tmp_path) == "unknown"


@pytest.mark.parametrize("place", ["repository", "."])
def test_a_revision_that_is_none_is_one_line(repository: Path, tmp_path: Path, place: str) -> None:
    root = tmp_path / place
    with (
        pytest.raises(ValueError, match=rf"^--base: found 'befor', expected a revision that git has in {root}$"),
        checkout(root, "befor"),
    ):
        pass


def test_a_figure_is_the_mean_of_its_rounds_and_one_of_zero_has_no_ratio() -> None:
    now = [[Figure("a", 1.0), Figure("b", 0.5)], [Figure("a", 3.0)], None]
    measured = Measured(now, [[Figure("a", 2.0)], [Figure("a", 0.0)], [Figure("a", 1.0)]])
    assert [(figure.name, figure.value) for figure in measured.figures()] == [("a", 2.0), ("b", 0.5)]
    assert measured.ratios("a") == [0.5] and measured.ratios("b") == []
    assert [row["rounds"] for row in json.loads(json.dumps(to_json(measured)))] == [[1.0, 3.0, None], [0.5, None, None]]


def test_what_an_engine_has_spent_counts_what_it_started_and_what_of_that_has_ended() -> None:
    """As a bare engine's start does, which it is held against."""
    burn = "import time\nwhile time.process_time() < {}: pass"
    ended = f"subprocess.run([sys.executable, '-c', {burn.format(0.6)!r}], check=True)"
    script = f"import subprocess, sys\n{ended}\nprint(flush=True)\nsys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], text=True, **pipes) as process:  # type: ignore[call-overload]
        process.stdout.readline()
        own = psutil.Process(process.pid)
        found, twice = spent([own]), spent([own, own])
        process.stdin.close()
    assert 0.6 <= found <= twice < found + 0.6
