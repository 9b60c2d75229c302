"""What is installed has the hashes of a lock, as pip is asked for it, and every lock is audited."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import ROOT
from tests.unit.test_conventions import locked

# In the place of a Python: makes an environment of itself, and keeps how pip was called, and with which requirements.
PYTHON = """#!{python}
import json, os, pathlib, shutil, sys
given = sys.argv[1:]
if given[:2] == ["-m", "venv"]:
    shutil.copytree(os.path.dirname(sys.argv[0]), given[2] + "/bin")
elif given[:3] == ["-m", "pip", "install"]:
    asked = pathlib.Path(given[given.index("-r") + 1]).read_text() if "-r" in given else ""
    with open({calls!r}, "a") as calls:
        calls.write(json.dumps([given[3:], asked]) + "\\n")
elif given[:1] == ["-c"]:
    print("3.11")
    sys.exit("Python.h" in given[1] and "BARE" in os.environ)
"""
KEPT = """#!{python}
import sys
with open({calls!r}, "a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
sys.exit(sys.argv[-1] == "requirements/cpu.txt")
"""


def executable(path: Path, text: str, calls: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.format(python=sys.executable, calls=str(calls)))
    path.chmod(0o755)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Of what a setup reads, with no environment."""
    shutil.copytree(ROOT / "requirements", tmp_path / "copy" / "requirements")
    shutil.copy(ROOT / "Makefile", tmp_path / "copy")
    return tmp_path / "copy"


def set_up(copy: Path, device: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """On a machine with compilers, unless the environment says otherwise."""
    calls, python = copy / "calls.jsonl", copy.parent / "bin" / "python"
    executable(python, PYTHON, calls)
    executable(python.with_name("edge-opd"), "#!/bin/sh\n", calls)
    env = {"PATH": os.environ["PATH"], "CXX": "sh", "CC": "sh"} | environment  # any program that is here
    command = ["bash", "requirements/install.sh", str(python), device]
    return subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, timeout=60)


def installed(copy: Path, device: str) -> list[tuple[list[str], str]]:
    """The arguments of each `pip install` of a setup, and the requirements that it read."""
    done = set_up(copy, device)
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in (copy / "calls.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_setup_asks_pip_for_hashes(copy: Path, device: str) -> None:
    """Of every package of the lock but torch's build for a CPU, and never for a dependency that the lock lacks."""
    bare, checked = list[str](), dict[str, str]()
    for arguments, asked in installed(copy, device):
        assert "--no-deps" in arguments
        if "--require-hashes" not in arguments:
            bare.append(arguments[-1])
            continue
        for block in re.split(r"\n(?=\S)", asked.strip()):
            name, _, version = block.split()[0].partition("==")
            assert "--hash=sha256:" in block
            checked[name] = version
    lock = locked(f"{device}.txt")
    without = {"torch": lock.pop("torch")} if device == "cpu" else {}
    assert bare == [*(f"{name}=={version}" for name, version in without.items()), "."]
    assert checked == lock


@pytest.mark.parametrize(("device", "who"), [("cpu", "DeepSpeed"), ("cuda", "Triton")])
def test_a_setup_without_what_a_start_compiles_with_ends_before_it_installs(copy: Path, device: str, who: str) -> None:
    """On a GPU too: an engine's first kernel is Triton's, which compiles its launcher in C (triton 3.7.1)."""
    bare = set_up(copy, device, BARE="1")
    assert bare.returncode == 1 and f"has no headers (Python.h), which {who} needs: install python3-dev" in bare.stderr
    if device == "cuda":
        missing = set_up(copy, device, CC="no-such-compiler")
        assert missing.returncode == 1 and "found no C compiler, which Triton needs: install gcc" in missing.stderr
    assert not (copy / "calls.jsonl").exists()


def test_the_benchmarks_peer_is_installed_with_hashes() -> None:
    shown = subprocess.run(
        ["make", "-n", "-B", "DEVICE=cpu", ".venv/peer/.ready"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    (line,) = (line for line in shown.stdout.splitlines() if "pip install" in line)
    assert "--no-deps --require-hashes " in line and line.endswith("-r requirements/peer.hashes.txt")


def test_an_audit_is_of_every_lock_and_fails_with_one(copy: Path) -> None:
    calls = copy / "audited"
    executable(copy / ".venv-audit" / "bin" / "pip-audit", KEPT, calls)
    done = subprocess.run(["make", "audit"], cwd=copy, capture_output=True, text=True, timeout=60)
    audited = {line.split()[-1] for line in calls.read_text().splitlines()}
    locks = {path.name.replace(".hashes", "") for path in (copy / "requirements").glob("*.hashes.txt")}
    assert all("--strict" in line.split() for line in calls.read_text().splitlines())  # what has no answer is an error
    assert audited == {f"requirements/{lock}" for lock in locks} and len(locks) == 3
    assert done.returncode != 0  # as the first of them was found to have something
