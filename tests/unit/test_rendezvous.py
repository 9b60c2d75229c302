"""Members of a group prove to each other that they have its secret."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from learner.rendezvous import SIZE, Gather, new_secret, prove


class Meeting:
    """A collective of `size` threads."""

    def __init__(self, size: int) -> None:
        self._said: list[Tensor] = [torch.empty(0)] * size
        self._barrier = threading.Barrier(size, timeout=300)

    def of(self, rank: int) -> Gather:
        def gather(own: Tensor) -> list[Tensor]:
            assert own.shape == (SIZE,) and own.dtype == torch.uint8
            self._said[rank] = own
            self._barrier.wait()
            heard = list(self._said)
            self._barrier.wait()
            return heard

        return gather


def outcomes(*members: str) -> list[str]:
    """What each member, which has this secret, says of the others: "" or an error."""
    meeting = Meeting(len(members))

    def member(rank: int) -> str:
        try:
            prove(members[rank], rank, meeting.of(rank))
        except threading.BrokenBarrierError:  # a RuntimeError that says nothing
            raise
        except RuntimeError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(members)) as pool:
        return list(pool.map(member, range(len(members))))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_members_of_one_secret_let_each_other_in(size: int) -> None:
    assert outcomes(*[new_secret()] * size) == [""] * size


def test_a_stranger_is_named_by_every_member() -> None:
    ours = new_secret()
    told = outcomes(ours, new_secret(), ours)
    assert told[0] == told[2] and told[0].startswith("rendezvous: found no proof from rank 1 of 3 that it belongs")
    assert "from rank 0, 2 of 3" in told[1]  # to the stranger they are


def test_what_another_member_said_is_no_proof() -> None:
    """Neither repeated under another rank, nor said again at another meeting."""
    ours, heard = new_secret(), list[list[Tensor]]()

    def echo(own: Tensor) -> list[Tensor]:
        heard.append([own, own])
        return heard[-1]

    with pytest.raises(RuntimeError, match="from rank 1 of 2"):
        prove(ours, 0, echo)
    earlier = heard[-1][0]
    replies = iter([lambda own: [own, own], lambda own: [own, earlier]])
    with pytest.raises(RuntimeError, match="from rank 1 of 2"):
        prove(ours, 0, lambda own: next(replies)(own))


def test_secrets_differ() -> None:
    assert new_secret() != new_secret() and len(bytes.fromhex(new_secret())) == SIZE
