"""The page of error messages: those that it has are the code's, and the code's are there."""

import ast
import re

import pytest

from tests.pages import DOCS
from tests.parsing import parsed

ROOT, PAGE = DOCS.parent, DOCS / "troubleshooting.md"


def templates() -> list[str]:
    """Every text in the code, docstrings aside, and in the scripts; what is formatted into it is `…`."""
    texts = [path.read_text() for path in (ROOT / "cluster" / "examples").iterdir() if path.is_file()]
    for path in (
        path
        for name in ("cluster", "evidence", "learner", "rollout", "requirements")
        for path in (ROOT / name).rglob("*.py")
    ):
        nodes = list(ast.walk(parsed(path)))
        docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
        texts += [text for node in nodes if node not in docstrings for text in texts_of(node)]
    return texts


def texts_of(node: ast.AST) -> list[str]:
    """The text that a node is; what is formatted into it is `…`."""
    if isinstance(node, ast.JoinedStr):
        return ["".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)]
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def shown_messages(page: str) -> list[str]:
    """What stands in code font in the first cells of a page's tables of messages, and in no remark in parentheses."""
    _, _, rest = page.partition("\n## ")
    cells = re.findall(r"^\| (`.*?) \| ", rest, re.MULTILINE)
    remark = re.compile(r"(`[^`]*`)|\((?:`[^`]*`|[^)`])*\)")  # a message's own parentheses are within its code font
    bare = [remark.sub(lambda found: found[1] or "", cell) for cell in cells]
    return [message for cell in bare for message in re.findall(r"`([^`]+)`", cell)]


def is_shown(message: str, texts: list[str]) -> bool:
    """Whether one text has the message's parts, one after another; `...` is anything."""
    pattern = re.compile(".*".join(re.escape(part) for part in message.split("...")), re.DOTALL)
    return any(pattern.search(text) for text in texts)


def test_the_messages_of_the_page_are_those_of_the_code() -> None:
    texts, messages = templates(), shown_messages(PAGE.read_text(encoding="utf-8"))
    assert len(messages) > 110
    assert not [message for message in messages if not is_shown(message, texts)]


ANY = "found ..., expected ..."  # the row on keys


def refused_rows(folder: str) -> list[str]:
    """What the code of a folder says of a row or a file, as `templates` has it."""
    calls = (node for path in sorted((ROOT / folder).rglob("*.py")) for node in ast.walk(parsed(path)))
    made = [node.args[0] for node in calls if isinstance(node, ast.Call) and ast.unparse(node.func) == "ValueError"]
    return [text for node in made for text in texts_of(node) if re.match("…: found .*expected", text)]


def test_every_message_on_a_row_is_on_the_page() -> None:
    messages = shown_messages(PAGE.read_text(encoding="utf-8"))
    refused = refused_rows("rollout/tasks")
    assert len(refused) > 35 and ANY in messages
    messages.remove(ANY)
    assert not [text for text in refused if not any(is_shown(message, [text]) for message in messages)]


ROOMS = ("cluster", "evidence", "learner", "rollout")
KEY = re.compile(r"(?:[a-z_…]+\.)*(?:[a-z_]+|(?<=\.)…): found ")  # the row on keys, ANY
WORDLESS = {"as", "at", "expected", "found", "least", "more", "most", "of", "one", "or", "s", "than", "to", "within"}
# What only a fault of ours or of a task's own code shows, and two parts of messages that are on the page as a whole.
OURS = (
    "group ...: reward: found ..., expected a finite number",
    "found shape ..., expected ... as evidence",
    "found shape ..., expected ... as response_ids",
    "rollout ...: ..., expected a finite log-prob",
    "rollout ...: found ... token strings, expected ...",
    "rollout ...: found ... log-probs of the student, expected ...",
    "shard name: found ..., expected a plain file name that does not start with a dot",
    "of another text",
    "it is elsewhere",
)


def says_something(message: str) -> bool:
    """Whether a message has words of its own: not a key's name and its range alone, and no quotation of another."""
    words = {*re.findall(r"[A-Za-z]+", message)} - WORDLESS
    return len(words) > 1 and not KEY.match(message) and not message.endswith(": …")


def raised(folder: str) -> list[str]:
    """The literal text of every ValueError and RuntimeError that the code of a folder raises, as `templates` has it."""
    nodes = (node for path in sorted((ROOT / folder).rglob("*.py")) for node in ast.walk(parsed(path)))
    calls = [node.exc for node in nodes if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    made = [call.args[0] for call in calls if call.args and ast.unparse(call.func) in ("ValueError", "RuntimeError")]
    return [text for node in made for text in texts_of(node)]


@pytest.mark.parametrize("room", ROOMS)
def test_every_error_that_says_something_is_on_the_page(room: str) -> None:
    messages = [*shown_messages(PAGE.read_text(encoding="utf-8")), *OURS]
    messages.remove(ANY)
    said = [text for text in raised(room) if says_something(text)]
    assert len(said) > 15
    missing = [text for text in said if not any(is_shown(message, [text]) for message in messages)]
    assert not missing, "\n".join(["docs/troubleshooting.md: found no row for:", *missing])


def test_what_is_said_to_be_ours_is_still_said() -> None:
    texts = [text for room in ROOMS for text in raised(room)]
    assert not [message for message in OURS if not is_shown(message, texts)]
    assert says_something("…: found no shards, expected a run") and not says_something("…: …: found …, expected …")
    assert not says_something("learner.lr: found …, expected more than 0") and not says_something("of the probe (…): …")


def test_a_message_that_nothing_says_is_found_out() -> None:
    assert is_shown("found ..., expected at most ...", ["x: found …, expected at most …"])
    assert not is_shown("found ..., expected at least ...", ["x: found …, expected at most …"])
    assert shown_messages("| `no` | x |\n## A\n| `one ...`, `two` (doctor `x`) | Do `this`. |\n") == ["one ...", "two"]
    assert shown_messages("# A\n## B\n| `a (...), b`, `c` (Slurm) | Do. |\n") == ["a (...), b", "c"]
