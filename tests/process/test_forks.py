"""Work over many things in a process a core."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cluster import forks
from cluster.forks import in_parts


def seen(part: range) -> tuple[list[int], int]:
    return list(part), os.getpid()


@pytest.mark.parametrize("count", [0, 1, 5, 10_000])
@pytest.mark.parametrize("cores", [1, 2, 3])
def test_every_thing_is_worked_on_once_in_order(count: int, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "num_cores", lambda: cores)
    found = in_parts(seen, count)
    assert [one for part, _ in found for one in part] == list(range(count))
    assert len(found) == (cores if count >= forks.MANY else 1)


def test_few_are_worked_on_here_and_many_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "num_cores", lambda: 2)
    monkeypatch.setattr(forks, "MANY", 6)
    here = {process for _, process in in_parts(seen, 5)}
    others = {process for _, process in in_parts(seen, 6)}
    assert here == {os.getpid()} and os.getpid() not in others


def test_what_a_part_raises_is_raised_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(part: range) -> None:
        raise ValueError(f"rows.jsonl: found {part.start}, expected another")

    monkeypatch.setattr(forks, "num_cores", lambda: 2)
    monkeypatch.setattr(forks, "MANY", 2)
    with pytest.raises(ValueError, match=r"rows\.jsonl: found 0, expected another"):
        in_parts(fails, 2)


def test_a_process_that_was_killed_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_killed(part: range) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(forks, "num_cores", lambda: 2)
    monkeypatch.setattr(forks, "MANY", 2)
    with pytest.raises(RuntimeError, match=r"^processes: found one of 2 killed, expected all to end: if the host ran"):
        in_parts(is_killed, 2)


WORKING = r"""
import os, sys, time
from cluster import forks

def work(part):
    os.write(1, b"%d\n" % os.getpid())  # one write: two processes share the line
    time.sleep(600)

forks.num_cores, forks.MANY = lambda: 2, 2
forks.in_parts(work, 2)
"""


INTERRUPTED = r"""
import os, signal, sys, time
from cluster import forks
from cluster.__main__ import main
from cluster.commands import data_file

def look(rows, recipe, renderer, part):
    os.write(1, b"%d\n" % os.getpid())  # one write: two processes share the line
    time.sleep(600)

signal.signal(signal.SIGINT, signal.default_int_handler)  # where whoever began the tests ignores it
data_file._look, forks.num_cores, forks.MANY = look, lambda: 2, 2
sys.exit(main(["data", "check", sys.argv[1]]))
"""


@contextmanager
def working(script: str, *words: str) -> Iterator[tuple["subprocess.Popen[str]", list[int]]]:
    """A program and the two processes that it works in; whatever a test finds, none of them is left behind."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-c", script, *words]
    with subprocess.Popen(command, text=True, start_new_session=True, **pipes) as began:  # type: ignore[call-overload]
        try:
            yield began, [int(began.stdout.readline()) for _ in range(2)]
        finally:
            with suppress(ProcessLookupError):
                os.killpg(began.pid, signal.SIGKILL)


@pytest.mark.parametrize("whole_group", [True, False], ids=["terminal", "kill"])
def test_ctrl_c_ends_a_check_and_its_processes_with_one_line(
    whole_group: bool, tmp_path: Path, default_model: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "Who?", "context": "Ada."}\n' * 3)
    with working(INTERRUPTED, str(rows)) as (began, others):
        (os.killpg if whole_group else os.kill)(began.pid, signal.SIGINT)
        _, said = began.communicate(timeout=60)
        left = [one for one in others if Path(f"/proc/{one}").exists()]
    assert (said, began.returncode, left) == ("edge-opd: interrupted\n", 130, [])


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_its_processes_end_with_the_one_that_began_them(how: signal.Signals) -> None:
    with working(WORKING) as (began, others):
        began.send_signal(how)
        began.wait(timeout=60)
        end = time.monotonic() + 20
        while (left := [one for one in others if Path(f"/proc/{one}").exists()]) and time.monotonic() < end:
            time.sleep(0.02)
    assert not left
