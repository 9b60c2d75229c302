"""Probe answers from an OpenAI-compatible server, which applies the model's chat template and sampling itself."""

import asyncio
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from rollout.probe import ProbeConfig

if TYPE_CHECKING:
    import openai

MAX_RETRIES = 1
NUM_CONCURRENT = 8  # requests in flight, so that a deadline measures the server and not its queue


async def server_answers(
    url: str, model: str | None, questions: Sequence[str], config: ProbeConfig, seed: int, timeout_s: float
) -> list[list[str]]:
    """`config.samples` answers to each question, asked as the only message of a chat.

    Args:
        url: the server's base, such as "http://localhost:8000/v1". OPENAI_API_KEY is sent where it is set.
        model: its name on the server; None for the only one there.
        seed: of the first answer; the others count on from it.
        timeout_s: deadline of one request with its retry, in seconds.

    Raises:
        ValueError: no such model, or several and none named.
        RuntimeError: nothing answers at `url`, or too late, with an HTTP error or outside the protocol.
    """
    if not timeout_s > 0:
        raise ValueError(f"--timeout: found {timeout_s:g}, expected more than 0 seconds")
    import openai

    key = os.environ.get("OPENAI_API_KEY") or "none"
    async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=MAX_RETRIES, timeout=timeout_s) as client:
        try:
            async with asyncio.timeout(timeout_s):
                name = model or await _only_model(client, url)
            return await _ask_all(client, name, questions, config, seed, timeout_s)
        except (openai.OpenAIError, TimeoutError) as error:
            _explain(error, url, timeout_s)
        except ExceptionGroup as group:
            _explain(group.exceptions[0], url, timeout_s)


async def _only_model(client: "openai.AsyncOpenAI", url: str) -> str:
    page = await client.models.list()
    names = [model.id for model in getattr(page, "data", None) or ()]
    if len(names) != 1:
        raise ValueError(f"{url}: found {len(names)} models ({', '.join(names)}), expected --model with one of them")
    return names[0]


async def _ask_all(
    client: "openai.AsyncOpenAI", model: str, questions: Sequence[str], config: ProbeConfig, seed: int, timeout_s: float
) -> list[list[str]]:
    slots = asyncio.Semaphore(NUM_CONCURRENT)

    async def ask(question: str, first_seed: int) -> list[str]:
        texts: list[str] = []
        while len(texts) < config.samples:  # again where the server does not know n
            request = _request(model, question, config, config.samples - len(texts), first_seed + len(texts))
            async with slots, asyncio.timeout(timeout_s):
                reply = await client.chat.completions.create(**request)
            texts += _texts(reply)
        return texts[: config.samples]

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask(text, seed + i * config.samples)) for i, text in enumerate(questions)]
    return [task.result() for task in tasks]


def _request(model: str, question: str, config: ProbeConfig, num: int, seed: int) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "n": num,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": config.max_tokens,
        "seed": seed,
        "extra_body": {"top_k": config.top_k} if config.top_k else {},  # not of the protocol: some servers refuse it
    }


def _texts(reply: Any) -> list[str]:
    choices = getattr(reply, "choices", None)
    if not choices:
        raise RuntimeError("found a reply without choices, expected a chat completion")
    return [choice.message.content or "" for choice in choices]


def _explain(error: BaseException, url: str, timeout_s: float) -> NoReturn:
    """Raises what the command line prints: ValueError where another --model or URL would help."""
    import openai

    if isinstance(error, openai.NotFoundError):
        raise ValueError(
            f"{url}: found HTTP 404 ({_message(error)}), expected a --model that is served, at a URL ending in /v1"
        ) from error
    if isinstance(error, openai.APIStatusError):
        raise RuntimeError(f"{url}: the server answered HTTP {error.status_code} ({_message(error)})") from error
    if isinstance(error, (openai.APITimeoutError, TimeoutError)):
        raise RuntimeError(f"{url}: no answer within {timeout_s:g} s; --timeout allows more") from error
    if isinstance(error, openai.APIConnectionError):
        raise RuntimeError(f"{url}: no server answers ({error.__cause__ or error})") from error
    if isinstance(error, (openai.OpenAIError, RuntimeError, ValueError)):
        raise RuntimeError(f"{url}: {error}") from error
    raise error


def _message(error: "openai.APIStatusError") -> str:
    """What the server said, on one line."""
    said = error.body.get("message") if isinstance(error.body, dict) else None
    return " ".join(str(said or error.message).split())[:300]
