"""Pushes of what changed over real gloo, from the learner's link to the receivers of two stand-ins of engines."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cluster.weights import link
from cluster.weights.delta import Pushes
from cluster.weights.digest import WeightsDigest
from cluster.weights.parts import Sent
from cluster.weights.receiver import checked
from cluster.weights.source import TrainerSource
from cluster.weights.transports import Meeting
from cluster.weights.transports.receivers import GlooInitInfo, GlooReceiver, GlooUpdateInfo

SHAPES = {"embed": (300, 64), "model.layers.0.proj": (64, 64), "norm": (64,)}


class Model(nn.Module):
    """In the place of vLLM's, in another dtype than the weights arrive in, as an engine may hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.ParameterDict({name.replace(".", "_"): torch.zeros(shape) for name, shape in SHAPES.items()})

    def load_weights(self, weights: Any) -> set[str]:
        for name, tensor in weights:
            self.own[name.replace(".", "_")].data.copy_(tensor)
        return {f"own.{name.replace('.', '_')}" for name, _ in weights}


class Quiet(GlooReceiver):
    """Without vLLM's layerwise reload, which asks for vLLM's layers."""

    fails = False

    def start_weight_update(self) -> None:
        pass

    def finish_weight_update(self) -> None:
        if self.fails:
            raise RuntimeError("no memory")


def an_engine(rank: int) -> Any:
    receiver: Any = object.__new__(checked(Quiet))
    receiver.model, receiver.parallel_config, receiver.place = Model(), SimpleNamespace(rank=0), rank
    return receiver


class Run:
    """A learner and two engines, which meet anew as often as one is replaced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pushes: Pushes | None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weights = {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in SHAPES.items()}
        self.engines = [an_engine(0), an_engine(1)]
        self._pushes, self._pool = pushes, ThreadPoolExecutor(2)
        monkeypatch.setattr(link.FleetClient, "tell", lambda _, verb, *arguments: self._tell(verb, *arguments))
        self.meet()

    def _tell(self, verb: str, *arguments: Any) -> None:
        list(self._pool.map(lambda engine: self._told(engine, verb, *arguments), self.engines))

    def _told(self, engine: Any, verb: str, *arguments: Any) -> None:
        if verb == "init_weight_transfer_engine":
            info = arguments[0] | {"rank_offset": arguments[0]["rank_offset"] + engine.place}
            engine.init_transfer_engine(GlooInitInfo(**info))
        elif verb == "update_weights":
            engine.receive_weights(GlooUpdateInfo(**arguments[0]))
        elif verb != "update_weight_version":
            getattr(engine, verb)()

    def meet(self) -> None:
        shapes = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.weights.items()]
        learner: Any = SimpleNamespace(
            device=torch.device("cpu"), full_tensors=self._tensors, parameter_shapes=lambda: shapes
        )
        meeting = Meeting(0, "127.0.0.1", len(self.engines), 60.0, 0, self._pushes)
        self._link = link.WeightLink("gloo", link.FleetClient(None, "student"), TrainerSource(learner), meeting)

    def _tensors(self, _: Any) -> Iterator[tuple[str, Tensor]]:
        yield from self.weights.items()

    def push(self, version: int) -> Sent:
        """And proof that both engines then have the weights, by their digests and number by number."""
        sent, digest = self._link.push(version), WeightsDigest()
        for name, tensor in self.weights.items():
            digest.add(name, tensor)
        assert {sent.digest, *(engine.received for engine in self.engines)} == {digest.hexdigest()}
        for engine in self.engines:
            held = {name: engine.model.own[name.replace(".", "_")] for name in self.weights}
            assert all(torch.equal(held[name], tensor.float()) for name, tensor in self.weights.items())
        return sent


WHOLE = sum(2 * torch.Size(shape).numel() for shape in SHAPES.values())
HEADS = 16 * len(SHAPES)


def test_what_did_not_change_does_not_go_over_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, Pushes())
    assert run.push(0).num_bytes == WHOLE + HEADS
    run.weights["embed"][::100, 5] += 1.0
    sent = run.push(1)
    assert 3 * 3 + HEADS <= sent.num_bytes < WHOLE / 50 and sent.whole == ""
    assert run.push(2).num_bytes == HEADS


def test_an_engine_in_anothers_place_gets_whole_weights_and_then_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, Pushes())
    run.push(0)
    run.engines[1] = an_engine(1)  # the other still holds version 0
    run.meet()
    run.weights["norm"].mul_(2.0)
    sent = run.push(1)
    assert sent.whole == "worker 2 of 2 of the engines does not hold the push before it"
    assert sent.num_bytes == WHOLE + HEADS
    run.weights["norm"][3] = -1.0
    assert run.push(2).num_bytes == HEADS + 3


def test_after_a_push_that_failed_whole_weights_go(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, Pushes())
    run.push(0)
    run.weights["norm"].mul_(2.0)
    monkeypatch.setattr(Quiet, "fails", True)
    with pytest.raises(RuntimeError, match="no memory"):
        run.push(1)
    monkeypatch.setattr(Quiet, "fails", False)
    run.meet()
    sent = run.push(1)
    assert (sent.whole, sent.num_bytes) == ("the push before it did not come to its end", WHOLE + HEADS)


def test_without_the_key_weights_go_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, None)
    assert [(run.push(version).num_bytes, run.push(version).whole) for version in (0, 1)] == [(WHOLE, "")] * 2
