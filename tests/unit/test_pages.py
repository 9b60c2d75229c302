"""Pages: those made from the code are up to date, links and commands work."""

import argparse
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest

from cluster.__main__ import COMMANDS, _parser
from cluster.commands.doctor import MIN_MEMORY_GIB
from cluster.config import Recipe
from cluster.observe import monitoring
from cluster.observe.alerts import ALERTS
from cluster.recipe_page import expected, meanings, table_rows
from cluster.resolved import LAYOUT, UNCHANGING
from cluster.run.formats import FORMAT
from cluster.typed import build
from evidence.diagnostics import MEANS
from tests.pages import DOCS, MARK, PAGES, made

ROOT, GUIDE = DOCS.parent, DOCS / "guide.md"
NUMBERS = {9: "nine", 10: "ten", 11: "eleven", 12: "twelve"}
TABLES = {name: kind for name, kind in get_type_hints(Recipe).items() if is_dataclass(kind)}  # [template] takes any key


@pytest.mark.parametrize("page", PAGES)
def test_a_made_page_is_up_to_date(page: str) -> None:
    assert (DOCS / page).read_text(encoding="utf-8") == made(page), "python -m tests.pages writes it again"


def test_the_memory_that_the_front_page_gives_is_what_the_doctor_asks_for() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"[\d.]+ (?:GiB|GB)", page) == [f"{MIN_MEMORY_GIB:g} GiB"]


def test_the_page_of_figures_says_which_format_is_written_and_what_each_mean_is_of() -> None:
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    assert re.findall(r"writes format (\d+)", page) == [str(FORMAT)]
    shown = re.findall(r"^\| `(\w+)` \| `(\w+)` / `(\w+)` \|$", page, re.MULTILINE)
    assert {mean: (total, count) for mean, total, count in shown} == MEANS


def test_the_guide_names_what_of_a_recipe_a_resume_may_change() -> None:
    (named,) = re.findall(r"The recipe must be the same,\sapart from (.*?)\. ", GUIDE.read_text(encoding="utf-8"), re.S)
    keys = {f"{table}.{key}" for table, key in LAYOUT}
    assert sorted(re.findall(r"`(.*?)`", named)) == sorted({*(f"[{table}]" for table in UNCHANGING), *keys})


def test_the_page_of_clusters_says_where_grafana_looks_and_how_many_alerts_there_are() -> None:
    page, files = (DOCS / "cluster.md").read_text(encoding="utf-8"), monitoring.files()
    (place,) = re.findall(r"path: (\S+)", files["grafana/provider.yml"])
    rows = dict(re.findall(r"^\| `(\S+)` \| (.*) \|$", page, re.MULTILINE))
    assert f"`{place}`" in rows["grafana/edge-opd.json"] and files.keys() >= {"grafana/edge-opd.json"}
    assert rows["edge-opd.rules.yml"].startswith(f"{NUMBERS[len(ALERTS)]} alerts")


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
        ("task", "name", str, "one of arithmetic, context, facts, identity, math"),
        ("task", "probe_file", str, ""),  # read by another task than the default one, which says nothing of its range
        ("student", "enforce_eager", bool | str, "true, false or 'auto'"),
        ("weights", "in_flight", bool, ""),
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


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    plain = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", plain, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_anchors(page: Path) -> list[str]:
    """Links of a page whose `#...` no heading of their page has."""
    links = re.findall(r"\]\(([^)#:\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8"))
    places = [(page.parent / path if path else page, anchor) for path, anchor in links]
    return [anchor for place, anchor in places if anchor not in anchors(place.read_text(encoding="utf-8"))]


def test_links_into_a_page_find_their_heading(tmp_path: Path) -> None:
    pages = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "requirements").glob("*.md")]
    assert not {page.name: broken for page in pages if (broken := broken_anchors(page))}
    other = tmp_path / "a.md"
    other.write_text("# A b: `c`\n```sh\n# no heading\n```\n[x](#a-b-c) [y](a.md#no-heading) [z](http://h/a.md#q)\n")
    assert broken_anchors(other) == ["no-heading"]


def inline_commands(text: str) -> list[list[str]]:
    """The arguments of each `edge-opd ...` in code font, without what is only possible: [--option ...]."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    found = [re.sub(r"\[[^]]*\]", "", command) for command in re.findall(r"`edge-opd ([^`]+)`", prose)]
    return [shlex.split(command) for command in found]


def test_commands_within_a_sentence_are_understood() -> None:
    assert inline_commands("`edge-opd a B [--c D,...] [--e]` and `edge-opd[x]`\n```\n`edge-opd f`\n```\n") == [
        ["a", "B"]
    ]
    for page in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]:
        for arguments in inline_commands(page.read_text(encoding="utf-8")):
            assert arguments[0] in COMMANDS, page.name
            if len(arguments) > 1 and not arguments[1].startswith("-"):  # else it names a command, or an option of it
                _parser().parse_args([argument.removesuffix("...") for argument in arguments])


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A command line's own parser, and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from parsers(command)


def test_help_says_what_each_command_and_each_argument_is() -> None:
    every = [one for one in parsers(_parser()) if one.prog not in ("edge-opd", "edge-opd data")]
    assert len(every) > len(COMMANDS)
    silent = [f"{one.prog} {action.dest}" for one in every for action in one._actions if not action.help]
    assert not silent
    assert not [one.prog for one in every if not one.description and not one.prog.startswith("edge-opd data ")]


def runs_as_a_module(name: str) -> bool:
    """Whether `python -m name` does something, of the modules here."""
    path = ROOT.joinpath(*name.split("."))
    return (path / "__main__.py").is_file() or 'if __name__ == "__main__":' in path.with_suffix(".py").read_text()


def test_modules_that_the_pages_run_exist() -> None:
    texts = {page: page.read_text(encoding="utf-8") for page in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]}
    named = {name for text in texts.values() for name in re.findall(r"python -m ((?:cluster|tests)[\w.]*)", text)}
    assert {"tests.pages"} <= named
    assert not [name for name in named if not runs_as_a_module(name)]
