"""The pages that are made from the code are up to date; every key on them has its default, its range and a meaning."""

import ast
import re
import tomllib
from dataclasses import dataclass, fields
from typing import get_type_hints

import pytest

from cluster.config import Recipe, build
from cluster.recipe_page import expected, meanings, table_rows
from tests.pages import DOCS, MARK, PAGES, made

ROOT = DOCS.parent
TABLES = get_type_hints(Recipe)


@pytest.mark.parametrize("page", PAGES)
def test_a_made_page_is_up_to_date(page: str) -> None:
    assert (DOCS / page).read_text(encoding="utf-8") == made(page), "python -m tests.pages writes it again"


@pytest.mark.parametrize("table", TABLES)
def test_every_key_is_on_the_page_with_its_default_and_a_meaning(table: str) -> None:
    rows = {key: (default, meaning) for key, _, default, _, meaning in table_rows(table)}
    inherited = {field.name for field in fields(TABLES["student"])} if table == "teacher" else set()
    assert {field.name for field in fields(TABLES[table])} - inherited <= set(rows)
    for key, (default, meaning) in rows.items():
        assert len(meaning) > 3, f"{table}.{key}: found no comment beside it or above it, expected its meaning"
        assert not meaning.startswith("#"), f"{table}.{key}"
        value = tomllib.loads(f"value = {default}")["value"]
        assert build(Recipe, {table: {key: value}}, "default") == Recipe(), f"{table}.{key}: {default}"


@pytest.mark.parametrize(
    ("table", "key", "kind", "words"),
    [
        ("run", "steps", int, "at least 1"),
        ("run", "name", str, ""),
        ("rollout", "sampler", str, "one of student, teacher"),
        ("evidence", "region", str, "one of all, near_zero, neg, pos"),
        ("evidence", "tau", float, "a number (inf and -inf allowed, not NaN)"),
        ("teacher", "kind", str, "one of frozen, live, snapshot, ema"),
        ("teacher", "window", int, "at least 1"),
        ("learner", "betas", tuple[float, float], "two numbers from 0 to below 1"),
        ("learner", "lora_targets", tuple[str, ...], "names of linear layers"),
        ("learner", "step_deadline_s", float, "more than 0 seconds"),
        ("task", "name", str, "one of arithmetic, identity, math"),
        ("task", "probe_file", str, ""),  # read by another task than the default one, which says nothing of its range
        ("student", "enforce_eager", bool, ""),
    ],
)
def test_a_range_is_what_the_check_expects(table: str, key: str, kind: type, words: str) -> None:
    assert expected(table, key, kind) == words


@dataclass(frozen=True)
class Base:
    """For the test below."""

    beside: int = 1  # a meaning, beside
    overridden: str = "a"  # the base's


@dataclass(frozen=True)
class Derived(Base):
    """For the test below."""

    # two lines # of
    # meaning
    above: tuple[int, ...] = (1, 2)
    hash_inside: str = "# no comment"  # the real one
    overridden: str = "b"  # its own
    bare: int = 0


def test_a_meaning_is_the_comment_beside_or_above() -> None:
    assert meanings(Derived) == {
        "beside": "a meaning, beside",
        "above": "two lines # of meaning",
        "hash_inside": "the real one",
        "overridden": "its own",
        "bare": "",
    }


def test_a_page_without_the_mark_is_named(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.pages.MARK", MARK + "other")
    with pytest.raises(ValueError, match=r"docs/recipes\.md: found no line"):
        made("recipes.md")


def templates() -> list[str]:
    """Every text in the code and in the scripts; what is formatted into it is `…`."""
    texts = [path.read_text() for path in (ROOT / "cluster" / "examples").iterdir() if path.is_file()]
    for path in (
        path for name in ("cluster", "evidence", "learner", "rollout") for path in (ROOT / name).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def shown_messages(page: str) -> list[str]:
    """What stands in code font in the first cells of a page's tables of messages."""
    _, _, rest = page.partition("\n## ")
    cells = re.findall(r"^\| (`.*?) \| ", rest, re.MULTILINE)
    return [message for cell in cells for message in re.findall(r"`([^`]+)`", cell.partition(" (")[0])]


def is_shown(message: str, texts: list[str]) -> bool:
    """Whether one text has the message's parts, one after another; `...` is anything."""
    pattern = re.compile(".*".join(re.escape(part) for part in message.split("...")), re.DOTALL)
    return any(pattern.search(text) for text in texts)


def test_the_messages_of_the_page_are_those_of_the_code() -> None:
    texts, messages = templates(), shown_messages((DOCS / "troubleshooting.md").read_text(encoding="utf-8"))
    assert len(messages) > 90
    assert not [message for message in messages if not is_shown(message, texts)]


def test_a_message_that_nothing_says_is_found_out() -> None:
    assert is_shown("found ..., expected at most ...", ["x: found …, expected at most …"])
    assert not is_shown("found ..., expected at least ...", ["x: found …, expected at most …"])
    assert shown_messages("| `no` | x |\n## A\n| `one ...`, `two` (doctor `x`) | Do `this`. |\n") == ["one ...", "two"]
