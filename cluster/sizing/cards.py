"""The GPUs of a machine as their driver knows them: asked of nvidia-smi, which comes with it."""

import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rollout.config import ALONE, EngineConfig

MIB = 1 << 20
DEVICES = "CUDA_VISIBLE_DEVICES"
SHARED_BY = "EDGE_OPD_RUNS_A_CARD"  # how many runs of a sweep share each card: none sees yet what the others will take
FREE_SHARE = 0.95  # of the free memory of a card: what is left is CUDA's own, and what others take meanwhile
ASK_S = 20.0  # a driver that is in trouble may never answer
FIELDS = ("index", "name", "memory.total", "memory.free", "driver_version", "compute_cap")
# The oldest driver of each of CUDA's major versions (NVIDIA's table of minor version compatibility).
OLDEST_DRIVER = {"11": "450.80.02", "12": "525.60.13", "13": "580.65.06"}
Ask = Callable[[Sequence[str]], str]  # nvidia-smi's arguments to what it prints; OSError where there is none


@dataclass(frozen=True)
class Card:
    """One GPU. total and free: bytes. holders: ids of the processes that use it."""

    index: int
    name: str
    total: int
    free: int
    driver: str
    capability: tuple[int, int]
    holders: tuple[int, ...] = ()


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
    """The machine's whose memory the driver tells: of one that shares the processor's it says "[N/A]". None where there
    is no driver. OSError for a driver in trouble."""
    try:
        lines = ask([f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]).splitlines()
    except FileNotFoundError:
        return []
    holders = _holders(ask)
    found = ([part.strip() for part in line.split(",")] for line in lines if line.strip())
    return [_card(fields, holders) for fields in found if fields[2].isdigit() and fields[3].isdigit()]


def visible(cards: Sequence[Card], devices: str) -> list[Card]:
    """Those that CUDA_VISIBLE_DEVICES leaves; all of them where it says nothing, or not by numbers."""
    numbers = [part.strip() for part in devices.split(",") if part.strip()]
    named = bool(numbers) and all(part.isdigit() for part in numbers)
    return [card for card in cards if not named or str(card.index) in numbers]


def own_cards() -> list[Card]:
    """Those of this machine that this process may use, with no more of each than its part is."""
    runs = int(os.environ.get(SHARED_BY, "1"))
    mine = visible(find_cards(), os.environ.get(DEVICES, ""))
    return [replace(card, free=min(card.free, card.total // runs)) for card in mine]


def beside_others(config: EngineConfig, cards: Sequence[Card]) -> EngineConfig:
    """With a share of its cards that nothing else has, where the recipe names none: an engine refuses to start where
    less is free than its share."""
    if config.gpu_memory_utilization or not cards:
        return config
    free = min(card.free / card.total for card in cards[: config.tensor_parallel_size])
    return replace(config, gpu_memory_utilization=round(min(ALONE, FREE_SHARE * free), 3))


def _card(fields: Sequence[str], holders: dict[int, tuple[int, ...]]) -> Card:
    index, name, total, free, driver, capability = fields
    major, _, minor = capability.partition(".")
    memory = (int(total) * MIB, int(free) * MIB)
    return Card(int(index), name, *memory, driver, (int(major), int(minor or 0)), holders.get(int(index), ()))


def _holders(ask: Ask) -> dict[int, tuple[int, ...]]:
    """Process ids by card; none where a container hides them."""
    listed = ask(["--query-gpu=index,uuid", "--format=csv,noheader"]).splitlines()
    numbered = {uuid.strip(): int(index) for index, _, uuid in (line.partition(",") for line in listed) if uuid}
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
