"""A checkpoint is read as tensors and plain values: nothing in it is run."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("DS_ACCELERATOR", "cpu")
from learner.deepspeed_quirks import TENSORS_ONLY, checkpoint_state, guarded


class Harmless:
    """Leaves a mark where a pickle of it is made into an object."""

    def __init__(self, mark: Path) -> None:
        self._mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self._mark,)


def checkpoint(folder: Path, **more: Any) -> Path:
    step = folder / "step-000001"
    step.mkdir(parents=True)
    torch.save({"module": {"weight": torch.ones(2)}, **more}, step / "mp_rank_00_model_states.pt")
    os.chmod(step / "mp_rank_00_model_states.pt", 0o644)
    return step


def test_tensors_of_a_checkpoint_are_read(tmp_path: Path) -> None:
    assert checkpoint_state(checkpoint(tmp_path / "run"))["weight"].tolist() == [1, 1]
    assert os.environ[TENSORS_ONLY] == "0"


def test_what_else_is_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    mark, folder = tmp_path / "mark", checkpoint(tmp_path / "run", client_state=Harmless(tmp_path / "mark"))
    with pytest.raises(ValueError, match=r"step-000001: found .*mkdir.*, expected tensors and plain values"):
        checkpoint_state(folder)
    with pytest.raises(ValueError, match=r"expected tensors and plain values"):  # as DeepSpeed asks for it
        guarded(lambda place: torch.load(place / "mp_rank_00_model_states.pt", weights_only=False))(folder)
    assert not mark.exists()
    torch.load(folder / "mp_rank_00_model_states.pt", weights_only=False)
    assert mark.is_dir()  # it would have been


def test_a_checkpoint_that_others_may_write_to_is_not_read(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "run", client_state=Harmless(tmp_path / "mark"))
    folder.chmod(0o777)
    with pytest.raises(ValueError, match="found mode 0777, expected a checkpoint that nobody else may write to"):
        checkpoint_state(folder)
    assert not (tmp_path / "mark").exists()
