"""How processes of one run find each other: at a port of one address, with proof that each one belongs.

torch's store asks for nothing, nor do gloo and NCCL: whoever reaches their ports can take a place in a group. So its
members first prove, over the group itself, that they have its secret, which came to them by a channel that asks for a
token. What is sent afterwards is not encrypted.
"""

import hashlib
import hmac
import secrets
import socket
from collections.abc import Callable
from datetime import timedelta

import torch
from torch import Tensor
from torch.distributed import TCPStore

SIZE = hashlib.sha256().digest_size
Gather = Callable[[Tensor], list[Tensor]]  # a collective: uint8 [SIZE] of this member -> that of each, by rank


def new_secret() -> str:
    """For one group, to be handed to its members."""
    return secrets.token_hex(SIZE)


def store_at(address: str, port: int, timeout_s: float, door: socket.socket | None = None) -> TCPStore:
    """A store at that port of one address. door: of who owns the store, a socket that listens there and is given away;
    without one torch's would listen at every address of the host."""
    return TCPStore(
        address, port, is_master=door is not None, timeout=timedelta(seconds=timeout_s), wait_for_workers=False,
        master_listen_fd=door.detach() if door is not None else None,
    )  # fmt: skip


def join(rank: int, size: int, store: TCPStore, secret: str, device: torch.device, timeout_s: float) -> None:
    """torch's default group, of members that have the secret. device: of this rank's tensors. timeout_s: of each
    collective, longer than anything that one rank may do while the others wait for it.

    Raises:
        RuntimeError: names a rank that does not have it.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        "nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=size,
        timeout=timedelta(seconds=timeout_s), device_id=device if on_gpu else None,
    )  # fmt: skip

    def gather(own: Tensor) -> list[Tensor]:
        every = [torch.empty_like(own, device=device) for _ in range(size)]
        torch.distributed.all_gather(every, own.to(device))
        return every

    prove(secret, rank, gather)


def prove(secret: str, rank: int, gather: Gather) -> None:
    """Every member of a group calls it with its rank, before anything else goes through the group.

    Raises:
        RuntimeError: names the ranks that do not have the secret.
    """
    said = b"".join(_bytes(each) for each in gather(_tensor(secrets.token_bytes(SIZE))))
    proofs = gather(_tensor(_proof(secret, rank, said)))
    strangers = [
        str(other)
        for other, proof in enumerate(proofs)
        if not hmac.compare_digest(_bytes(proof), _proof(secret, other, said))
    ]
    if strangers:
        raise RuntimeError(
            f"rendezvous: found no proof from rank {', '.join(strangers)} of {len(proofs)} that it belongs to this "
            "run, expected one from each: another process may have taken its place"
        )


def _proof(secret: str, rank: int, said: bytes) -> bytes:
    """What only who has the secret can say of the random bytes that every member has just said."""
    return hmac.digest(bytes.fromhex(secret), rank.to_bytes(4, "big") + said, "sha256")


def _tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.tolist())
