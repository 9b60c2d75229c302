"""A frozen teacher on somebody's vLLM server, over its OpenAI-compatible API: it scores, and takes no weights.

Of vLLM's own in that API: `prompt_logprobs` of completions, token ids as a prompt, `max_model_len` of a model, and
/tokenize (vLLM 0.32).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

import numpy as np

from cluster.errors import printable
from cluster.keys import key_for, withheld
from cluster.proxies import check_proxies, through
from evidence.records import Floats, Ids, RolloutRequest, Sample
from evidence.require import first_line
from rollout.config import EngineConfig, SamplingConfig

if TYPE_CHECKING:
    import openai

MAX_RETRIES = 2  # of one request, where the server is busy or its connection broke
SAMPLE_TEXT = "A teacher scores the student's token ids: 1, 22, 333; naïve, 教師."


class HttpEngine:
    """An `EngineClient` that scores only.

    url: the server's base, such as "http://teacher:8000/v1". OPENAI_API_KEY is sent as `key_for` says.
    config: the teacher's settings: `window`, and `start_deadline_s`, which is a request's deadline as well.
    model: the student's, whose token ids are scored.
    """

    def __init__(self, name: str, url: str, config: EngineConfig, model: str) -> None:
        self.name, self._url, self._config, self._student = name, url, config, model
        self._client: openai.AsyncOpenAI | None = None
        self._model = ""

    async def start(self) -> str:
        """The server's host.

        Raises:
            ValueError: it serves none or several models, one with a shorter window, or another tokenizer.
            RuntimeError: nothing answers there, or not as vLLM does.
        """
        import openai

        check_proxies()
        self._client = openai.AsyncOpenAI(
            base_url=self._url,
            api_key=key_for(self._url),
            max_retries=MAX_RETRIES,
            timeout=self._config.start_deadline_s,
        )
        with self._as_vllm_answers("/models"):
            served = [(str(model.id), model) async for model in self._client.models.list()]
        self._model = self._only(served)
        await self._require_same_tokens()
        return str(urlsplit(self._url).hostname)

    def _only(self, served: Sequence[tuple[str, Any]]) -> str:
        if len(served) != 1:
            names = f" ({', '.join(name for name, _ in served)})" if served else ""
            raise ValueError(
                f"teacher.url: {self._url}: found {len(served)} models{names}, expected one{through(self._url)}"
            )
        ((name, model),) = served
        found = getattr(model, "max_model_len", None)
        if found is not None and found <= self._config.window:  # one more token than is scored
            raise ValueError(
                f"teacher.window: found {self._config.window}, expected less than the {found} tokens that "
                f"{name} at {self._url} holds"
            )
        return name

    async def _require_same_tokens(self) -> None:
        from cluster.models import resolve_model
        from rollout.tokenizer import load_tokenizer

        assert self._client is not None
        tokenizer = load_tokenizer(resolve_model(self._student))
        expected = tokenizer.encode(SAMPLE_TEXT, add_special_tokens=False)
        root = self._client.with_options(base_url=self._url.rstrip("/").removesuffix("/v1"))
        asked = {"model": self._model, "prompt": SAMPLE_TEXT, "add_special_tokens": False}
        with self._as_vllm_answers("/tokenize"):
            answer: Any = await root.post("/tokenize", body=asked, cast_to=object)
            found = answer["tokens"]
        if found != expected:
            raise ValueError(
                f"teacher.url: {self._url}: found other token ids for {SAMPLE_TEXT!r} than the student's tokenizer "
                "gives, expected the same: a teacher needs the student's tokenizer"
            )

    async def score(self, prompts: Sequence[Ids], responses: Sequence[Ids], base: bool = False) -> list[Floats]:
        """log pi_T(y_t | prompt, y_<t), float32 [T] a row, in the rows' order, all in one request.

        Raises:
            RuntimeError: names the server and what it answered.
        """
        assert self._client is not None
        rows = [np.concatenate(row).tolist() for row in zip(prompts, responses, strict=True)]
        with self._as_vllm_answers("/completions"):
            reply = await self._client.completions.create(
                model=self._model, prompt=rows, max_tokens=1, temperature=0.0, extra_body={"prompt_logprobs": 0}
            )
            choices = sorted(reply.choices, key=lambda choice: choice.index)
        if len(choices) != len(rows):
            raise RuntimeError(f"{self.name} {self._url}: found {len(choices)} answers, expected {len(rows)}")
        return [self._of_response(*pair) for pair in zip(choices, responses, strict=True)]

    async def check(self, prompt_ids: Ids, response_ids: Ids, base: bool = False) -> Floats:
        """As `score`: what else the server does is not ours to order."""
        (found,) = await self.score([prompt_ids], [response_ids])
        return found

    def _of_response(self, choice: Any, response: Ids) -> Floats:
        """Each token's own log-prob; the list begins with None for the first token of the prompt."""
        places = getattr(choice, "prompt_logprobs", None)
        if not isinstance(places, list) or len(places) <= len(response):
            raise RuntimeError(
                f"{self.name} {self._url}: found no prompt_logprobs in its answer, expected those of every token: "
                "the server is to be a vLLM server"
            )
        own = zip(places[-len(response) :], response.tolist(), strict=True)
        with self._as_vllm_answers("/completions"):
            return np.array([place[str(token)]["logprob"] for place, token in own], np.float32)

    @contextmanager
    def _as_vllm_answers(self, path: str) -> Iterator[None]:
        """Within it, what is no such answer is a RuntimeError that names the server."""
        import openai

        try:
            yield
        except openai.OpenAIError as error:
            self._explain(error)
        except (ValueError, AttributeError, LookupError, TypeError) as error:
            said = f"({type(error).__name__}: {printable(first_line(error))}){through(self._url)}"
            raise RuntimeError(
                f"{self.name} {self._url}: found an answer of {path} that is no vLLM server's {said}"
            ) from error

    def _explain(self, error: "openai.OpenAIError") -> NoReturn:
        cause = error.__cause__ or error
        said = " ".join(printable(str(cause)).split())[:300]
        notes = f"{withheld(self._url, getattr(error, 'status_code', None))}{through(self._url)}"
        raise RuntimeError(f"{self.name} {self._url}: {type(error).__name__}: {said}{notes}") from None

    async def sample(
        self, requests: Sequence[RolloutRequest], sampling: SamplingConfig, seed: int, base: bool = False
    ) -> list[Sample]:
        raise AssertionError("a server is a teacher that scores")

    async def texts(
        self, prompts: Sequence[Ids], sampling: SamplingConfig, num_samples: int, seed: int
    ) -> list[list[str]]:
        raise AssertionError("a server is a teacher that scores")

    async def tell(self, verb: str, *arguments: Any) -> None:
        """Nothing: it does not share the learner's GPU, and its weights are frozen."""
        assert verb in ("sleep", "wake_up"), verb

    async def weight_state(self) -> tuple[int, str]:
        return 0, ""

    async def stats(self) -> dict[str, float]:
        return {}

    async def ping(self) -> None:
        """Nothing: a server that is no more answers no score, which has a deadline."""

    async def stop(self) -> None:
        if self._client is not None:
            await self._client.close()

    def kill(self, grace_s: float = 0.0) -> None:
        """Nothing: the server is somebody else's."""
