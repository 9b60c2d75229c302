"""Processes of tests that are a learner's ranks."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.runs import ROOT

DEADLINE_S = 540
TOOLS = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # ninja
ENVIRONMENT = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PATH": TOOLS}


def launch_ranks(module: str, given: Path, num_ranks: int, port: int, folder: Path) -> list[dict[str, Any]]:
    """What each rank leaves in rank-N.pt of the folder; they are `python -m module given RANK NUM_RANKS PORT`. A launch
    that is late or fails is ended, with the last lines of its logs."""
    logs = [folder / f"log-{rank}.txt" for rank in range(num_ranks)]
    ranks = []
    for rank, log in enumerate(logs):
        command = [sys.executable, "-m", module, str(given), str(rank), str(num_ranks), str(port)]
        with log.open("w") as out:
            ranks.append(subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT))
    try:
        codes = wait(ranks)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    text = "\n".join(log.read_text()[-3000:] for log in logs)
    assert codes == [0] * num_ranks, f"exit codes {codes} (None: late)\n{text}"
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(num_ranks)]


def wait(processes: Sequence[subprocess.Popen[bytes]]) -> list[int | None]:
    """Exit codes, once all have ended, one has failed, or the deadline has passed."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        codes = [process.poll() for process in processes]
        if all(code is not None for code in codes) or any(codes):
            return codes
        time.sleep(0.1)
    return [process.poll() for process in processes]
