"""Transports of weights without an engine."""

import ctypes
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from cluster.fleet.network import open_door
from cluster.weights.parts import PARTS
from learner import parts
from learner.rendezvous import store_at
from tests.listeners import Watch


@pytest.mark.parametrize(("largest", "buffer"), [(5, 1 << 30), (3 << 30, 3 << 30)])
def test_the_largest_tensor_fits_the_buffer_of_cuda_ipc(largest: int, buffer: int) -> None:
    from cluster.weights.transports import Meeting, transport

    info: Any = transport("ipc").trainer(Meeting(0, "127.0.0.1", 1, 60.0, largest))
    assert info.packed and info.packed_buffer_size_bytes == buffer


def test_weights_go_over_nccl_on_one_stream_after_all_that_touched_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's streams wait for no other; both ends have as many."""
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine, NCCLWeightTransferEngine

    from cluster.weights.transports import BUFFER, nccl
    from cluster.weights.transports.receivers import NcclReceiver

    done = list[str]()
    monkeypatch.setattr("torch.accelerator.synchronize", lambda: done.append("wait"))
    monkeypatch.setattr("torch.accelerator.current_device_index", lambda: 0)
    monkeypatch.setattr(nccl, "NCCLLibrary", lambda: SimpleNamespace(ncclGetUniqueId=lambda: bytes(128)))
    monkeypatch.setattr(nccl, "uid_init_process_group", lambda *_: None)
    monkeypatch.setattr(NCCLTrainerWeightTransferEngine, "send_weights", lambda _: done.append("send"))
    monkeypatch.setattr(NCCLWeightTransferEngine, "receive_weights", lambda *_: done.append("receive"))
    told = dict[str, Any]()
    client: Any = SimpleNamespace(init_weight_transfer_engine=told.update)
    sender = nccl.NcclTrainerEngine.trainer_init(nccl.NcclTrainerInitInfo(3, rank=0), client=client, source=object())  # type: ignore[arg-type]
    assert (sender.packed, sender.packed_num_buffers, sender.packed_buffer_size_bytes) == (True, 1, BUFFER)
    assert (told["packed"], told["packed_num_buffers"], told["packed_buffer_size_bytes"]) == (True, 1, BUFFER)
    sender.send_weights()
    NcclReceiver.receive_weights(object.__new__(NcclReceiver), None)
    assert done == ["wait", "send", "wait", "receive"]


def test_a_learner_that_sends_between_cpus_does_not_load_vllm() -> None:
    """Which takes seconds of a processor and 80 MB."""
    asked = "import sys, cluster.weights.link as link; [link.transport(name) for name in ('shm', 'gloo')]"
    command = [sys.executable, "-c", f"{asked}; print('vllm' in sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_tensors_are_gathered_by_layer_as_vllm_groups_them() -> None:
    """In the order in which they come: what the engines are told of them has that order."""
    from vllm.distributed.weight_transfer.base import layerwise_groups

    from cluster.weights.source import by_layer

    layers = [f"{stack}.{index}" for stack in ("visual.blocks", "model.layers") for index in range(3)]
    parts = ("attn.q_proj.weight", "experts.7.up.weight", "norm")
    names = ["model.embed", *(f"{layer}.{part}" for layer in layers for part in parts), "model.norm", "lm_head"]
    found = by_layer(names)
    assert found == layerwise_groups(names) and [name for group in found for name in group] == names
    mixed = [names[1], names[4], names[2]]
    assert by_layer(mixed) == [[name] for name in mixed]
    assert by_layer([]) == []


def test_a_receiver_that_never_comes_is_given_up() -> None:
    from cluster.weights.transports.gloo import broadcast, open_group

    begun, door = time.monotonic(), open_door("127.0.0.1")
    port = door.getsockname()[1]
    with pytest.raises(RuntimeError):  # gloo's, of the rendezvous or of the first tensor
        broadcast(open_group("127.0.0.1", port, 0, 2, 2.0, "ab", door), torch.ones(3))
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("adapter", [False, True], ids=["weights", "adapter"])
def test_a_push_is_timed_by_its_parts(adapter: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over shared memory; what takes how long is said by a clock that stands still otherwise."""
    from cluster.weights import digest, link
    from cluster.weights.source import TrainerSource
    from cluster.weights.transports import Meeting

    now, asked = [0.0], list[str]()

    def takes(seconds: float) -> None:
        now[0] += seconds

    def gathered(_: Any) -> Iterator[tuple[str, torch.Tensor]]:
        for name in ("a", "b"):
            takes(1.0)
            yield name, torch.ones(3)

    def tell(_: Any, verb: str, *__: Any) -> None:
        asked.append(verb)
        takes({"start_weight_update": 8.0, "update_weights": 16.0, "finish_weight_update": 32.0}.get(verb, 64.0))

    def added(self: Any, *named: Any, add: Any = digest.WeightsDigest.add) -> None:
        takes(0.25)
        add(self, *named)

    monkeypatch.setattr(parts.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(digest.WeightsDigest, "add", added)
    monkeypatch.setattr(link.FleetClient, "tell", tell)
    monkeypatch.setattr(link, "adapter_files", lambda *_: {"file": b"ab"})
    shapes = [(name, torch.float32, (3,)) for name in ("a", "b")]
    engine: Any = SimpleNamespace(
        rank=0, config=None, device=torch.device("cpu"), full_tensors=gathered, trained_names=lambda: ["a", "b"],
        parameter_shapes=lambda: shapes,
    )  # fmt: skip
    client = link.FleetClient(None, "student")
    if adapter:
        pushing: Any = link.AdapterLink(client, engine)
        expected = {"gather": 2.0, "load": 64.0, "digest": 0.0}
    else:
        pushing = link.WeightLink("shm", client, TrainerSource(engine), Meeting(0, "", 1, 60.0, 0))
        expected = {"gather": 2.0, "digest": 0.5, "send": 0.0, "pause": 8.0, "load": 16.0 + 32.0 + 64.0}
    for version in (1, 2):  # nothing of the push before
        sent = pushing.push(version)
        assert sent.seconds == expected and len(sent.digest) == 16 and sent.num_bytes == (2 if adapter else 2 * 12)
    assert set(sent.seconds) <= set(PARTS)
    spans = list(sent.spans(100.0))
    assert [span.name for span in spans] == [part for part in PARTS if part in expected]
    assert spans[0].begin == 100.0 and spans[-1].end == 100.0 + sum(expected.values())


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


class SilentLayers(Layers):
    def load_weights(self, weights: Any) -> None:  # type: ignore[override]
        super().load_weights(weights)


def test_a_model_that_does_not_say_what_it_loaded_is_refused() -> None:
    from cluster.weights.receiver import checked

    receiver: Any = checked(PlainReceiver)()  # type: ignore[arg-type]
    receiver.model = SilentLayers()
    receiver.start_weight_update()
    with pytest.raises(RuntimeError, match=r"found SilentLayers, which does not say what it has loaded, expected"):
        receiver.model.load_weights(list(SENT.items()))


@pytest.mark.parametrize("theirs", ["ab", "cd"])
def test_weights_flow_only_to_who_has_the_groups_secret(theirs: str) -> None:
    from cluster.weights.transports.gloo import broadcast, open_group

    door, weights = open_door("127.0.0.1"), [torch.arange(3.0), torch.zeros(3)]
    port = door.getsockname()[1]

    def take_part(rank: int) -> str:
        try:
            secret = ("ab", theirs)[rank]
            group = open_group("127.0.0.1", port, rank, 2, 120.0, secret, door if rank == 0 else None)
        except RuntimeError as error:
            return str(error)
        broadcast(group, weights[rank])
        return ""

    with ThreadPoolExecutor(2) as pool:
        told = list(pool.map(take_part, range(2)))
    if theirs == "ab":
        assert told == ["", ""] and weights[1].tolist() == [0, 1, 2]
    else:
        assert all("found no proof from rank" in said for said in told) and weights[1].tolist() == [0, 0, 0]


def test_ranks_meet_at_one_address_of_a_host() -> None:
    """torch's own would take connections at every address."""
    door, watch = open_door("127.0.0.1"), Watch()
    store = store_at("127.0.0.1", door.getsockname()[1], 60.0, door)
    visitor = store_at("127.0.0.1", store.port, 60.0)
    visitor.set("a", "b")
    assert store.get("a") == b"b"
    watch.look([psutil.Process()])
    assert {listener.reach for listener in watch.found()} == {"loopback"}


def test_over_nccl_workers_are_told_a_secret_and_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's ends meet by NCCL's own id, not in a store that anyone may write to. NCCL itself needs GPUs."""
    from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo

    from cluster.weights.transports import Meeting, nccl

    made, joined, told = bytes(range(128)), list[Any](), list[dict[str, Any]]()
    library = SimpleNamespace(ncclGetUniqueId=lambda: (ctypes.c_byte * 128).from_buffer_copy(made))
    monkeypatch.setattr(nccl, "NCCLLibrary", lambda: library)
    monkeypatch.setattr(nccl, "uid_init_process_group", lambda *group: joined.append(group))
    monkeypatch.setattr(nccl.torch.accelerator, "current_device_index", lambda: 0)
    client: Any = SimpleNamespace(init_weight_transfer_engine=told.append)
    for rank in (0, 1):
        nccl.sender(Meeting(rank, "10.0.0.1", 3, 60.0, 0), client, source=object())  # type: ignore[arg-type]
    assert joined == [(made, 0, 4, 0)]  # rank 1 of the learner only gathers
    (theirs,) = (NCCLWeightTransferInitInfo(**each) for each in told)
    assert theirs.nccl_unique_id_bytes == made and theirs.packed
    assert (theirs.rank_offset, theirs.world_size, theirs.master_address, theirs.master_port) == (1, 4, None, None)
