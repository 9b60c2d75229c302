#!/usr/bin/env bash
# ninja 1.13.2: what it runs is in process groups of its own, so that killing a job by its group leaves compilers behind.
#
# torch.utils.cpp_extension, and with it every operator that DeepSpeed and others compile at first use, builds with ninja.
# A launcher that ends a rank with killpg (or a test that kills what it started in a session of its own) ends Python and
# ninja; each compiler that ninja had started goes on for minutes, takes its core from the next start, and writes its
# object file into the folder in which the next start compiles the same. A ninja that is interrupted or terminated ends
# its commands; one that is killed cannot. The console pool is the exception: its command stays in ninja's group.
# Whoever kills has to walk the tree of children before, or use a cgroup.
#
# Seen, on Linux with Python 3.11, a stand-in of 60 s for the compiler:
#   after SIGKILL of the group: ninja gone, command in a group of its own and alive
#   after SIGTERM of the group: ninja gone, command gone
#   after SIGKILL of the group, command in the console pool: ninja gone, command gone
# Fails when this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-compile ninja==1.13.2
cat >ask.py <<'PY'
import os
import signal
import subprocess
import time
from pathlib import Path

NINJA = Path("env/bin/ninja").resolve()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def after(how, pool):
    place = Path(f"{how.name}-{pool}")
    place.mkdir()
    (place / "build.ninja").write_text(
        f"rule compile\n  command = sh -c 'echo $$$$ > pid; exec sleep 60'\n{pool and f'  pool = {pool}'}\nbuild out: compile\n"
    )
    job = subprocess.Popen([NINJA, "-C", place], stdout=subprocess.DEVNULL, start_new_session=True)
    while not (place / "pid").is_file() or not (place / "pid").read_text():
        time.sleep(0.05)
    command = int((place / "pid").read_text())
    own = "ninja's group" if os.getpgid(command) == job.pid else "a group of its own"
    os.killpg(job.pid, how)
    job.wait(10)
    time.sleep(1)
    went_on = alive(command)
    if went_on:
        os.kill(command, signal.SIGKILL)
    return own, went_on


assert after(signal.SIGKILL, "") == ("a group of its own", True), "changed: the command"
assert after(signal.SIGTERM, "") == ("a group of its own", False), "changed: SIGTERM"
assert after(signal.SIGKILL, "console") == ("ninja's group", False), "changed: the console pool"
PY
env/bin/python ask.py
echo "as stated: ninja 1.13.2"
