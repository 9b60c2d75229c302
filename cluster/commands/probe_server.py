"""Probe answers from an OpenAI-compatible server, which applies the model's chat template and sampling itself."""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from cluster.errors import printable
from cluster.keys import key_for, withheld
from cluster.proxies import check_proxies, through
from rollout.probe import ProbeConfig
from rollout.tasks.base import Turns
from rollout.template import NAMED, messages
from rollout.thinking import answer_of

if TYPE_CHECKING:
    import openai

Request = dict[str, Any]  # what the client's `create` takes
MAX_RETRIES = 1
NUM_CONCURRENT = 8  # requests in flight, so that a deadline measures the server and not its queue


# What a request may do without; the rest of it is the question. n left out: one answer a request.
OMITTABLE = ("n", "temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens", "seed")
# Where a server puts what it does not count as content: a thought, where it parses thoughts, and other things.
THOUGHTS = ("reasoning_content", "reasoning")
ELSEWHERE = (*THOUGHTS, "refusal", "tool_calls")


@dataclass(frozen=True)
class ServerOptions:
    """How a server is asked: the model's name there (None: its only one), a request's deadline with its retry, in
    seconds, and the keys that its requests leave out. max_tokens left out is sent as max_completion_tokens, its newer
    name, unless that one is named too.

    Raises:
        ValueError: no time at all, or a key that no request has.
    """

    model: str | None = None
    timeout_s: float = 120.0
    omit: Collection[str] = ()

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise ValueError(f"--timeout: found {self.timeout_s:g}, expected more than 0 seconds")
        for key in self.omit:
            if key not in OMITTABLE:
                raise ValueError(f"--omit: found {key!r}, expected some of {', '.join(OMITTABLE)}")


@dataclass(frozen=True)
class Answer:
    """An answer's text, and where it is empty for no good reason, why: "finish_reason length, a thought alone in
    reasoning_content"."""

    text: str
    lost: str


def sent_variables(template: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Those of `[template]` that a request can have. say: is told of the name of a template, which a server chooses
    when it starts."""
    if NAMED in template:
        say(
            f"template.{NAMED}: found {template[NAMED]!r}, which no request can choose: the server renders with the "
            "template that it was started with"
        )
    return {name: value for name, value in template.items() if name != NAMED}


async def server_answers(
    url: str,
    chats: Sequence[Turns],
    config: ProbeConfig,
    seed: int,
    options: ServerOptions,
    variables: Mapping[str, Any],
    say: Callable[[str], None],
) -> list[list[str]]:
    """`config.samples` answers to each chat, what follows their thinking.

    Args:
        url: the server's base, such as "http://localhost:8000/v1". OPENAI_API_KEY is sent as `key_for` says.
        seed: of the first answer; the others count on from it.
        variables: what the server is to give the chat template, as chat_template_kwargs: `sent_variables`.
        say: is told how many answers were lost, and count as empty.

    Raises:
        ValueError: no such model, or several and none named.
        RuntimeError: nothing answers at `url`, or too late, with an HTTP error, outside the protocol, or never with
            a text.
    """
    import openai

    check_proxies()
    key, timeout_s = key_for(url), options.timeout_s
    async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=MAX_RETRIES, timeout=timeout_s) as client:
        try:
            async with asyncio.timeout(timeout_s):
                name = options.model or await _only_model(client, url)
            asked = [_request(name, chat, variables) for chat in chats]
            return _texts(await _ask_all(client, asked, config, seed, options), say)
        except (openai.OpenAIError, TimeoutError, RuntimeError) as error:
            _explain(error, url, timeout_s)
        except ExceptionGroup as group:
            _explain(group.exceptions[0], url, timeout_s)


async def _only_model(client: "openai.AsyncOpenAI", url: str) -> str:
    page = await client.models.list()
    names = [model.id for model in getattr(page, "data", None) or ()]
    if len(names) != 1:
        raise ValueError(
            f"{url}: found {len(names)} models ({', '.join(names)}), expected --model with one of them{through(url)}"
        )
    return names[0]


async def _ask_all(
    client: "openai.AsyncOpenAI",
    requests: Sequence[Request],
    config: ProbeConfig,
    seed: int,
    options: ServerOptions,
) -> list[list[Answer]]:
    slots = asyncio.Semaphore(NUM_CONCURRENT)

    async def ask(request: Request, first_seed: int) -> list[Answer]:
        answers: list[Answer] = []
        while len(answers) < config.samples:  # again where the server does not know n
            left, seed_now = config.samples - len(answers), first_seed + len(answers)
            settings = request["extra_body"] | _settings(config, left, seed_now, options.omit)
            async with slots, asyncio.timeout(options.timeout_s):
                reply = await client.chat.completions.create(**request | {"extra_body": settings})
            answers += _answers(reply)
        return answers[: config.samples]

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask(one, seed + i * config.samples)) for i, one in enumerate(requests)]
    return [task.result() for task in tasks]


def _settings(config: ProbeConfig, num: int, seed: int, omit: Collection[str]) -> dict[str, Any]:
    limit = "max_completion_tokens" if "max_tokens" in omit else "max_tokens"
    settings = {"n": num, "temperature": config.temperature, "top_p": config.top_p, limit: config.max_tokens}
    settings |= {"seed": seed} | ({"top_k": config.top_k} if config.top_k else {})
    return {key: value for key, value in settings.items() if key not in omit}


def _request(model: str, chat: Turns, variables: Mapping[str, Any]) -> Request:
    """Settings go in the body as they are: the client knows neither chat_template_kwargs nor top_k, which are not of
    the protocol (some servers refuse them)."""
    own = {"chat_template_kwargs": dict(variables)} if variables else {}
    return {"model": model, "messages": messages(chat), "extra_body": own}


def _answers(reply: Any) -> list[Answer]:
    choices = getattr(reply, "choices", None)
    if not choices:
        raise RuntimeError("found a reply without choices, expected a chat completion")
    return [_answer(choice) for choice in choices]


def _answer(choice: Any) -> Answer:
    message = getattr(choice, "message", None)
    content = getattr(message, "content", None)
    if message is None or not isinstance(content, str | None):
        found = "no message" if message is None else f"a {type(content).__name__} as message.content"
        raise RuntimeError(f"found a reply with {found}, expected text")
    elsewhere = [key for key in ELSEWHERE if getattr(message, key, None)]
    return checked_answer(content or "", f"finish_reason {choice.finish_reason}", elsewhere)


def checked_answer(content: str, ended: str, elsewhere: Sequence[str]) -> Answer:
    """A model may say nothing and stop there; text that is cut off before it begins, or stands elsewhere, is lost.

    ended: why, such as "finish_reason stop". elsewhere: the places beside the content that hold something.
    """
    text = answer_of(content)
    places = [f"a thought alone in {place}" if place in THOUGHTS else place for place in elsewhere]
    places += ["a thought alone in content"] if content.strip() and not text.strip() else []
    lost = not text.strip() and (places or not ended.endswith(" stop"))
    return Answer(text, ", ".join([ended, *places]) if lost else "")


def _texts(answers: Sequence[Sequence[Answer]], say: Callable[[str], None]) -> list[list[str]]:
    """The texts; a lost one is an empty answer, as a response of a folder's model that is a thought alone.

    Raises:
        RuntimeError: none has anything in it.
    """
    every = [answer for to_one in answers for answer in to_one]
    lost = Counter(answer.lost for answer in every if answer.lost)
    is_any = any(answer.text.strip() for answer in every)
    if not is_any:
        lost += Counter({"finish_reason stop": len(every) - lost.total()})
    if lost:
        why = "; ".join(f"{count} with {reason}" for reason, count in lost.most_common())
        found = f"found {lost.total()} of {len(every)} answers empty ({why}), expected text in message.content"
        remedy = "a larger probe.max_tokens leaves room for reasoning, and most servers can turn it off"
        if not is_any:
            raise RuntimeError(f"{found}; {remedy}")
        say(f"{found}; they count as empty answers: {remedy}")
    return [[answer.text for answer in to_one] for to_one in answers]


def _explain(error: BaseException, url: str, timeout_s: float) -> NoReturn:
    """Raises what the command line prints: ValueError where another --model or URL would help."""
    import openai

    proxy = through(url)
    if isinstance(error, openai.NotFoundError):
        raise ValueError(
            f"{url}: found HTTP 404 ({_message(error)}), expected a --model that is served, at a URL ending in /v1"
            f"{proxy}"
        ) from error
    if isinstance(error, openai.APIStatusError):
        hint = "; --omit KEY,... leaves out keys that it refuses" if error.status_code in (400, 422) else ""
        said = f"the server answered HTTP {error.status_code} ({_message(error)})"
        raise RuntimeError(f"{url}: {said}{hint}{withheld(url, error.status_code)}{proxy}") from error
    if isinstance(error, (openai.APITimeoutError, TimeoutError)):
        raise RuntimeError(f"{url}: no answer within {timeout_s:g} s; --timeout allows more{proxy}") from error
    if isinstance(error, openai.APIConnectionError):
        raise RuntimeError(f"{url}: no server answers ({error.__cause__ or error}){proxy}") from error
    if isinstance(error, (openai.OpenAIError, RuntimeError, ValueError)):
        raise RuntimeError(f"{url}: {error}{proxy}") from error
    raise error


def _message(error: "openai.APIStatusError") -> str:
    """What the server said, on one line."""
    said = error.body.get("message") if isinstance(error.body, dict) else None
    return " ".join(printable(str(said or error.message)).split())[:300]
