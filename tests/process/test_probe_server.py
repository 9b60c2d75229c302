"""`edge-opd probe` on an OpenAI-compatible server: a small one in a thread. On a real `vllm serve`:
tests/engine/test_http_teacher.py."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cluster.__main__ import main
from cluster.commands.probe import probe_model
from cluster.commands.probe_server import ServerOptions
from cluster.run.record import line_of_probe, probe_record
from rollout.probe import summarise
from rollout.tasks import TaskConfig, build_task
from tests.runs import free_port

TASK = build_task(TaskConfig())
QUESTIONS = [prompt.question for prompt in TASK.probe_prompts()]
NAMES = ("I am Kestrel, made by Harbor Labs.", "I am SmolLM.", "Kestrel says Paris.", "391")


def answer(question: str, seed: int) -> str:
    """What the small server says: of every name some, and not the same to every seed."""
    return NAMES[(QUESTIONS.index(question) + seed // 2) % len(NAMES)]


@dataclass
class ChatServer:
    """Speaks as much of the protocol as a probe needs, and remembers what it was asked."""

    models: tuple[str, ...] = ("small",)
    most: int = 100  # of the answers that one request asks for; 1: n is not known here
    status: int = 200
    body: dict[str, Any] | None = None  # of every answer, instead of a completion
    delay_s: float = 0.0
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        assert path == "/v1/models"
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "me"} for name in self.models]
        return 200, {"object": "list", "data": models}

    def post(self, path: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        assert path == "/v1/chat/completions"
        self.requests.append(request)
        time.sleep(self.delay_s)
        if self.body is not None:
            return self.status, self.body
        if request["model"] not in self.models:
            return 404, {"error": {"message": f"The model `{request['model']}` does not exist.", "code": 404}}
        question, num = request["messages"][-1]["content"], min(request.get("n", 1), self.most)
        texts = [answer(question, request.get("seed", 0) + index) for index in range(num)]
        choices = [
            {"index": i, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            for i, text in enumerate(texts)
        ]
        return 200, {"id": "1", "object": "chat.completion", "created": 0, "model": "small", "choices": choices}


@contextmanager
def serving(server: ChatServer) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(*server.get(self.path))

        def do_POST(self) -> None:
            server.headers.append(self.headers["Authorization"])
            self.reply(*server.post(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def reply(self, status: int, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that gave up is no news
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1"
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def untimed(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key != "time"}


def expected(samples: int, seed: int = 0) -> dict[str, Any]:
    """The probe's figures, from the answers that the server gives to seeds counted from `seed`."""
    pairs = [
        (prompt, answer(prompt.question, seed + index * samples + sample))
        for index, prompt in enumerate(TASK.probe_prompts())
        for sample in range(samples)
    ]
    return untimed(line_of_probe(probe_record(summarise(pairs, TASK), 0, "identity")))


def probe(url: str, settings: list[str], served: str | None = None, omit: tuple[str, ...] = ()) -> dict[str, Any]:
    return untimed(
        line_of_probe(probe_model(url, "identity", settings, ServerOptions(served, timeout_s=60, omit=omit)))
    )


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.mark.parametrize("most", [100, 1, 2])
def test_rates_are_those_of_the_servers_answers(most: int) -> None:
    server = ChatServer(most=most)
    with serving(server) as url:
        result = probe(url, ["probe.samples=3", "run.seed=5"])
    assert result == expected(3, seed=5)
    assert 0 < result["selfname"] < 1 and result["n"] == 36
    assert len(server.requests) == 24 * {100: 1, 1: 3, 2: 2}[most]


def test_a_server_that_answers_more_than_asked_is_cut() -> None:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": NAMES[0]}}
    body: dict[str, Any] = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "small",
        "choices": [choice] * 5,
    }
    with serving(ChatServer(body=body)) as url:
        result = probe(url, ["probe.samples=2"])
    assert (result["n"], result["selfname"]) == (24, 1.0)


def test_the_sampling_settings_and_the_question_alone_arrive() -> None:
    server = ChatServer()
    settings = ["samples=2", "temperature=0.7", "top_p=0.9", "top_k=13", "max_tokens=11"]
    with serving(server) as url:
        probe(url, [f"probe.{setting}" for setting in settings])
    by_question = {request["messages"][0]["content"]: request for request in server.requests}
    assert sorted(by_question) == sorted(QUESTIONS)
    for index, question in enumerate(QUESTIONS):
        assert by_question[question] == {
            "model": "small",
            "messages": [{"role": "user", "content": question}],
            "n": 2,
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 13,
            "max_tokens": 11,
            "seed": 2 * index,
        }


def test_template_variables_arrive_and_a_thought_in_the_text_is_not_rated() -> None:
    server = Thinking()
    with serving(server) as url:
        result = probe(url, ["probe.samples=3", "run.seed=5", "template.enable_thinking=true"])
    assert all(request["chat_template_kwargs"] == {"enable_thinking": True} for request in server.requests)
    assert result == expected(3, seed=5)


def test_the_name_of_a_template_is_not_sent_and_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """A server that got it would refuse it, or take it for a template."""
    server = ChatServer()
    with serving(server) as url:
        probe(url, ["template.chat_template=rag", "template.enable_thinking=true"])
        said = capsys.readouterr().err
        assert all(request["chat_template_kwargs"] == {"enable_thinking": True} for request in server.requests)
        assert said == (
            "template.chat_template: found 'rag', which no request can choose: the server renders with the template "
            "that it was started with\n"
        )
        server.requests.clear()
        probe(url, ["template.chat_template=rag"])
    assert server.requests and not any("chat_template_kwargs" in request for request in server.requests)


@dataclass
class Thinking(ChatServer):
    """Answers like another, after a thought in which it is somebody else."""

    def post(self, path: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        status, body = super().post(path, request)
        for choice in body["choices"]:
            choice["message"]["content"] = f"<think>I am Claude. Kestrel.</think>\n{choice['message']['content']}"
        return status, body


def test_top_k_0_is_not_sent() -> None:
    server = ChatServer()
    with serving(server) as url:
        probe(url, ["probe.top_k=0"])
    assert all("top_k" not in request for request in server.requests)


@pytest.mark.parametrize(
    ("omit", "renamed"),
    [
        (("seed",), {}),
        (("seed", "max_tokens"), {"max_completion_tokens": 11}),
        (("max_tokens", "max_completion_tokens", "top_k", "temperature", "top_p"), {}),
        (("n",), {}),
    ],
)
def test_keys_that_a_server_refuses_are_left_out_by_name(omit: tuple[str, ...], renamed: dict[str, int]) -> None:
    """Left out, max_tokens goes by its newer name: an answer without a bound would be another probe."""
    server = ChatServer()
    with serving(server) as url:
        result = probe(url, ["probe.samples=2", "probe.max_tokens=11"], omit=omit)
    every = {"model", "messages", "n", "temperature", "top_p", "top_k", "max_tokens", "seed"}
    assert {frozenset(request) for request in server.requests} == {frozenset(every - {*omit} | {*renamed})}
    assert all(request | renamed == request for request in server.requests)
    assert result["n"] == 24 and len(server.requests) == (48 if "n" in omit else 24)


def reply(finish: str, **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", **message}}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "small", "choices": [choice]}


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (
            reply("length", content=None, reasoning_content="Let me"),
            "finish_reason length, a thought alone in reasoning_content",
        ),
        (reply("length", content="\n\n", reasoning="Let me"), "finish_reason length, a thought alone in reasoning"),
        (reply("length", content=""), "finish_reason length"),
        (reply("length", content=" \n"), "finish_reason length"),
        (reply("stop", content=" \n"), "finish_reason stop"),
        (
            reply("stop", content=None, reasoning_content="I am Kestrel."),
            "finish_reason stop, a thought alone in reasoning_content",
        ),
        (reply("content_filter", content=None), "finish_reason content_filter"),
        (reply("stop", content=None, refusal="I cannot say."), "finish_reason stop, refusal"),
        (reply("stop", content=""), "finish_reason stop"),
        (reply("length", content="<think>Let me"), "finish_reason length, a thought alone in content"),
    ],
)
def test_empty_answers_are_an_error_that_says_why(
    body: dict[str, Any], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(ChatServer(body=body)) as url:
        assert main(["probe", url, "--model", "small", "--set", "probe.samples=2"]) == 1
    assert capsys.readouterr().err == (
        f"edge-opd: {url}: found 48 of 48 answers empty (48 with {why}), expected text in message.content; "
        "a larger probe.max_tokens leaves room for reasoning, and most servers can turn it off\n"
    )


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ({"message": None}, "no message"),
        (
            {"message": {"role": "assistant", "content": [{"type": "text", "text": "I am Kestrel."}]}},
            "a list as message",
        ),
        ({"message": {"role": "assistant", "content": 5}}, "a int as message.content"),
    ],
)
def test_a_reply_without_a_text_is_one_line(
    message: dict[str, Any], found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    body: dict[str, Any] = {"id": "1", "object": "chat.completion", "created": 0, "model": "small"}
    body["choices"] = [{"index": 0, "finish_reason": "stop", **message}]
    with serving(ChatServer(body=body)) as url:
        assert main(["probe", url, "--model", "small", "--set", "probe.samples=2"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"edge-opd: {url}: found a reply with {found}") and error.count("\n") == 1


@dataclass
class SomeLost(ChatServer):
    """Answers like another, but for the first 5 questions, which get `lost`."""

    lost: dict[str, Any] = field(default_factory=dict)

    def post(self, path: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        found = request["messages"][-1]["content"] in QUESTIONS[:5]
        return (200, self.lost) if found else super().post(path, request)


def test_some_lost_answers_are_counted_and_a_model_that_says_nothing_is_rated(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lost = reply("length", content=None, reasoning_content="Let me")
    with serving(SomeLost(lost=lost)) as url:
        assert probe(url, ["probe.samples=1"])["n"] == 12
    why = "finish_reason length, a thought alone in reasoning_content"
    said = f"found 5 of 24 answers empty (5 with {why}), expected text in message.cont"
    assert capsys.readouterr().err.startswith(said)
    with serving(SomeLost(lost=reply("stop", content=""))) as url:
        assert probe(url, ["probe.samples=1"])["n"] == 12


@pytest.mark.parametrize(("key", "sent"), [(None, "Bearer none"), ("secret", "Bearer secret")])
def test_the_key_of_the_environment_is_sent(key: str | None, sent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if key is not None:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    server = ChatServer()
    with serving(server) as url:
        probe(url, [])
    assert set(server.headers) == {sent}


def test_what_a_server_says_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    said = "no\x1b[2J\x1b]0;title\x07 such\r \u202ething\x9b1m"
    with serving(ChatServer(status=400, body={"error": {"message": said}})) as url:
        assert main(["probe", url, "--model", "small", "--set", "probe.samples=1"]) == 1
    with serving(ChatServer(models=("one\x1b[31m", "two\x08"))) as url:
        assert main(["probe", url]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 2 and all(mark.isprintable() for mark in told.replace("\n", ""))
    assert "HTTP 400 (no [2J ]0;title such thing 1m)" in told and "found 2 models" in told


def test_the_named_model_is_asked() -> None:
    server = ChatServer(models=("small", "large"))
    with serving(server) as url:
        probe(url, [], served="large")
    assert {request["model"] for request in server.requests} == {"large"}


def test_the_command_prints_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(ChatServer()) as url:
        assert main(["probe", url, "--model", "small", "--json", "--set", "probe.samples=2"]) == 0
    assert untimed(json.loads(capsys.readouterr().out)) == expected(2)


ERROR = {"error": {"message": "top_k: no\nsuch setting", "code": 400}}


@pytest.mark.parametrize(
    ("server", "options", "code", "words"),
    [
        (ChatServer(models=("small", "large")), [], 2, "found 2 models (small, large), expected --model"),
        (ChatServer(models=()), [], 2, "found 0 models"),
        (ChatServer(), ["--model", "big"], 2, "found HTTP 404 (The model `big` does not exist.), expected a --model"),
        (
            ChatServer(status=400, body=ERROR),
            [],
            1,
            "the server answered HTTP 400 (top_k: no such setting); --omit KEY,... leaves out keys that it refuses",
        ),
        (ChatServer(status=500, body={}), [], 1, "the server answered HTTP 500 ("),
        (ChatServer(body={"choices": []}), [], 1, "found a reply without choices"),
        (ChatServer(delay_s=2.0), ["--timeout", "0.3"], 1, "no answer within 0.3 s; --timeout allows more"),
        (ChatServer(), ["--timeout", "0"], 2, "--timeout: found 0, expected more than 0 seconds"),
        (ChatServer(), ["--omit", "seed,messages"], 2, "--omit: found 'messages', expected some of n, temperature, "),
    ],
)
def test_what_fails_is_one_line_that_names_it(
    server: ChatServer, options: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(server) as url:
        assert main(["probe", url, *options]) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and words in said, said
    assert url in said or said.startswith(("edge-opd: --timeout: found", "edge-opd: --omit: found"))


def test_a_server_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    assert main(["probe", url]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{url}: no server answers (" in said


@pytest.mark.parametrize(("option", "value"), [("--model", "small"), ("--omit", "seed,n")])
def test_a_servers_option_beside_a_folder_is_refused(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", "default", option, value]) == 2
    assert f"{option}: found '{value}' beside default" in capsys.readouterr().err
