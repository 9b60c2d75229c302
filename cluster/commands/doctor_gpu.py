"""`edge-opd doctor --gpu`: the cards, their driver, how they reach each other, and what a run would use of it."""

import resource
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from cluster.commands.doctor import BF16_CAPABILITY, SHARED_MEMORY, Finding, check_room
from cluster.machine import GIB
from cluster.sizing.cards import Card, driver_problem, find_cards

FLASH_CAPABILITY = (8, 0)  # of torch's and vLLM's flash attention 2; 3 is for 9.0
BUSY = 0.05  # the share of a card that other processes may hold before that is worth a word
NCCL_SHM_GIB = 1.0  # for each card of a host, where cards do not reach each other


@dataclass(frozen=True)
class Stack:
    """What this environment's torch says. reaches: pairs of cards between which peer access works."""

    torch: str
    cuda: str | None  # that torch was built with; None for a CPU build
    seen: int  # cards
    nccl: str  # version; "" without it
    has_varlen: bool
    reaches: frozenset[tuple[int, int]] = frozenset()


def installed_stack() -> Stack:
    """Of this process; starts CUDA on every card that torch sees."""
    import torch

    seen = torch.cuda.device_count()
    pairs = [(one, other) for one in range(seen) for other in range(seen) if one != other]
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if seen and torch.distributed.is_nccl_available() else ""
    return Stack(
        torch=str(torch.__version__),
        cuda=torch.version.cuda,
        seen=seen,
        nccl=nccl,
        has_varlen=find_spec("torch.nn.attention.varlen") is not None,
        reaches=frozenset(pair for pair in pairs if torch.cuda.can_device_access_peer(*pair)),
    )


def gpu_findings(
    ask_cards: Callable[[], list[Card]] = find_cards,
    ask_stack: Callable[[], Stack] = installed_stack,
    shm_gib: Callable[[], float] = lambda: shutil.disk_usage(SHARED_MEMORY).total / GIB,
    locked: Callable[[], float] = lambda: resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
) -> list[Finding]:
    """Each line of the report; without a card one that says so, which is a problem: somebody asked for it."""
    try:
        cards = ask_cards()
    except OSError as error:
        return [Finding(f"GPU driver: {error}", is_problem=True)]
    if not cards:
        text = "GPUs: found none: no nvidia-smi on PATH, or one that reports no GPU's memory, expected an NVIDIA driver"
        return [Finding(text, is_problem=True)]
    stack = ask_stack()
    return [
        *check_driver(cards, stack),
        *(line for card in cards for line in check_card(card)),
        check_peers(len(cards), stack),
        check_nccl(len(cards), stack),
        check_attention(cards, stack),
        *check_limits(len(cards), shm_gib() if len(cards) > 1 else 0.0, locked()),
    ]


def check_driver(cards: Sequence[Card], stack: Stack) -> list[Finding]:
    """The driver against the CUDA of torch, and whether torch sees what the driver has."""
    driver = cards[0].driver
    built = f"CUDA {stack.cuda}" if stack.cuda else "no CUDA"
    if stack.cuda is None:
        text = f"torch {stack.torch} was built with no CUDA: expected the GPU build (make setup DEVICE=cuda)"
        return [Finding(f"GPU driver: {driver}"), Finding(text, is_problem=True)]
    if problem := driver_problem(driver, stack.cuda):
        return [Finding(problem, is_problem=True)]
    found = [Finding(f"GPU driver: {driver}; torch {stack.torch} with {built}")]
    if stack.seen < len(cards):
        text = f"torch sees {stack.seen} of the driver's {len(cards)} GPUs: look at CUDA_VISIBLE_DEVICES"
        found.append(Finding(text, is_problem=stack.seen == 0))
    return found


def check_card(card: Card) -> list[Finding]:
    """Its memory, who holds it, and its compute capability."""
    major, minor = card.capability
    text = (
        f"GPU {card.index}: {card.name}, {card.free / GIB:.1f} of {card.total / GIB:.1f} GiB free, compute capability "
        f"{major}.{minor}"
    )
    found = [Finding(text)]
    if card.capability < BF16_CAPABILITY:
        found.append(Finding(f"{text}: no bfloat16 there, expected 8.0 or more", is_problem=True))
    if card.total - card.free > BUSY * card.total:
        held = f" by process {', '.join(map(str, card.holders))}" if card.holders else ""
        found.append(Finding(f"GPU {card.index}: {(card.total - card.free) / GIB:.1f} GiB are held{held}", True))
    return found


def check_peers(number: int, stack: Stack) -> Finding:
    """Whether cards reach each other's memory: NCCL then needs no detour through the host's."""
    if number == 1:
        return Finding("peer access: one GPU, weights travel by CUDA IPC")
    pairs = {(one, other) for one in range(stack.seen) for other in range(stack.seen) if one != other}
    missing = sorted(pairs - stack.reaches)
    if not missing:
        return Finding(f"peer access: between all {number} GPUs")
    listed = ", ".join(f"{one} to {other}" for one, other in missing[:4]) + (", ..." if len(missing) > 4 else "")
    return Finding(f"peer access: none from {listed}: NCCL goes through shared memory, so pushes are slower")


def check_nccl(number: int, stack: Stack) -> Finding:
    """What weights and gradients travel by between GPUs."""
    if stack.nccl:
        return Finding(f"NCCL: {stack.nccl}")
    is_needed = number > 1 and stack.seen > 1
    return Finding(f"NCCL: torch {stack.torch} has none, expected it for {number} GPUs", is_problem=is_needed)


def check_attention(cards: Sequence[Card], stack: Stack) -> Finding:
    """What the learner's attention will be."""
    oldest = min(card.capability for card in cards)
    if stack.has_varlen and oldest >= FLASH_CAPABILITY:
        return Finding("learner's attention: flash attention over rows of unequal length (torch), in bfloat16")
    why = "torch lacks it" if not stack.has_varlen else f"compute capability {'.'.join(map(str, oldest))}"
    return Finding(f"learner's attention: no flash attention ({why}), expected 8.0 or more", is_problem=True)


def check_limits(number: int, shm_gib: float, locked: float) -> list[Finding]:
    """Shared memory, which NCCL needs where cards do not reach each other, and memory that may be locked."""
    found = []
    if number > 1:
        room = check_room(f"shared memory {SHARED_MEMORY} for {number} GPUs", shm_gib, number * NCCL_SHM_GIB)
        found.append(Finding(f"{room.text} (in a container: --shm-size={number}g)", True) if room.is_problem else room)
    unlimited = locked == resource.RLIM_INFINITY
    amount = "unlimited" if unlimited else f"{locked / GIB:.2f} GiB"
    few = not unlimited and locked < GIB
    hint = ": InfiniBand wants it unlimited (in a container: --ulimit memlock=-1)" if few else ""
    return [*found, Finding(f"memory that may be locked: {amount}{hint}")]
