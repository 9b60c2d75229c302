"""A real vLLM server, `vllm serve`, as a teacher: its log-probs, a whole run, and what it refuses. And under the probe.

The run is of a model of the hub, which is a stand-in.
"""

import asyncio
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cluster.fleet.http_engine import HttpEngine
from cluster.run.record import read_steps
from evidence.manifest import Manifest
from evidence.shards import read_shard, read_table, shard_name
from rollout.config import EngineConfig
from tests.reference import logprobs_of, plain_model
from tests.runs import edge_opd, free_port, lines, small_run
from tests.servers import Hub, answering, vllm_server
from tests.templates import PLAIN

OLD, NEW = "a1" * 20, "b2" * 20
ONLY_ADA = "{% if who is not defined or who != 'Ada' %}{{ raise_exception('who: ' ~ who) }}{% endif %}"
WINDOW = 160
CONFIG = EngineConfig(window=WINDOW, dtype="float32", start_deadline_s=60.0)


@pytest.fixture(scope="module")
def server(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a server with the small model in float32, and a template that wants a variable."""
    folder = tmp_path_factory.mktemp("server")
    template = folder / "only_ada.jinja"
    template.write_text(ONLY_ADA + PLAIN)
    command = ("tests.vllm_cli", "serve", str(small_model), "--max-model-len", str(WINDOW + 1), "--dtype", "float32")
    with vllm_server(folder / "serve.log", *command, "--chat-template", str(template)) as url:
        yield url


def test_a_server_scores_as_a_float32_forward(server: str, small_model: Path) -> None:
    """Rows of several prompts and lengths in one request, one of them a single token."""
    rng = np.random.default_rng(0)
    shapes = [(5, 7), (5, 1), (31, 33), (1, 9)]
    rows = [tuple(rng.integers(100, 40_000, size).astype(np.int32) for size in shape) for shape in shapes]

    async def score() -> list[np.ndarray]:
        engine = HttpEngine("teacher server", server, CONFIG, str(small_model))
        assert await engine.start() == "127.0.0.1"
        found = await engine.score([prompt for prompt, _ in rows], [response for _, response in rows])
        await engine.stop()
        return found

    model = plain_model(small_model).requires_grad_(False)
    for (prompt, response), found in zip(rows, asyncio.run(score()), strict=True):
        assert found.dtype == np.float32 and found.shape == response.shape
        assert np.abs(found - logprobs_of(model, prompt, response).numpy()).max() < 1e-3


@pytest.fixture(scope="module")
def served(server: str, small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[str]]:
    """A run whose teacher is the server, of a model of the hub: its folder, what it printed, and what the hub was asked
    for. What the branch has become by then no process could load."""
    run_dir, cache = tmp_path_factory.mktemp("served") / "run", tmp_path_factory.mktemp("cache")
    files = {path.name: path.read_bytes() for path in small_model.iterdir() if path.is_file()}
    later = files | {"model.safetensors": b"what no process could load"}
    hub = Hub("org/model", {OLD: files, NEW: later}, NEW, {"v1": OLD})
    settings = ("model.path=org/model@v1", f"teacher.url={server}", "learner.beta_kl=0.0")
    with answering(hub.answer) as address:
        environment = {"HF_ENDPOINT": f"http://{address}", "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
        done = small_run(run_dir, *settings, **environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return run_dir, done.stdout, hub.asked


def test_a_run_whose_teacher_is_a_server(served: tuple[Path, str, list[str]], small_model: Path) -> None:
    run_dir, said, _ = served
    assert "1 student and 0 teacher engine(s)" in said
    assert [record["step"] for record in lines(run_dir / "metrics.jsonl")] == [0, 1]
    model = plain_model(small_model).requires_grad_(False)
    for row in read_shard(min(Manifest(run_dir / "manifest.jsonl").written())).to_pylist():
        for column, prompt in (("teacher_logprobs", "prompt_ids"), ("teacher_context_logprobs", "context_prompt_ids")):
            expected = logprobs_of(model, row[prompt], row["response_ids"]).numpy()
            assert np.abs(np.array(row[column]) - expected).max() < 1e-3


def test_every_process_has_the_commit_of_the_start(served: tuple[Path, str, list[str]]) -> None:
    """Driver, engine and rank have the commit of the hub that config.toml names."""
    run_dir, said, asked = served
    assert sum(path.endswith(f"/resolve/{OLD}/model.safetensors") for path in asked) >= 1
    with (run_dir / "config.toml").open("rb") as file:
        assert tomllib.load(file)["model"]["path"] == f"org/model@v1@{OLD}"
    assert f"run {run_dir}: org/model@v1@{OLD} on cpu" in said
    records = read_steps(run_dir / "metrics.jsonl")
    assert records.keys() == {0, 1}
    for step, record in records.items():
        shard = read_table(str(run_dir / "shards" / shard_name(step)))
        assert record.rows and shard.schema.metadata[b"model_id"] == f"org/model@v1@{OLD}".encode()
    exported = {path.name for path in (run_dir / "export").iterdir()}
    assert exported >= {"config.json", "tokenizer.json", "model.safetensors", "README.md"}


def test_a_real_server_is_probed_with_the_recipe_s_template_variables(server: str) -> None:
    settings = ["--set", "probe.samples=1", "--set", "probe.max_tokens=8"]
    bo, ada = (edge_opd("probe", server, "--json", *settings, "--set", f"template.who={who}") for who in ("Bo", "Ada"))
    assert bo.returncode == 1 and "the server answered HTTP 400" in bo.stderr and "who: Bo" in bo.stderr, bo.stderr
    assert ada.returncode == 0, ada.stderr[-2000:]
    result = json.loads(ada.stdout.splitlines()[-1])
    assert (result["n"], result["n_capability"]) == (12, 12)  # of random weights, whatever they say


def test_what_a_server_cannot_do_is_refused_before_anything_is_sampled(
    server: str, small_model: Path, tiny_model: Path
) -> None:
    def start(url: str, config: EngineConfig) -> None:
        asyncio.run(HttpEngine("teacher server", url, config, str(small_model)).start())

    longer = EngineConfig(window=WINDOW + 1, start_deadline_s=60.0)
    with pytest.raises(ValueError, match=rf"^teacher\.window: found {WINDOW + 1}, expected less than"):
        start(server, longer)
    with pytest.raises(RuntimeError, match=r"^teacher server http://127\.0\.0\.1:\d+/v1: "):
        start(f"http://127.0.0.1:{free_port()}/v1", CONFIG)
    with pytest.raises(RuntimeError, match=r"^teacher server .*/v2: NotFoundError"):
        start(server.replace("/v1", "/v2"), CONFIG)
