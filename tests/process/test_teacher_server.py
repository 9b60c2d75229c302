"""A teacher's server that answers what no vLLM server does: one line that names the server and what was asked of it. A
real one is in tests/engine/test_http_teacher.py."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.fleet.http_engine import SAMPLE_TEXT, HttpEngine
from rollout.config import EngineConfig
from rollout.tokenizer import load_tokenizer
from tests.servers import answering

MODELS = {"object": "list", "data": [{"id": "small", "object": "model", "created": 0, "owned_by": "me"}]}


@pytest.fixture
def answers(default_model: Path) -> dict[str, bytes]:
    """What a vLLM server gives for a prompt of 1 token and a response of 2."""
    places = [None, {"5": {"logprob": -0.5}}, {"6": {"logprob": -0.25}, "7": {"logprob": -0.125}}]
    choice = {"index": 0, "finish_reason": "length", "text": "", "prompt_logprobs": places}
    tokens = load_tokenizer(str(default_model)).encode(SAMPLE_TEXT, add_special_tokens=False)
    completion = {"id": "1", "object": "text_completion", "created": 0, "model": "small", "choices": [choice]}
    bodies = {"/v1/models": MODELS, "/tokenize": {"tokens": tokens}, "/v1/completions": completion}
    return {path: json.dumps(body).encode() for path, body in bodies.items()}


def scored(answers: dict[str, bytes], default_model: Path) -> Any:
    async def ask(url: str) -> Any:
        engine = HttpEngine("teacher-0", url, EngineConfig(start_deadline_s=120), str(default_model))
        await engine.start()
        return await engine.score([np.array([4], np.int32)], [np.array([5, 7], np.int32)])

    with answering(lambda path: (200, answers[path], "application/json")) as address:
        return asyncio.run(ask(f"http://{address}/v1"))


def test_the_last_tokens_are_the_responses(answers: dict[str, bytes], default_model: Path) -> None:
    (found,) = scored(answers, default_model)
    assert found.dtype == np.float32 and found.tolist() == [-0.5, -0.125]


NO_ANSWERS = (b"", b"no JSON", b"[]", b"null", b"3", b'"text"', b'{"data": [3], "choices": [3]}', b"{}")


@pytest.mark.parametrize("path", ["/models", "/tokenize", "/completions"])
@pytest.mark.parametrize("content", NO_ANSWERS)
def test_what_is_no_answer_names_the_server(
    answers: dict[str, bytes], default_model: Path, path: str, content: bytes
) -> None:
    key = path if path == "/tokenize" else f"/v1{path}"
    said = rf"teacher-0 http://127\S*: found an answer of {path} that is no vLLM server's"
    if (path, content) == ("/models", b"{}"):  # the client's list of nothing
        said = r"teacher\.url: http://127\S*: found 0 models, expected one"
    with pytest.raises((RuntimeError, ValueError), match=f"^{said}") as error:
        scored(answers | {key: content}, default_model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("places", "told"),
    [
        (None, "found no prompt_logprobs in its answer"),
        ({"5": 0}, "found no prompt_logprobs in its answer"),
        ([None, {"5": {"logprob": -0.5}}], "found no prompt_logprobs in its answer"),
        ([None, {"5": {"logprob": -0.5}}, {"6": {"logprob": -0.5}}], "no vLLM server's (KeyError: '7')"),
        ([None, {"5": {"logprob": -0.5}}, None], "no vLLM server's (TypeError: "),
        ([None, {"5": {"logprob": -0.5}}, {"7": {"logprob": "low"}}], "no vLLM server's (ValueError: "),
        ([None, {"5": {"logprob": -0.5}}, {"7": {}}], "no vLLM server's (KeyError: 'logprob')"),
    ],
)
def test_a_token_without_a_log_prob_is_named(
    answers: dict[str, bytes], default_model: Path, places: Any, told: str
) -> None:
    body = json.loads(answers["/v1/completions"])
    body["choices"][0]["prompt_logprobs"] = places
    with pytest.raises(RuntimeError, match=r"^teacher-0 http://127") as error:
        scored(answers | {"/v1/completions": json.dumps(body).encode()}, default_model)
    assert told in str(error.value) and "\n" not in str(error.value)
