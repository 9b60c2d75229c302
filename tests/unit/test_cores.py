"""Cores of the job, not of the machine: affinity and the quotas of both versions of control groups. And what they have
instructions for."""

import os
from pathlib import Path

import pytest

from rollout.cores import cpu_flags, has_bfloat16, num_cores

MOUNT = "sys/fs/cgroup"
# what the process is in, and the files that its groups have
V2_QUOTA = ("0::/job", {f"{MOUNT}/job/cpu.max": "450000 100000\n"})
V2_FREE = ("0::/job", {f"{MOUNT}/job/cpu.max": "max 100000\n"})
V2_PARENT = ("0::/a/b", {f"{MOUNT}/a/b/cpu.max": "max 100000", f"{MOUNT}/a/cpu.max": "300000 50000"})
V2_CONTAINER = ("0::/", {f"{MOUNT}/cpu.max": "200000 100000"})
V2_PART = ("0::/job", {f"{MOUNT}/job/cpu.max": "50000 100000"})
V1_QUOTA = (
    "9:memory:/m\n4:cpu,cpuacct:/slurm/job_7\n0::/",
    {f"{MOUNT}/cpu/slurm/job_7/cpu.cfs_quota_us": "300000\n", f"{MOUNT}/cpu/slurm/job_7/cpu.cfs_period_us": "100000\n"},
)
V1_FREE = (
    "4:cpu,cpuacct:/job",
    {f"{MOUNT}/cpu/job/cpu.cfs_quota_us": "-1\n", f"{MOUNT}/cpu/job/cpu.cfs_period_us": "100000\n"},
)
V1_CONTAINER = (  # the host's path, of which a container sees the end only, as its root
    "4:cpu,cpuacct:/docker/0123",
    {f"{MOUNT}/cpu/cpu.cfs_quota_us": "500000", f"{MOUNT}/cpu/cpu.cfs_period_us": "100000"},
)


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (V2_QUOTA, 4), (V2_FREE, 8), (V2_PARENT, 6), (V2_CONTAINER, 2), (V2_PART, 1),
        (V1_QUOTA, 3), (V1_FREE, 8), (V1_CONTAINER, 5),
    ],
)  # fmt: skip
def test_a_quota_of_time_counts(
    group: tuple[str, dict[str, str]], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    memberships, files = group
    for name, content in {"proc/self/cgroup": memberships, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert num_cores(tmp_path) == expected


def test_affinity_counts_on_this_machine() -> None:
    mine = os.sched_getaffinity(0)
    assert 1 <= num_cores() <= len(mine)
    os.sched_setaffinity(0, {min(mine)})
    try:
        assert num_cores() == 1
    finally:
        os.sched_setaffinity(0, mine)


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (
            "processor\t: 0\nflags\t\t: fpu avx2 amx_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n",
            {"fpu", "avx2", "amx_bf16"},
        ),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", {"fp", "asimd", "bf16"}),
        ("nothing here\n", set()),
    ],
)
def test_cpu_flags_are_the_first_processors(tmp_path: Path, text: str, flags: set[str]) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_flags(tmp_path / "cpuinfo") == flags
    assert cpu_flags(tmp_path / "missing") == frozenset()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx2", "fma"}, False),
        ({"avx2", "avx512f", "avx512bw"}, True),
        ({"avx2", "avx512bw", "avx512_bf16", "amx_bf16"}, True),
        ({"fp", "asimd"}, False),
        ({"fp", "asimd", "bf16"}, True),
        (set(), True),  # a system that does not tell
    ],
)
def test_kernels_for_bfloat16(flags: set[str], expected: bool) -> None:
    assert has_bfloat16(frozenset(flags)) is expected
