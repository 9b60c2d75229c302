"""What a process computes with: the cores that affinity and its control group leave it, and their instructions."""

import os
from collections.abc import Iterator
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# Flags of which one is enough for products of bfloat16 matrices. AVX-512 has none for them before its last extension,
# but oneDNN, which multiplies for torch and vLLM, has kernels for any; of other x86 processors it has none.
BFLOAT16 = frozenset({"avx512bw", "avx512_bf16", "amx_bf16", "bf16"})


def num_cores(root: Path = Path("/")) -> int:
    """Cores that this process may keep busy, at least 1: those it may run on, or its quota of time where that is less.

    `os.cpu_count()` is the machine's number, whatever a scheduler or a container gave the job. A part of a core does
    not count: a thread more than the quota stands still for a while in each period.

    Args:
        root: where /proc and /sys are.
    """
    return max(1, min(len(os.sched_getaffinity(0)), *(int(quota) for quota in _quotas(root))))


def _quotas(root: Path) -> Iterator[float]:
    """Cores' worth of time that each control group above this process allows, those of both versions; at least one."""
    yield float(os.cpu_count() or 1)
    memberships = root / "proc/self/cgroup"
    for line in memberships.read_text().splitlines() if memberships.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            for group in _upwards(root / "sys/fs/cgroup", path):
                quota, *period = _read(group / "cpu.max").split()
                yield from _share(quota, *period)
        elif "cpu" in controllers.split(","):
            for group in _upwards(root / "sys/fs/cgroup/cpu", path):
                yield from _share(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """The group and those above it; within a container only the uppermost, its own, may be seen."""
    group = mount / path.lstrip("/")
    yield group
    yield from (parent for parent in group.parents if parent.is_relative_to(mount))


def _read(file: Path) -> str:
    return file.read_text().strip() if file.is_file() else "max"


def _share(quota: str, period: str = "100000") -> Iterator[float]:
    if quota not in ("max", "-1"):
        yield int(quota) / int(period)


def cpu_flags(path: Path = CPUINFO) -> frozenset[str]:
    """The first processor's feature flags; empty where the system does not tell."""
    return frozenset((cpu_fact("flags", path) or cpu_fact("Features", path)).split())


def cpu_fact(name: str, path: Path = CPUINFO) -> str:
    """What the system says of its first processor; empty where it does not tell."""
    for line in path.read_text().splitlines() if path.is_file() else []:
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def has_bfloat16(flags: frozenset[str]) -> bool:
    """Whether a processor with these flags has kernels for products of bfloat16 matrices; yes where it does not tell.

    Without them torch multiplies number by number: on AVX2, 6 times as slowly as float32 matrices, and 60 times where
    neither is transposed, as in a backward pass (tests/bench/bfloat16_products.py).
    """
    return not flags or bool(flags & BFLOAT16)
