"""The GPUs of a machine as their driver knows them: asked of nvidia-smi, which comes with it."""

import os
import subprocess
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from xml.etree import ElementTree

from rollout.config import ALONE, EngineConfig

MIB, GIB = 1 << 20, 1 << 30
DEVICES = "CUDA_VISIBLE_DEVICES"
ORDER, AS_LISTED = "CUDA_DEVICE_ORDER", "PCI_BUS_ID"  # the numbers of nvidia-smi and of Ray; CUDA's own are by speed
SHARED_BY = "EDGE_OPD_RUNS_A_CARD"  # how many runs of a sweep share each card: the first leaves the others their part
FREE_SHARE = 0.95  # of the free memory of a card: what is left is CUDA's own, and what others take meanwhile
LEAST_SHARE = 0.02  # of a card: no engine starts with less, and a share of 0 is none: vLLM takes its own
ASK_S = 20.0  # a driver that is in trouble may never answer
FIELDS = ("index", "name", "memory.total", "memory.free", "driver_version", "compute_cap", "uuid")
NONE = ("-1", "NoDevFiles")  # after which CUDA sees no more of CUDA_VISIBLE_DEVICES
# The oldest driver of each of CUDA's major versions (NVIDIA's table of minor version compatibility).
OLDEST_DRIVER = {"11": "450.80.02", "12": "525.60.13", "13": "580.65.06"}
Ask = Callable[[Sequence[str]], str]  # nvidia-smi's arguments to what it prints; OSError where there is none


@dataclass(frozen=True)
class Card:
    """One GPU, or a MIG instance of one, whose index and holders are the whole GPU's. total and free: bytes. holders:
    ids of the processes that use it."""

    index: int
    name: str
    total: int
    free: int
    driver: str
    capability: tuple[int, int]
    holders: tuple[int, ...] = ()
    uuid: str = ""  # GPU-... or MIG-...


def nvidia_smi(arguments: Sequence[str]) -> str:
    """What it prints.

    Raises:
        OSError: there is none, it failed, or it does not answer.
    """
    try:
        done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=ASK_S, check=False)
    except subprocess.TimeoutExpired:
        raise OSError(f"nvidia-smi did not answer within {ASK_S:g} s") from None
    if done.returncode != 0:
        said = (done.stdout.strip() or done.stderr.strip()).splitlines() or [""]
        raise OSError(f"nvidia-smi ended with {done.returncode}: {said[0]}")
    return done.stdout


def find_cards(ask: Ask = nvidia_smi) -> list[Card]:
    """The machine's whose memory the driver tells: of one that shares the processor's, or is split into MIG instances,
    it says "[N/A]". None where there is no driver. OSError for a driver in trouble."""
    try:
        rows = _rows(ask)
    except FileNotFoundError:
        return []
    holders = _holders(ask, rows)
    return [_card(row, holders) for row in rows if row[2].isdigit() and row[3].isdigit()]


def find_instances(ask: Ask = nvidia_smi) -> list[Card]:
    """The MIG instances of the machine's GPUs, in the driver's order: `-L` has their names, `-q -x` their memory."""
    rows, told = _rows(ask), ElementTree.fromstring(ask(["-q", "-x"])).iter("gpu")
    holders, sizes = _holders(ask, rows), [[_mig_memory(device) for device in gpu.iter("mig_device")] for gpu in told]
    found: list[Card] = []
    for place, profile, uuid in _listed(ask):
        if profile and sizes[place]:
            total, free = sizes[place].pop(0)
            index, name, _, _, driver, capability, _ = rows[place]
            row = [index, f"{name} MIG {profile}", total, free, driver, capability, uuid]
            found += [_card(row, holders)] if total.isdigit() and free.isdigit() else []
    return found


def visible(cards: Sequence[Card], devices: str) -> list[Card]:
    """Those that CUDA_VISIBLE_DEVICES leaves, in its order, by number or by the UUID's first letters; all of them where
    it says nothing. What it names and nobody knows is left out."""
    if not devices.strip():
        return list(cards)
    named = ([card for card in cards if _is_called(card, part)] for part in parts_of(devices))
    return [found[0] for found in named if found]


def own_cards(left: Callable[[list[Card]], list[Card]] = list) -> list[Card]:
    """Those of this machine that this process may use, with no more of each than its part is.

    left: to what others have left of them.
    """
    devices, runs = os.environ.get(DEVICES, ""), int(os.environ.get(SHARED_BY, "1"))
    found = find_cards()
    found += find_instances() if "MIG-" in devices and found else []
    return [replace(card, free=min(card.free, card.total // runs)) for card in left(visible(found, devices))]


def settle_devices(environment: MutableMapping[str, str], ask: Ask = nvidia_smi) -> None:
    """Has CUDA_VISIBLE_DEVICES say in full what CUDA makes of it. CUDA takes the first letters of a UUID, which vLLM
    does not, and sees nothing from "-1" on, which Ray counts as a GPU. Numbers are nvidia-smi's, unless the user has
    set CUDA_DEVICE_ORDER.

    Raises:
        ValueError: a name that is no GPU's of this machine, or the beginning of several.
    """
    environment.setdefault(ORDER, AS_LISTED)
    if not environment.get(DEVICES):
        return
    parts = parts_of(environment[DEVICES])
    try:
        listed = [uuid for _, _, uuid in _listed(ask)] if not all(part.isdigit() for part in parts) else []
    except FileNotFoundError:  # no driver: nobody will look for a card
        return
    environment[DEVICES] = ",".join(part if part.isdigit() else _in_full(part, listed) for part in parts)


def parts_of(devices: str) -> list[str]:
    """The names in CUDA_VISIBLE_DEVICES as far as CUDA reads them."""
    return list(takewhile(lambda part: part not in NONE, (part.strip() for part in devices.split(",") if part.strip())))


def _is_called(card: Card, part: str) -> bool:
    is_whole = not card.uuid.startswith("MIG-")
    return is_whole and card.index == int(part) if part.isdigit() else bool(card.uuid) and card.uuid.startswith(part)


def _in_full(part: str, listed: Sequence[str]) -> str:
    found = [part] if part in listed else [uuid for uuid in listed if uuid.startswith(part)]
    if len(found) != 1:
        what = f"begins the UUIDs of {len(found)} GPUs" if found else "is no GPU of this machine"
        expected = "expected numbers or UUIDs that `nvidia-smi -L` lists"
        raise ValueError(f"CUDA_VISIBLE_DEVICES: found {part}, which {what}; {expected}")
    return found[0]


def _listed(ask: Ask) -> Iterator[tuple[int, str, str]]:
    """(place of the GPU, profile of the MIG instance or "", UUID), in the driver's order."""
    place = -1
    for line in ask(["-L"]).splitlines():
        uuid = line.rpartition("(UUID: ")[2].rstrip(") ")
        if line.startswith("GPU"):
            place += 1
            yield place, "", uuid
        elif uuid.startswith("MIG-"):
            yield place, line.split()[1], uuid


def _mig_memory(device: ElementTree.Element) -> tuple[str, str]:
    """MiB, total and free."""
    total, free = (device.findtext(f"fb_memory_usage/{kind}", "").split() for kind in ("total", "free"))
    return (total or [""])[0], (free or [""])[0]


def _rows(ask: Ask) -> list[list[str]]:
    """Each GPU's `FIELDS`."""
    lines = ask([f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]).splitlines()
    return [[part.strip() for part in line.split(",")] for line in lines if line.strip()]


def beside_others(config: EngineConfig, cards: Sequence[Card]) -> EngineConfig:
    """With a share of its cards that nothing else has, where the recipe names none: an engine refuses to start where
    less is free than its share.

    Raises:
        ValueError: others leave next to nothing of a card.
    """
    if config.gpu_memory_utilization or not cards:
        return config
    card = min(cards[: config.tensor_parallel_size], key=lambda card: card.free / card.total)
    share = round(min(ALONE, FREE_SHARE * (card.free / card.total)), 3)
    if share < LEAST_SHARE:
        raise ValueError(
            f"placement: asked a share of GPU {card.index} for an engine, found {card.free / GIB:.1f} of "
            f"{card.total / GIB:.1f} GiB free{held_by(card)}; expected a card of its own: end the other run, or "
            "choose a card with CUDA_VISIBLE_DEVICES"
        )
    return replace(config, gpu_memory_utilization=share)


def held_by(card: Card) -> str:
    """For a message on what others have of it."""
    return f", held by process {', '.join(map(str, card.holders))}" if card.holders else ""


def _card(row: Sequence[str], holders: dict[int, tuple[int, ...]]) -> Card:
    index, name, total, free, driver, capability, uuid = row
    major, _, minor = capability.partition(".")
    memory = (int(total) * MIB, int(free) * MIB)
    return Card(int(index), name, *memory, driver, (int(major), int(minor or 0)), holders.get(int(index), ()), uuid)


def _holders(ask: Ask, rows: Sequence[Sequence[str]]) -> dict[int, tuple[int, ...]]:
    """Process ids by card; none where a container hides them."""
    numbered = {row[-1]: int(row[0]) for row in rows}
    found: dict[int, tuple[int, ...]] = {}
    for line in ask(["--query-compute-apps=gpu_uuid,pid", "--format=csv,noheader"]).splitlines():
        uuid, _, pid = line.partition(", ")
        if uuid in numbered and pid.strip().isdigit():
            card = numbered[uuid]
            found[card] = (*found.get(card, ()), int(pid))
    return found


def driver_problem(driver: str, cuda: str | None) -> str:
    """What is wrong with a driver for a torch that was built with that CUDA; "" for nothing."""
    oldest = OLDEST_DRIVER.get((cuda or "").partition(".")[0])
    if oldest is None or _numbers(driver) >= _numbers(oldest):
        return ""
    return f"GPU driver: found {driver}, expected at least {oldest}, which CUDA {cuda} of this torch needs: update it"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
