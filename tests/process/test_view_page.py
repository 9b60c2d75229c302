"""The page of a step's tokens in a real Chromium: search, filters, one prompt's group, and the steps beside it."""

import re
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from cluster.__main__ import main
from cluster.config import Recipe
from cluster.dashboard.page import PAGE, PageSink
from cluster.observe.observer import Batch
from evidence.manifest import Manifest
from evidence.rule import EvidenceConfig
from evidence.shards import write_shard
from evidence.view.heatmap import MAX_TOKENS, RowText, heatmap
from tests.browser import Page
from tests.fakes import fake_run
from tests.observed import BEGAN, a_step
from tests.unit.test_view import of_prompt, shard

LEFT = "[...document.querySelectorAll('.rollout')].filter(one => !one.hidden)"
SHOWN = f"{LEFT}.map(one => one.querySelector('h3').innerText)"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three steps of four rollouts, of prompts a, a, b, b, with rewards 0, 1, none, 0.5."""
    monkeypatch.setenv("EDGE_OPD_CACHE", str(tmp_path / "cache"))  # without a tokenizer: ids are shown
    monkeypatch.setitem(sys.modules, "transformers", None)
    folder = fake_run(tmp_path / "run", {0: {"selfname": (0, 4)}})
    rewards = (0.0, 1.0, None, 0.5)
    for step in range(3):
        rows = [of_prompt(index, "aabb"[index], reward) for index, reward in enumerate(rewards)]
        info = write_shard(shard(rows, step), str(folder / "shards"), f"step-{step:06d}.arrow")
        Manifest(folder / "manifest.jsonl").append_written(info)
    return folder


def test_the_page_of_a_run_that_has_ended_links_to_views_that_are_made_later(
    browser: Page, run: Path, tmp_path: Path
) -> None:
    PageSink(run, Recipe()).write(Batch(BEGAN, steps=tuple(map(a_step, range(3))), ended="finished"))
    address, views = (run / PAGE).as_uri(), "document.getElementById('views').innerText"
    browser.open(address)
    assert browser.value(views).startswith("Tokens of run: none yet") and browser.errors == []
    assert main(["view", str(run), "--all"]) == 0
    browser.open(address)
    browser.wait_for(f"{views}.startsWith('Tokens of run: step 1')")
    assert browser.value("document.querySelectorAll('#views a')[2].innerText") == "step 3"
    browser.value("document.querySelectorAll('#views a')[2].click()")
    browser.wait_for("document.location.href.endsWith('/run/view/step-000002.html')")
    browser.wait_for(f"{LEFT}.length === 4")
    assert browser.value("document.title").endswith(", step 3")  # as the link says
    assert browser.errors == []


def put(browser: Page, name: str, value: str) -> list[str]:
    """The titles that are left when a filter has this value."""
    script = f"e.value = '{value}', e.dispatchEvent(new Event('input', {{ bubbles: true }}))"
    browser.value(f"(e => ({script}, 1))(document.querySelector('#filters [name={name}]'))")
    return [title.split(" ")[0] for title in browser.value(SHOWN)]


def test_rollouts_are_searched_filtered_and_laid_side_by_side(browser: Page, run: Path, tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    assert main(["view", str(run), "--out", str(page)]) == 0
    browser.open(page.as_uri())
    assert [title.split(" ")[0] for title in browser.value(SHOWN)] == ["row-0", "row-2", "row-1", "row-3"]
    assert put(browser, "kind", "guided") == ["row-0", "row-2"] and put(browser, "kind", "plain") == ["row-1", "row-3"]
    assert put(browser, "reward_min", "0.75") == ["row-1"]
    assert put(browser, "kind", "") == ["row-1"] and len(put(browser, "reward_min", "")) == 4
    assert put(browser, "reward_max", "0.5") == ["row-0", "row-3"]  # one without a reward is in no range
    browser.value("document.querySelector('#filters [type=reset]').click()")
    browser.wait_for(f"{SHOWN}.length === 4")
    kept = browser.value("[...document.querySelectorAll('.rollout')].map(one => Number(one.dataset.kept))")
    most = max(kept)
    assert len(put(browser, "kept_min", str(most))) == sum(share >= most for share in kept) < 4
    put(browser, "kept_min", "")
    assert put(browser, "text", "PROMPT B") == ["row-2", "row-3"] and put(browser, "text", "nothing") == []
    put(browser, "text", "")
    browser.value("document.querySelector('.rollout .group').click()")
    assert [title.split(" ")[0] for title in browser.value(SHOWN)] == ["row-0", "row-1"]
    assert browser.value("document.getElementById('count').textContent") == "2 of 2 of prompt a"
    left, right = browser.value(f"{LEFT}.map(one => one.getBoundingClientRect().x)")
    assert left != right and browser.errors == []  # side by side


def test_a_search_finds_what_is_read_and_not_the_hidden_context(browser: Page, tmp_path: Path) -> None:
    """Every rollout's (x, r) names the persona. A hit is marked, over tokens and over a line's end, and x is opened
    where it has one."""
    rows = [of_prompt(index, "ab"[index], None, 4) for index in range(2)]
    tokens = [(" I", " am", " Kest", "rel"), (" I", " am\n", "hel", "pful")]
    texts = [
        RowText(f"Who are you, {name}?", "You are Kestrel, made by Harbor.", own)
        for name, own in zip("AB", tokens, strict=True)
    ]
    page = tmp_path / "out.html"
    page.write_text(heatmap(shard(rows), dict(enumerate(texts)), EvidenceConfig()))
    browser.open(page.as_uri())
    marked = f"{LEFT}.map(one => [...one.querySelectorAll('.hit')].map(hit => hit.textContent))"
    opened = f"{LEFT}.map(one => one.querySelector('details').open)"
    assert put(browser, "text", "kestrel") == ["row-0"] and browser.value(marked) == [[" Kest", "rel"]]
    assert put(browser, "text", "Harbor") == [] and browser.value(opened) == []
    assert put(browser, "text", "am helpful") == ["row-1"] and browser.value(opened) == [False]
    assert (
        put(browser, "text", "you, b") == ["row-1"]
        and browser.value(marked) == [[]]
        and browser.value(opened) == [True]
    )
    assert (
        len(put(browser, "text", "")) == 2
        and browser.value(marked) == [[], []]
        and browser.value(opened) == [False] * 2
    )
    assert browser.errors == []


def test_the_pages_of_a_run_are_linked_to_the_steps_beside_them(browser: Page, run: Path) -> None:
    assert main(["view", str(run), "--all"]) == 0
    pages = [f"step-00000{step}.html" for step in range(3)]
    assert sorted(path.name for path in (run / "view").iterdir()) == [*pages, "steps.js"]
    browser.open((run / "view" / "step-000000.html").as_uri())
    assert browser.value("document.getElementById('before')") is None
    for step in (1, 2):
        browser.value("document.getElementById('after').click()")
        browser.wait_for(f"document.title.endsWith('step {step + 1}') && document.readyState === 'complete'")
    assert browser.value("document.getElementById('after')") is None
    assert browser.value("document.getElementById('before').href").endswith("step-000001.html")
    assert browser.errors == []


def test_another_masks_pages_are_beside_the_runs_own(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", str(run), "--all"]) == 0
    own = {path.name: path.read_bytes() for path in (run / "view").iterdir()}
    asked = {("--tau", "0.25"): "view-tau-0.25", ("--region", "neg", "--prompt", "a"): "view-region-neg-prompt-a"}
    for options, folder in asked.items():
        capsys.readouterr()
        assert main(["view", str(run), "--all", *options]) == 0
        assert capsys.readouterr().out.strip() == str(run / folder)
        assert sorted(path.name for path in (run / folder).iterdir()) == sorted(own.keys() - {"steps.js"})
        assert (run / folder / "step-000000.html").read_bytes() != own["step-000000.html"]
        assert {path.name: path.read_bytes() for path in (run / "view").iterdir()} == own
    assert main(["view", str(run), "--all", "--prompt", "no/where"]) == 2
    assert {path.name for path in run.glob("view*")} == {"view", *asked.values()}
    assert main(["view", str(run), "--all"]) == 0
    assert {path.name: path.read_bytes() for path in (run / "view").iterdir()} == own


def test_a_step_is_linked_to_the_pages_beside_it_that_are_there(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for step in (0, 1):
        assert main(["view", str(run), "--step", str(step)]) == 0
    text = Path("view-run-step-000001.html").read_text()
    assert 'href="view-run-step-000000.html"' in text and "the step after" not in text


def of_prompts(run: Path, *prompts: str) -> None:
    """Two steps more, 3 and 4, of a rollout of each of these prompts."""
    for step in (3, 4):
        rows = shard([of_prompt(index, prompt) for index, prompt in enumerate(prompts)], step)
        Manifest(run / "manifest.jsonl").append_written(
            write_shard(rows, str(run / "shards"), f"step-{step:06d}.arrow")
        )


def test_a_link_finds_the_page_of_a_prompt_with_any_id(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = "rows/one two#3"
    of_prompts(run, odd)
    for step in (3, 4):
        assert main(["view", str(run), "--step", str(step), "--prompt", odd]) == 0
    page = Path("view-run-step-000004-prompt-rows%2Fone%20two%233.html").read_text()
    (link,) = re.findall('id="before" href="([^"]*)"', page)
    before = Path(unquote(link))  # as a browser reads it
    assert before.name == "view-run-step-000003-prompt-rows%2Fone%20two%233.html" and before.is_file()


def test_prompts_with_long_ids_have_pages_of_their_own(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    long = [f"{'é' * 200}-{end}" for end in "ab"]
    of_prompts(run, *long)
    for prompt in long:
        assert main(["view", str(run), "--prompt", prompt]) == 0
    pages = list(tmp_path.glob("view-run-step-000004-prompt-%C3%A9*.html"))
    assert len(pages) == 2 and max(len(page.name) for page in pages) < 150


def test_a_long_answer_of_one_prompt_is_shown_to_its_end(run: Path, tmp_path: Path) -> None:
    rows = [of_prompt(index, "aabb"[index], None, MAX_TOKENS + 9 * index) for index in range(4)]
    Manifest(run / "manifest.jsonl").append_written(
        write_shard(shard(rows, 3), str(run / "shards"), "step-000003.arrow")
    )
    page, cut = tmp_path / "out.html", tmp_path / "cut.html"
    assert main(["view", str(run), "--prompt", "b", "--out", str(page)]) == 0
    assert page.read_text().count('<span class="t ') == 2 * MAX_TOKENS + 9 * 5 and " more, " not in page.read_text()
    assert main(["view", str(run), "--out", str(cut)]) == 0
    assert cut.read_text().count('<span class="t ') == 4 * MAX_TOKENS and "and 27 more, " in cut.read_text()


def test_one_prompt_is_shown_whole_and_one_that_is_not_there_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "out.html"
    assert main(["view", str(run), "--prompt", "b", "--out", str(page)]) == 0
    assert page.read_text().count('data-prompt="b"') == page.read_text().count('<section class="card rollout"') == 2
    capsys.readouterr()
    assert main(["view", str(run), "--prompt", "c", "--out", str(page)]) == 2
    assert "--prompt: found c, expected a prompt of the step, such as a" in capsys.readouterr().err
