"""Invented GPUs: a driver that answers as nvidia-smi does, to a function and as a program."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.sizing.cards import Card

GIB = 1 << 30
DRIVER = "580.95.05"


def card(gib: float = 80.0, free: float | None = None, **told: object) -> Card:
    """One of that many GiB."""
    settings = {"index": 0, "name": "NVIDIA H100 80GB HBM3", "driver": DRIVER, "capability": (9, 0)} | told
    settings = {"uuid": f"GPU-{settings['index']}-uuid"} | settings
    return Card(total=int(gib * GIB), free=int((gib - 0.5 if free is None else free) * GIB), **settings)  # type: ignore[arg-type]


def smi(*cards: Card, instances: Sequence[Card] = ()) -> Callable[[Sequence[str]], str]:
    """nvidia-smi of a machine with these; its answers are laid out as those of driver 580.

    instances: of MIG, on the card with their index, the memory of which is then not told.
    """
    split = {one.index for one in instances}

    def ask(arguments: Sequence[str]) -> str:
        query = arguments[0]
        if query == "-q":
            return f"<nvidia_smi_log>{''.join(_xml(one, instances) for one in cards)}</nvidia_smi_log>"
        lines = []
        for one in cards:
            capability = ".".join(map(str, one.capability))
            if query == "-L":
                lines.append(f"GPU {one.index}: {one.name} (UUID: {one.uuid})")
                mine = [part for part in instances if part.index == one.index]
                lines += [f"  MIG 3g.40gb     Device  {place}: (UUID: {part.uuid})" for place, part in enumerate(mine)]
            elif query.startswith("--query-compute-apps"):
                lines += [f"{one.uuid}, {pid}" for pid in one.holders]
            else:
                memory = ("[N/A]", "[N/A]") if one.index in split else (one.total >> 20, one.free >> 20)
                fields = (one.index, one.name, *memory, one.driver, capability, one.uuid)
                lines.append(", ".join(map(str, fields)))
        return "".join(f"{line}\n" for line in lines)

    return ask


def smi_program(folder: Path, gib: float, free: float) -> None:
    """A file nvidia-smi of a machine with one card, for who has the folder in PATH and the project in PYTHONPATH."""
    program = folder / "nvidia-smi"
    made = f"print(smi(card({gib}, {free}))(sys.argv[1:]), end='')"
    program.write_text(f"#!{sys.executable}\nimport sys\nfrom tests.cards import card, smi\n{made}\n")
    program.chmod(0o755)


def _xml(card: Card, instances: Sequence[Card]) -> str:
    """Of `-q -x`, which has no UUID of an instance."""
    parts = "".join(
        f"<mig_device><fb_memory_usage><total>{one.total >> 20} MiB</total><free>{one.free >> 20} MiB</free>"
        "</fb_memory_usage></mig_device>"
        for one in instances
        if one.index == card.index
    )
    return f"<gpu><mig_devices>{parts or 'None'}</mig_devices></gpu>"


def no_smi(arguments: Sequence[str]) -> str:
    """A machine without a driver."""
    raise FileNotFoundError(2, "No such file or directory", "nvidia-smi")
