"""What this machine has: memory, disk, processor, accelerators."""

import os
import platform
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from cluster.builds import CPU, installed
from rollout.cores import cpu_fact, num_cores

GIB = 1024**3


@dataclass(frozen=True)
class Accelerator:
    """One GPU as torch sees it."""

    name: str
    memory_gib: float
    capability: tuple[int, int]


def memory_gib() -> float:
    """The machine's memory, or the container's limit where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return (total if text == "max" else min(total, int(text))) / GIB


def free_gib(path: Path) -> float:
    """Free space at a path, or at its nearest parent that exists."""
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free / GIB


def find_accelerators() -> list[Accelerator]:
    """The GPUs that torch sees; none where torch is not installed, or built for CPUs, which needs no import."""
    if installed("torch").endswith(CPU):
        return []
    try:
        import torch
    except ImportError:
        return []
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [Accelerator(d.name, d.total_memory / GIB, (d.major, d.minor)) for d in devices]


def machine_name() -> str:
    """This machine's accelerators, or its processor, with their number."""
    names = [device.name for device in find_accelerators()]
    if names:
        return ", ".join(f"{count} x {name}" for name, count in Counter(names).items())
    return f"{num_cores()} x {cpu_fact('model name') or platform.machine()}"
