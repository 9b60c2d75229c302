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
