"""Installation without a network: a small wheelhouse, collected and installed from, and the ones that are refused.

The whole CPU lock has been installed from a wheelhouse in a network namespace without a network, by hand:
docs/cluster.md says how.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cluster.default_model import REQUIREMENT
from tests.runs import ROOT

SCRIPT = ROOT / "requirements" / "wheelhouse.py"
PYTHON = ".".join(platform.python_version_tuple()[:2])
LOCK = """\
a-lib[extra]==1.5
b.lib==2.0+local \\
    --hash=sha256:{hash}
"""


def wheel(folder: Path, name: str, version: str) -> Path:
    """A wheel of one empty module."""
    module, path = (
        name.replace("-", "_").replace(".", "_"),
        folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl",
    )
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    files = {
        f"{module}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nProvides-Extra: extra\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in (files | {f"{info}/RECORD": record}).items():
            archive.writestr(file, text)
    return path


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A folder that pip takes for its index."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name, version in (("a-lib", "1.5"), ("b.lib", "2.0"), REQUIREMENT.split("==")):
        wheel(folder, name, version)
    return folder


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "cpu.txt"
    path.write_text("a-lib[extra]==1.5\nb.lib==2.0\n")
    return path


def wheelhouse(
    act: str, lock: Path, folder: Path, index: Path, device: str = "cpu"
) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": os.devnull}
    command = [sys.executable, str(SCRIPT), act, str(lock), device, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)


def test_a_wheelhouse_has_every_package_and_the_default_model(index: Path, lock: Path, tmp_path: Path) -> None:
    folder = tmp_path / "house"
    done = wheelhouse("collect", lock, folder, index)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"wheelhouse: {folder}: 3 files, ")
    assert {path.suffix for path in folder.iterdir()} == {".whl", ".json"}
    assert wheelhouse("check", lock, folder, index).returncode == 0
    shutil.rmtree(index)
    environment = tmp_path / "environment"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(environment)]
    subprocess.run([*pip, "--find-links", str(folder), "-r", str(lock)], check=True, timeout=120)
    assert {path.name for path in environment.glob("*.py")} == {"a_lib.py", "b_lib.py"}


def test_collecting_again_fetches_what_is_missing(index: Path, lock: Path, tmp_path: Path) -> None:
    folder = tmp_path / "house"
    assert wheelhouse("collect", lock, folder, index).returncode == 0
    wheel(index, "c-lib", "3")
    lock.write_text(lock.read_text() + "c-lib==3\n")
    assert "found no c-lib==3, expected every package of" in wheelhouse("check", lock, folder, index).stderr
    assert wheelhouse("collect", lock, folder, index).returncode == 0
    assert (folder / "c_lib-3-py3-none-any.whl").is_file()


def test_a_package_that_cannot_be_fetched_leaves_no_finished_wheelhouse(
    index: Path, lock: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "house"
    lock.write_text(lock.read_text() + "d-lib==1\n")
    done = wheelhouse("collect", lock, folder, index)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "wheelhouse: pip could not fetch the lock: its words are above"
    assert "found no wheelhouse.json, expected a folder that" in wheelhouse("check", lock, folder, index).stderr


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("package", "found no b-lib==2.0, expected every package of "),
        ("model", f"found no {REQUIREMENT}, expected every package of "),
        ("version", "found no a-lib==1.5, expected every package of "),
        ("python", f"found a wheelhouse for Python 3.9, expected {PYTHON}: `make wheelhouse DEVICE=cpu PYTHON=...`"),
        ("device", "found a wheelhouse for DEVICE cuda, expected cpu: `make wheelhouse DEVICE=cpu PYTHON=...`"),
        ("unfinished", "found no wheelhouse.json, expected a folder that `make wheelhouse` has finished"),
    ],
)
def test_a_wheelhouse_that_does_not_fit_is_refused_in_one_line(
    index: Path, lock: Path, tmp_path: Path, damage: str, said: str
) -> None:
    folder = tmp_path / "house"
    assert wheelhouse("collect", lock, folder, index).returncode == 0
    about = folder / "wheelhouse.json"
    made = json.loads(about.read_text())
    if damage in ("package", "model"):
        next(folder.glob("b*lib*" if damage == "package" else "llm*")).unlink()
    elif damage == "version":
        next(folder.glob("a_lib*")).unlink()
        wheel(folder, "a-lib", "1.50")
    elif damage == "unfinished":
        about.unlink()
    else:
        about.write_text(json.dumps(made | {"python": {"python": "3.9"}, "device": {"device": "cuda"}}[damage]))
    done = wheelhouse("check", lock, folder, index)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"wheelhouse: {folder}: ") and said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_setup_refuses_a_wheelhouse_before_it_touches_anything(tmp_path: Path) -> None:
    """With the real script and the real lock, in a copy of what they read."""
    (tmp_path / "requirements").mkdir()
    for name in ("install.sh", "wheelhouse.py", "cpu.txt"):
        shutil.copy(ROOT / "requirements" / name, tmp_path / "requirements" / name)
    (tmp_path / "house").mkdir()
    command = ["bash", "requirements/install.sh", sys.executable, "cpu"]
    env = os.environ | {"WHEELHOUSE": str(tmp_path / "house")}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(f"wheelhouse: {tmp_path / 'house'}: found no wheelhouse.json")
    assert not (tmp_path / ".venv").exists()


def test_a_lock_with_hashes_is_read_alike(tmp_path: Path) -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("wheelhouse", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = LOCK.format(hash="0" * 64)
    path = tmp_path / "lock.txt"
    path.write_text(text)
    assert module.pins(path) == {"a-lib": "1.5", "b-lib": "2.0+local"}
    assert module.without(text, ("b.lib",)) == "a-lib[extra]==1.5\n"
    assert module.plain(text) == "a-lib==1.5\nb.lib==2.0+local\n"
    assert f"{module.MODEL}" == REQUIREMENT
    for lock in ("cpu.txt", "cuda.txt"):
        real = ROOT / "requirements" / lock
        assert len(module.pins(real)) > 150 and "deepspeed" in module.pins(real)
        assert "deepspeed" not in module.without(real.read_text(), module.SOURCES)
