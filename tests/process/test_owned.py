"""A checkpoint that others may write to is refused, before anything of it is read."""

import grp
import os
import pwd
from pathlib import Path
from types import SimpleNamespace

import pytest

from learner.owned import require_own

OTHER = 12345


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints" / "step-000002"
    folder.mkdir(parents=True, mode=0o755)
    for name in ("complete.json", "mp_rank_00_model_states.pt"):
        (folder / name).write_text("x")
        (folder / name).chmod(0o644)
    for path in (folder, folder.parent):
        path.chmod(0o755)
    return folder


def test_ones_own_checkpoint_is_taken(checkpoint: Path, tmp_path: Path) -> None:
    require_own(checkpoint)
    (tmp_path / "elsewhere").symlink_to(checkpoint.parent)
    require_own(tmp_path / "elsewhere")  # another disk
    for path in (checkpoint, checkpoint.parent):
        path.chmod(0o500)
    require_own(checkpoint)


@pytest.mark.parametrize("place", [".", "complete.json", "mp_rank_00_model_states.pt"])
@pytest.mark.parametrize("mode", [0o777, 0o757])
def test_a_checkpoint_that_others_may_write_to_is_refused(checkpoint: Path, place: str, mode: int) -> None:
    path = (checkpoint / place).resolve()
    path.chmod(mode)
    with pytest.raises(ValueError, match=rf"^{path}: found mode 0{mode:o}, expected a checkpoint that nobody else"):
        require_own(checkpoint)


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's file needs root")
@pytest.mark.parametrize("place", [".", "complete.json"])
def test_a_checkpoint_of_another_user_is_refused(checkpoint: Path, place: str) -> None:
    path = (checkpoint / place).resolve()
    os.chown(path, OTHER, OTHER)
    with pytest.raises(ValueError, match=rf"^{path}: found a file of user {OTHER}, expected"):
        require_own(checkpoint)


def test_a_link_in_a_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs.pt").write_text("x")
    (checkpoint / "zero_pp_rank_0_mp_rank_00_optim_states.pt").symlink_to(tmp_path / "theirs.pt")
    with pytest.raises(ValueError, match=r"optim_states\.pt: found a link, expected"):
        require_own(checkpoint)


@pytest.mark.parametrize(
    ("name", "members", "is_alone"),
    [("me", [], True), ("me", ["me"], True), ("me", ["you"], False), ("all", [], False)],
)
def test_a_group_that_a_user_has_alone_may_write(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, name: str, members: list[str], is_alone: bool
) -> None:
    (checkpoint / "complete.json").chmod(0o664)
    gid = (checkpoint / "complete.json").stat().st_gid
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name="me", pw_gid=gid))
    monkeypatch.setattr(grp, "getgrgid", lambda found: SimpleNamespace(gr_name=name, gr_mem=members))
    if is_alone:
        require_own(checkpoint)
        return
    with pytest.raises(ValueError, match=r"complete\.json: found mode 0664, expected"):
        require_own(checkpoint)
