"""`edge-opd doctor --gpu` on invented machines."""

from dataclasses import replace

import pytest

from cluster.commands.doctor import Finding
from cluster.commands.doctor_gpu import Stack, check_limits, gpu_findings
from cluster.sizing.cards import Card, find_cards
from tests.cards import card, no_smi, smi

PAIR = frozenset({(0, 1), (1, 0)})
STACK = Stack("2.13.0+cu130", "13.0", seen=1, nccl="2.29.7", has_varlen=True)
PLENTY = -1  # RLIM_INFINITY


def found(*cards: Card, stack: Stack = STACK) -> list[Finding]:
    return gpu_findings(lambda: find_cards(smi(*cards)), lambda: stack, lambda: 64.0, lambda: PLENTY)


def problems(findings: list[Finding]) -> list[str]:
    return [finding.text for finding in findings if finding.is_problem]


def test_a_good_card_is_told_in_full() -> None:
    lines = found(card(80, 79.5))
    assert problems(lines) == []
    assert [line.text for line in lines] == [
        "GPU driver: 580.95.05; torch 2.13.0+cu130 with CUDA 13.0",
        "GPU 0: NVIDIA H100 80GB HBM3, 79.5 of 80.0 GiB free, compute capability 9.0",
        "peer access: one GPU, weights travel by CUDA IPC",
        "NCCL: 2.29.7",
        "learner's attention: flash attention over rows of unequal length (torch), in bfloat16",
        "memory that may be locked: unlimited",
    ]


def test_no_card_is_a_problem_of_one_line() -> None:
    (line,) = gpu_findings(lambda: find_cards(no_smi), lambda: STACK)
    assert line.is_problem and line.text.startswith("GPUs: found none: no nvidia-smi on PATH")
    assert line.text.endswith("expected an NVIDIA driver")


def test_a_driver_that_fails_is_one_line() -> None:
    def ask() -> list[Card]:
        raise OSError("nvidia-smi did not answer within 20 s")

    assert gpu_findings(ask, lambda: STACK) == [Finding("GPU driver: nvidia-smi did not answer within 20 s", True)]


@pytest.mark.parametrize(
    ("cards", "stack", "problem"),
    [
        (
            [card(driver="535.104.05")],
            STACK,
            "GPU driver: found 535.104.05, expected at least 580.65.06, which CUDA 13.0 of this torch needs: update it",
        ),
        (
            [card()],
            replace(STACK, torch="2.13.0+cpu", cuda=None),
            "torch 2.13.0+cpu was built with no CUDA: expected the GPU build (make setup DEVICE=cuda)",
        ),
        ([card()], replace(STACK, seen=0), "torch sees 0 of the driver's 1 GPUs: look at CUDA_VISIBLE_DEVICES"),
        ([card(80, 60, holders=(4321,))], STACK, "GPU 0: 20.0 GiB are held by process 4321"),
        (
            [card(16, name="Tesla T4", capability=(7, 5))],
            STACK,
            "GPU 0: Tesla T4, 15.5 of 16.0 GiB free, compute capability 7.5: no bfloat16 there, expected 8.0 or more",
        ),
        (
            [card()],
            replace(STACK, has_varlen=False),
            "learner's attention: no flash attention (torch lacks it), expected 8.0 or more",
        ),
        (
            [card(), card(index=1)],
            replace(STACK, seen=2, nccl="", reaches=PAIR),
            "NCCL: torch 2.13.0+cu130 has none, expected it for 2 GPUs",
        ),
    ],
    ids=["an old driver", "a CPU build", "hidden cards", "held", "old", "no kernel", "no NCCL"],
)
def test_what_is_wrong_is_one_line(cards: list[Card], stack: Stack, problem: str) -> None:
    assert problem in problems(found(*cards, stack=stack))


def test_two_cards_that_do_not_reach_each_other_go_through_shared_memory() -> None:
    cards = [card(), card(index=1)]
    reach, apart = (found(*cards, stack=replace(STACK, seen=2, reaches=reaches)) for reaches in (PAIR, frozenset()))
    assert "peer access: between all 2 GPUs" in [line.text for line in reach]
    text = "peer access: none from 0 to 1, 1 to 0: NCCL goes through shared memory, so pushes are slower"
    assert text in [line.text for line in apart]


def test_limits_of_a_container() -> None:
    few = check_limits(2, 0.0625, 64 << 10)
    assert problems(few) == [
        "shared memory /dev/shm for 2 GPUs: 0.1 GiB, expected at least 2.0 GiB (in a container: --shm-size=2g)"
    ]
    assert few[-1].text.startswith("memory that may be locked: 0.00 GiB: InfiniBand wants it unlimited")
    assert check_limits(1, 0.0, PLENTY) == [Finding("memory that may be locked: unlimited")]
