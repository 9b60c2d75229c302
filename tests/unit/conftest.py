"""A unit test starts no process, opens no connection and loads no engine; one that does fails by its own name. Its
tokenizer is made here: none is read or downloaded."""

import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3  # noqa: F401  looks for IPv6 by binding a socket, as it is first imported

from rollout.tasks.boxed_pool import Judges
from tests import templates

FORBIDDEN = {
    "subprocess.Popen": "starts a process",
    "os.fork": "starts a process",
    "os.posix_spawn": "starts a process",
    "os.system": "starts a process",
    "socket.bind": "opens a server",
    "socket.connect": "opens a connection",
    "socket.getaddrinfo": "asks the network",
}
ENGINES = ("vllm", "deepspeed")  # ray is loaded with the scheduler's clients; to start it takes a process

_seen: list[str] | None = None  # what the test under way did
_others: set[threading.Thread] = set()  # what an earlier test left, of another tier, is not this one's


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None or (_others and threading.current_thread() in _others):
        return
    if event in FORBIDDEN:
        _seen.append(f"{FORBIDDEN[event]}: {arguments!r:.200}")
    elif event == "import" and arguments[0].split(".")[0] in ENGINES:
        _seen.append(f"imports {arguments[0]}")


sys.addaudithook(_watch)  # for good: an audit hook is never taken away


@pytest.fixture(autouse=True, scope="session")
def no_engine_is_loaded_by_a_test_file(request: pytest.FixtureRequest) -> None:
    """A file's own imports happen before its tests: where only this folder runs, none of them may load an engine."""
    only_units = all("unit" in item.path.parts for item in request.session.items)
    loaded = [name for name in ENGINES if name in sys.modules]
    assert not (only_units and loaded), f"a file of tests/unit imports {loaded}: it belongs in tests/process"


@pytest.fixture(autouse=True)
def within_its_tier(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails the test that did what belongs in tests/process or tests/engine."""
    global _seen
    _others.clear()
    _others.update(set(threading.enumerate()) - {threading.current_thread()})
    _seen = seen = []
    # Its processes stay for the tests that follow, which then start none.
    monkeypatch.setattr(Judges, "ask", lambda *question: seen.append(f"asks the verifier: {question!r:.200}"))
    yield
    _seen = None
    assert not seen, f"a test of tests/unit {seen[0]}: it belongs in tests/process or tests/engine"


CHAT = """{%- if messages[0]['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}{%- for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """One token a byte (others decode to their numbers), two special ones, and a chat template of the default model's
    kind. Shared, as that one's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(f"-{number}" for number in range(1000))]
    made = Tokenizer(models.BPE({piece: place for place, piece in enumerate(pieces)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    others = ["<|endoftext|>", templates.A, templates.B, templates.C, templates.D]
    made.add_special_tokens([*special.values(), *others])
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=CHAT, **special)
