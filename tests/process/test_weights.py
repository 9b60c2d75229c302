"""Transports of weights without an engine."""

import time
from typing import Any

import pytest
import torch

from tests.runs import free_port


@pytest.mark.parametrize(("largest", "buffer"), [(5, 1 << 30), (3 << 30, 3 << 30)])
def test_the_largest_tensor_fits_the_buffer_of_cuda_ipc(largest: int, buffer: int) -> None:
    from cluster.weights.transports import Meeting, transport

    info: Any = transport("ipc").trainer(Meeting(0, "127.0.0.1", 1, 1, 60.0, largest))
    assert info.packed and info.packed_buffer_size_bytes == buffer


def test_a_receiver_that_never_comes_is_given_up() -> None:
    from cluster.weights.transports.gloo import broadcast, open_group

    begun = time.monotonic()
    with pytest.raises(RuntimeError):  # gloo's, of the rendezvous or of the first tensor
        broadcast(open_group("127.0.0.1", free_port(), rank=0, size=2, timeout_s=2.0), torch.ones(3))
    assert time.monotonic() - begun < 30


class Layers(torch.nn.Module):
    """A model in the place of vLLM's: a tied head, and a layer of which no weight need come."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lm_head, self.norm = (
            torch.nn.Embedding(4, 2),
            torch.nn.Linear(2, 4, False),
            torch.nn.Linear(2, 2),
        )
        self.lm_head.weight = torch.nn.Parameter(self.embed.weight.data)  # another parameter, the same memory

    def load_weights(self, weights: Any) -> set[str]:
        own = dict(self.named_parameters())
        filled = [name for name, tensor in weights if name in own and own[name].data.copy_(tensor) is not None]
        return set(filled)


class PlainReceiver:
    model: Layers

    def start_weight_update(self) -> None:
        pass

    def finish_weight_update(self) -> None:
        pass


SENT = {"embed.weight": torch.ones(4, 2), "norm.weight": torch.ones(2, 2), "norm.bias": torch.ones(2)}


@pytest.mark.parametrize(
    ("renamed", "line"),
    [
        ({}, None),
        (
            {"norm.bias": "norm.b"},
            "found none for norm.bias of the engine's model, expected a weight for each in every ",
        ),
        (
            {"embed.weight": "wte", "norm.weight": "ln"},
            "found none for embed.weight, norm.weight of the engine's model",
        ),
    ],
)
def test_a_push_that_leaves_a_parameter_of_the_engine_names_it(renamed: dict[str, str], line: str | None) -> None:
    from cluster.weights.receiver import checked

    receiver: Any = checked(PlainReceiver)()  # type: ignore[arg-type]
    receiver.model = Layers()
    receiver.start_weight_update()
    for name, tensor in SENT.items():  # in parts, as a transport brings them
        receiver.model.load_weights([(renamed.get(name, name), tensor)])
    if line is None:
        receiver.finish_weight_update()
        assert len(receiver.received) == 16
    else:
        with pytest.raises(RuntimeError, match=line):
            receiver.finish_weight_update()
        assert receiver.received == ""
