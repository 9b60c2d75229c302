"""Pushes of what changed, without a transport: both ends hold the same bits afterwards."""

from collections import deque
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cluster.weights import delta
from cluster.weights.delta import SKIP, Held, Pushes, arriving, codes_of, decode, encode, positions_of

# bfloat16 as int16: 0 and -0, 1, the infinities, NaNs of both signs with several payloads, the least subnormal
WORDS = (0, -32768, 0x3F80, 0x7F80, -128, 0x7FC0, 0x7F81, 0x7FFF, -64, -1, 1)
word = st.one_of(st.sampled_from(WORDS), st.integers(-32768, 32767))


def by_hand(codes: list[int]) -> list[int]:
    """The positions that codes stand for, one code after another."""
    place, found = 0, []
    for code in codes:
        if code < SKIP:
            found.append(place + code)
            place += code + 1
        else:
            place += SKIP
    return found


@given(st.sets(st.one_of(st.integers(0, 600), st.integers(0, 3_000_000))))
@settings(deadline=None)
def test_codes_are_the_positions(places: set[int]) -> None:
    positions = torch.tensor(sorted(places), dtype=torch.int64)
    codes = codes_of(positions)
    assert codes.dtype == torch.uint8 and by_hand(codes.tolist()) == sorted(places)
    assert torch.equal(positions_of(codes), positions)


@pytest.mark.parametrize("gap", [0, 1, 253, 254, 255, 256, 509, 510, 511, 100_000])
def test_a_gap_of_any_length_is_passed_over(gap: int) -> None:
    positions = torch.tensor([gap, 2 * gap + 1, 2 * gap + 2])
    assert positions_of(codes_of(positions)).tolist() == positions.tolist()
    assert len(codes_of(positions)) == 3 + 2 * (gap // 255)


@given(st.lists(st.tuples(word, word, st.booleans()), min_size=1, max_size=700), st.data())
@settings(deadline=None)
def test_what_changed_makes_the_new_weights_of_the_old_bit_for_bit(rows: Any, data: Any) -> None:
    then = torch.tensor([old for old, _, _ in rows], dtype=torch.int16)
    now = torch.tensor([new if changes else old for old, new, changes in rows], dtype=torch.int16)
    if data.draw(st.booleans()):  # most stay, and what changes is an end
        now = then.clone()
        now[data.draw(st.sampled_from([0, -1]))] ^= -32768
    codes, values = encode(now, then)
    assert codes.nbytes + values.nbytes <= now.nbytes
    decode(then, codes, values)
    assert then.tolist() == now.tolist()


def test_only_what_changed_is_sent_and_numbers_that_compare_alike_are_not_the_same_bits() -> None:
    then = torch.zeros(1000, dtype=torch.bfloat16)
    then[[1, 2]] = torch.tensor([float("nan"), 1.0], dtype=torch.bfloat16)
    now = then.clone()
    now[[0, 2, 999]] = torch.tensor([-0.0, 2.0, -1.0], dtype=torch.bfloat16)
    codes, values = encode(now.view(torch.int16), then.view(torch.int16))
    assert positions_of(codes).tolist() == [0, 2, 999], "not the NaN, which stays; also 0, which becomes -0"
    assert values.view(torch.bfloat16).tolist() == [-0.0, 2.0, -1.0]
    assert [part.numel() for part in encode(then.view(torch.int16), then.view(torch.int16))] == [0, 0]
    other = then.view(torch.int16) + 1
    codes, values = encode(other, then.view(torch.int16))
    assert len(codes) == 0 and torch.equal(values, other), "all of them, without positions"


class Ends:
    """A learner and an engine, with a wire between them."""

    def __init__(self, lends: bool = False) -> None:
        self.pushes, self.held, self._number, self._lends = Pushes(), Held(), 0, lends

    def push(self, weights: dict[str, Tensor], reaches_its_end: bool = True) -> dict[str, Tensor]:
        """What the engine has then."""
        metas: Any = [SimpleNamespace(name=n, dtype=tensor.dtype, shape=tensor.shape) for n, tensor in weights.items()]
        marks, self.held.mark = [self.pushes.held.mark, self.held.mark], 0
        wire = deque(self.pushes.messages(marks, metas, self._tensors(weights)))

        def receive(tensor: Tensor) -> None:
            message = wire.popleft()
            assert message.nbytes == tensor.nbytes, "both ends know how long it is"
            tensor.view(-1).view(torch.uint8).copy_(message.view(-1).view(torch.uint8))

        found = {name: tensor.clone() for name, tensor in arriving(self.held, metas, receive)}
        assert not wire
        self._number += 1
        self.held.mark = self._number
        if reaches_its_end:
            self.pushes.held.mark = self._number
        return found

    def _tensors(self, weights: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """lends: each is gone when the next is asked for, as where ZeRO-3 gathers them."""
        for name, tensor in weights.items():
            given = tensor.clone() if self._lends else tensor
            yield name, given
            if self._lends:
                given.fill_(77.0)


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    as_bytes = {name: tensor.contiguous().view(torch.uint8) for name, tensor in expected.items()}
    return found.keys() == as_bytes.keys() and all(
        found[name].shape == expected[name].shape and torch.equal(found[name].view(torch.uint8), as_bytes[name])
        for name in found
    )


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks and batches of which a small tensor has several."""
    monkeypatch.setattr(delta, "CHUNK", 7)
    monkeypatch.setattr(delta, "BATCH", 60)


def some_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"embed": (11, 3), "norm": (4,), "transposed": (5, 8), "one": (1,), "wide": (2, 3, 5)}
    weights = {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}
    weights["transposed"] = weights["transposed"].T  # not contiguous
    return weights | {"scale": torch.randn(9, generator=generator), "half": torch.ones(3, dtype=torch.float16)}


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("lends", [False, True])
def test_pushes_one_after_another_arrive_bit_for_bit(lends: bool) -> None:
    ends, weights = Ends(lends), some_weights()
    heads = 16 * sum(-(-tensor.numel() * (4 if name == "scale" else 1) // 7) for name, tensor in weights.items())
    unchanged = heads + weights["scale"].nbytes  # which is not of 16 bits
    whole = heads + sum(tensor.nbytes for tensor in weights.values())
    assert same(ends.push(weights), weights) and ends.pushes.num_bytes == whole
    assert same(ends.push(weights), weights) and ends.pushes.num_bytes == unchanged
    weights["embed"][0, 0], weights["embed"][-1, -1], weights["one"][0] = -0.0, float("nan"), 3.0
    changed = 2 * (1 + 2) + 2  # of two a code and a value; what has one element is shorter whole
    assert same(ends.push(weights), weights) and ends.pushes.num_bytes == unchanged + changed
    weights["embed"][0, 0] = some_weights()["embed"][0, 0]  # as before the last push
    assert same(ends.push(weights), weights) and ends.pushes.num_bytes == unchanged + 3
    for tensor in weights.values():  # in place, as an optimizer does: what was sent is not what is held
        tensor.mul_(1.5).add_(1.0)
    assert same(ends.push(weights), weights) and ends.pushes.num_bytes <= whole
    assert ends.pushes.whole == ""


@given(st.lists(st.lists(st.tuples(st.integers(0, 71), word), max_size=80), min_size=1, max_size=4))
@settings(deadline=None)
def test_pushes_of_any_changes_arrive_bit_for_bit(changes: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta, "CHUNK", 10)
        patch.setattr(delta, "BATCH", 64)
        ends, words = Ends(), torch.zeros(72, dtype=torch.int16)
        for push in [[], *changes]:
            for place, value in push:
                words[place] = value
            weights = {"a": words[:30].view(torch.bfloat16), "b": words[30:].view(torch.bfloat16).view(6, 7)}
            assert same(ends.push(weights), weights)


@pytest.mark.usefixtures("short")
def test_an_engine_that_holds_other_weights_gets_whole_ones() -> None:
    ends, weights = Ends(), some_weights()
    ends.push(weights)
    first = ends.pushes.num_bytes
    assert ends.pushes.whole == "", "the first is what it must be"
    ends.held = Held()  # a successor's
    assert same(ends.push(weights), weights) and ends.pushes.num_bytes == first
    assert ends.pushes.whole == "worker 1 of 1 of the engines does not hold the push before it"
    ends.push(weights, reaches_its_end=False)
    assert ends.pushes.whole == "" and ends.pushes.num_bytes < first
    assert same(ends.push(weights), weights) and ends.pushes.num_bytes == first
    assert ends.pushes.whole == "the push before it did not come to its end"
