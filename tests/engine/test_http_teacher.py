"""A teacher on a real vLLM server, `vllm serve`: its log-probs, a whole run, and what it refuses."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cluster.fleet.http_engine import HttpEngine
from evidence.manifest import Manifest
from evidence.shards import read_shard
from rollout.config import EngineConfig
from tests.reference import logprobs_of, plain_model
from tests.runs import free_port, lines, small_run
from tests.servers import vllm_server

WINDOW = 160
CONFIG = EngineConfig(window=WINDOW, dtype="float32", start_deadline_s=60.0)


@pytest.fixture(scope="module")
def server(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a server with the small model in float32."""
    log = tmp_path_factory.mktemp("server") / "serve.log"
    command = ("tests.vllm_cli", "serve", str(small_model), "--max-model-len", str(WINDOW + 1), "--dtype", "float32")
    with vllm_server(log, *command) as url:
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


def test_a_run_whose_teacher_is_a_server(server: str, small_model: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "served"
    done = small_run(run_dir, f"model.path={small_model}", f"teacher.url={server}", "learner.beta_kl=0.0")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "1 student and 0 teacher engine(s)" in done.stdout
    assert [record["step"] for record in lines(run_dir / "metrics.jsonl")] == [0, 1]
    model = plain_model(small_model).requires_grad_(False)
    for row in read_shard(min(Manifest(run_dir / "manifest.jsonl").written())).to_pylist():
        for column, prompt in (("teacher_logprobs", "prompt_ids"), ("teacher_context_logprobs", "context_prompt_ids")):
            expected = logprobs_of(model, row[prompt], row["response_ids"]).numpy()
            assert np.abs(np.array(row[column]) - expected).max() < 1e-3


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
