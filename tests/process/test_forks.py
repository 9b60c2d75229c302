"""Work over many things in a process a core."""

import os

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
