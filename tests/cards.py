"""Invented GPUs: a driver that answers as nvidia-smi does."""

from collections.abc import Callable, Sequence

from cluster.sizing.cards import Card

GIB = 1 << 30
DRIVER = "580.95.05"


def card(gib: float = 80.0, free: float | None = None, **told: object) -> Card:
    """One of that many GiB."""
    settings = {"index": 0, "name": "NVIDIA H100 80GB HBM3", "driver": DRIVER, "capability": (9, 0)} | told
    return Card(total=int(gib * GIB), free=int((gib - 0.5 if free is None else free) * GIB), **settings)  # type: ignore[arg-type]


def smi(*cards: Card) -> Callable[[Sequence[str]], str]:
    """nvidia-smi of a machine with these; its answers are laid out as those of driver 580."""

    def ask(arguments: Sequence[str]) -> str:
        query = arguments[0]
        lines = []
        for one in cards:
            capability = ".".join(map(str, one.capability))
            if query.startswith("--query-compute-apps"):
                lines += [f"GPU-{one.index}-uuid, {pid}" for pid in one.holders]
            elif "uuid" in query:
                lines.append(f"{one.index}, GPU-{one.index}-uuid")
            else:
                fields = (one.index, one.name, one.total >> 20, one.free >> 20, one.driver, capability)
                lines.append(", ".join(map(str, fields)))
        return "".join(f"{line}\n" for line in lines)

    return ask


def no_smi(arguments: Sequence[str]) -> str:
    """A machine without a driver."""
    raise FileNotFoundError(2, "No such file or directory", "nvidia-smi")
