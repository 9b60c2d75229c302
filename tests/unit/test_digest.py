"""The weights' digest: it sees every kind of damage, and its sums are those of its documentation."""

import hashlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor


def tensors() -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    yield "a", torch.randn(3, 5, generator=generator).bfloat16()
    yield "b", torch.randn(7, generator=generator)


@pytest.mark.parametrize("damage", ["none", "order", "value", "swap", "shape", "missing", "dtype"])
def test_digest_sees_every_kind_of_damage(damage: str) -> None:
    from cluster.weights.digest import WeightsDigest

    named = dict(tensors())
    reference, other = WeightsDigest(), WeightsDigest()
    for name, tensor in named.items():
        reference.add(name, tensor)
    if damage == "value":
        named["b"] = named["b"].clone()
        named["b"][-1] += 1e-6
    elif damage == "swap":
        named["b"] = named["b"].flip(0)
    elif damage == "shape":
        named["a"] = named["a"].view(5, 3)
    elif damage == "missing":
        del named["a"]
    elif damage == "dtype":
        named["a"] = named["a"].view(torch.float16)
    items = list(named.items())
    for name, tensor in reversed(items) if damage == "order" else items:
        other.add(name, tensor)
    assert (reference.hexdigest() == other.hexdigest()) == (damage in ("none", "order"))


@pytest.mark.parametrize("length", [0, 1, 3, 2**22 + 2**21 + 5], ids=str)  # the last is more than one chunk of words
def test_the_digests_sums_are_those_of_its_documentation(length: int) -> None:
    from cluster.weights.digest import WeightsDigest

    tensor = torch.randn(length + 3, generator=torch.Generator().manual_seed(2)).bfloat16()[3:]  # not at a word's start
    digest = WeightsDigest()
    digest.add("a", tensor)
    content = tensor.view(torch.uint8).numpy().tobytes()
    words = np.frombuffer(content + bytes(-len(content) % 8), np.uint64)
    factors = np.arange(1, 2 * len(words), 2, dtype=np.uint64)
    sums = (int(total.astype(np.int64)) for total in (words.sum(), (words * factors).sum()))
    line = " ".join(["a torch.bfloat16", str((length,)), *map(str, sums)])
    assert digest.hexdigest() == hashlib.sha256(line.encode()).hexdigest()[:16]
