"""What `learner.deepspeed_quirks` works around, in DeepSpeed as it is. A test that fails names a work-around that an
upgrade has made wrong or needless. Two launches, of one rank and of two, ask everything (deepspeed_contract_process).
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import deepspeed
import pytest
from torch.utils.file_baton import FileBaton

from tests.deepspeed_contract_process import SIZE
from tests.ranks import launch_ranks
from tests.runs import free_port


def asked(num_ranks: int, folder: Path) -> list[dict[str, Any]]:
    return launch_ranks("tests.deepspeed_contract_process", folder, num_ranks, free_port(), folder)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return asked(1, tmp_path_factory.mktemp("alone"))[0]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return asked(2, tmp_path_factory.mktemp("pair"))


def test_the_version_is_the_one_that_was_seen() -> None:
    assert deepspeed.__version__.split("+")[0] == "0.19.8"


def test_zero_0_in_bfloat16_and_it_alone_takes_a_step_as_it_starts(alone: dict[str, Any]) -> None:
    assert {kind for kind, steps in alone["first_step"].items() if steps} == {"0-bfloat16"}
    assert alone["first_step"]["0-bfloat16"] == [1.0]


def test_bfloat16_masters_are_a_second_copy_of_the_weights(alone: dict[str, Any]) -> None:
    assert alone["bfloat16_masters"] == {1: True, 2: True}


def test_the_device_is_waited_for_before_each_forward_pass_to_time_it(alone: dict[str, Any]) -> None:
    assert alone["timed"]["theirs"] >= 1 and alone["timed"]["ours"] == 0


@pytest.mark.parametrize("kind", ["0-bfloat16", "1-float32", "1-bfloat16", "2-bfloat16"])
def test_a_step_whose_norm_is_not_finite_is_skipped_in_silence(alone: dict[str, Any], kind: str) -> None:
    assert alone["non_finite"][kind] == (float("inf"), False, True)  # no exception, and no weight moved


def test_zero_0_in_float32_takes_such_a_step(alone: dict[str, Any]) -> None:
    assert alone["non_finite"]["0-float32"] == (None, True, False)


def test_zero_0_in_float32_keeps_no_norm(alone: dict[str, Any]) -> None:
    exact = dict.fromkeys(("0-bfloat16", "1-float32", "1-bfloat16"), pytest.approx(SIZE, rel=1e-3))
    assert alone["kept_norm"] == {"0-float32": None} | exact


def test_zero_0_in_bfloat16_cannot_add_up_in_float32(alone: dict[str, Any]) -> None:
    told = alone["accumulation"]
    assert told[0].startswith("NotImplementedError: unsupported mix") and (told[1], told[2]) == ("", "")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_checkpoint_is_read_as_tensors_and_comes_back(alone: dict[str, Any], stage: int) -> None:
    """It would be read as a pickle that may make anything, which torch is told to refuse."""
    assert alone["guarded_load"][stage] == (True, 1, {"1"}, ["save", "load"])


def test_the_shape_of_a_sharded_parameter_is_0_and_ds_shape_the_full_one(pair: list[dict[str, Any]]) -> None:
    for rank in pair:
        assert rank["shapes"] == {"shape": (0,), "ds_shape": (SIZE, SIZE)}


def test_the_shared_memory_of_cpu_collectives_is_named_and_large(pair: list[dict[str, Any]]) -> None:
    for rank in pair:
        assert rank["shared_memory"]["there"] and rank["shared_memory"]["bytes"] > 50e6


def test_latest_is_written_before_the_other_ranks_files(pair: list[dict[str, Any]]) -> None:
    """By DeepSpeed; `save_checkpoint` leaves that to the driver."""
    assert pair[1]["latest"]["theirs"] == ([True], True)
    assert pair[1]["latest"]["ours"] == ([False], False)


def test_torchs_build_lock_outlives_its_process(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    code = (
        f"from torch.utils.file_baton import FileBaton; import os; FileBaton({str(lock)!r}).try_acquire(); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code], timeout=300, check=False)
    assert lock.exists() and not FileBaton(str(lock)).try_acquire()
