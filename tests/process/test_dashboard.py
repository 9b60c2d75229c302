"""The page of a run in a real Chromium: what it draws, how it follows a run, and what it does with odd runs."""

import functools
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cluster.__main__ import main
from cluster.config import Recipe, RunConfig
from cluster.dashboard import columns
from cluster.dashboard.charts import RunCharts, charts_of
from cluster.dashboard.columns import NEWEST, NEWEST_VALUES, STRIDE, VALUES, WHOLE, Columns
from cluster.dashboard.lanes import BOXES
from cluster.dashboard.page import DATA, PAGE, PageSink, StartingPage, data_of, page, told_apart, write_dashboard
from cluster.dashboard.panels import PANELS
from cluster.observe.config import ObserveConfig
from cluster.observe.observer import Batch
from cluster.observe.seen import read_seen
from cluster.run.record import Gap, ProbeRecord, append_step, read_probes, write_gap
from evidence.advantage import RewardSums
from evidence.telemetry import EngineState, Sample, append_spans
from rollout.probe import Rate
from tests.browser import Page
from tests.fakes import fake_run
from tests.observed import BEGAN, NOTE, RATES, STEP_S, a_sample, a_step, crowded, dense_spans, observed_run, spans_of

REPRODUCED = Path(__file__).parents[2] / "docs" / "reproduction" / "runs"
OLDER = Path(__file__).parents[1] / "data" / "small-run"  # with a timeline
PLOTS = "document.querySelectorAll('#charts svg').length"
STATE = "document.getElementById('state').textContent"
TEXT = "document.body?.innerText ?? ''"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return observed_run(tmp_path_factory.mktemp("runs") / "observed")


def sink_of(tmp_path: Path, recipe: Recipe) -> tuple[PageSink, Path]:
    """The page of a run that has just begun, and its folder."""
    folder = fake_run(tmp_path / "run", {})
    return PageSink(folder, recipe), folder


def draw_all(browser: Page) -> None:
    """Also what is far below, as for print; else a chart is drawn once it comes near."""
    browser.value("dispatchEvent(new Event('beforeprint'))")


def quiet_server(folder: Path) -> ThreadingHTTPServer:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))


def test_the_page_of_a_run_that_is_not_at_its_end_says_so(browser: Page, tmp_path: Path) -> None:
    folder = observed_run(tmp_path / "run")
    probes = (folder / "probes.jsonl").read_text().splitlines(keepends=True)
    (folder / "probes.jsonl").write_text("".join(probes[:-1]))
    browser.open(write_dashboard([folder], tmp_path / "out.html").as_uri())
    assert browser.value(STATE) == "Made before the run's end." and browser.errors == []


def test_a_finished_runs_page_draws_every_chart(browser: Page, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / run.name
    shutil.copytree(run, folder)
    (folder / "metrics.jsonl").unlink()
    for step in range(12):  # with a verifier, which gives a reward
        append_step(folder / "metrics.jsonl", replace(a_step(step), rewards=RewardSums(12.0 + step, 32, 1)))
    browser.open(write_dashboard([folder], tmp_path / "out.html").as_uri())
    draw_all(browser)
    titles = browser.value("[...document.querySelectorAll('#charts svg')].map(svg => svg.getAttribute('aria-label'))")
    assert titles == [panel.title for panel in PANELS]
    empty = "[...document.querySelectorAll('#charts svg')].filter(svg => !svg.querySelector('path')?.getAttribute('d'))"
    assert browser.value(f"{empty}.length") == 0 and browser.errors == []
    text = browser.value(TEXT)
    assert "The learner is the bottleneck: learn is 70% of the last 12 steps (score 40%, sample 20%, push 8%)." in text
    assert "The run has ended." in text and "12/12" in text
    assert "Who worked when: 120 s up to the end of the last step" in text
    assert NOTE in text and "0.99\nselfname of the teacher" in text
    lanes = browser.value("[...document.querySelectorAll('#lanes text')].map(text => text.textContent)")
    assert lanes == [
        "driver", "3%", "learner", "76%", "push", "4%", "student engine 0", "20%", "teacher engine 0", "40%",
    ]  # fmt: skip
    rate = "document.querySelector('svg[aria-label=\"Learning rate\"]').parentElement.innerText"
    assert "lr 3e-5" in browser.value(rate)
    assert "NaN" not in browser.value("document.body.innerHTML")


def test_pointing_at_a_chart_shows_the_values_of_that_step_on_every_chart_of_steps(
    browser: Page, run: Path, tmp_path: Path
) -> None:
    browser.open(write_dashboard([run], tmp_path / "out.html").as_uri())
    draw_all(browser)
    browser.point("svg[aria-label=Canary]", 0.01)
    canary, norm, kept = (
        browser.value(f"document.querySelector('svg[aria-label=\"{title}\"]').parentElement.innerText")
        for title in ("Canary", "Gradient norm", "KV cache in use")
    )
    assert "step 1" in canary and "canary 0.05" in canary and "tolerance 0.1" in canary
    assert "step 1" in norm and "norm 4" in norm
    assert "step" not in kept
    browser.point("svg[aria-label=Canary]", 0.99)
    canary = browser.value("document.querySelector('svg[aria-label=Canary]').parentElement.innerText")
    assert "step 12" in canary and "canary 0.04" in canary
    probe = browser.value("document.querySelector('svg[aria-label=\"Probe without context\"]').parentElement.innerText")
    assert "selfname 0.979 [0.927, 0.994]" in probe


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_a_phone_and_follows_the_systems_style(
    browser: Page, run: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    browser.size(width, 900, dark)
    browser.open(write_dashboard([run], tmp_path / "out.html").as_uri())
    assert browser.value("document.documentElement.scrollWidth") <= width
    red, *_ = browser.value("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert red < 60 if dark else red > 200
    assert browser.errors == []
    browser.size(1280, 900)


READS = """{
  window.reads = [];  // the pause after each read of the data, and what the page shows by then
  const pause = window.setTimeout;
  window.setTimeout = (work, ms) => { reads.push([ms, document.body.innerText]); return pause(work, ms); };
}"""


@contextmanager
def counted_reads(browser: Page) -> Iterator[None]:
    """Within it a page that is opened has `reads`."""
    hook = browser.call("Page.addScriptToEvaluateOnNewDocument", source=READS)
    yield
    browser.call("Page.removeScriptToEvaluateOnNewDocument", **hook)


@pytest.mark.parametrize("over", ["file", "http"])
def test_an_open_page_reads_every_second_and_shows_a_new_step_at_once(browser: Page, tmp_path: Path, over: str) -> None:
    recipe = Recipe(run=RunConfig(steps=3), observe=ObserveConfig(every_s=60.0))
    sink, folder = sink_of(tmp_path, recipe)
    server = quiet_server(folder)
    sink.write(Batch(BEGAN))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = (folder / PAGE).as_uri() if over == "file" else f"http://127.0.0.1:{server.server_port}/{PAGE}"
        with counted_reads(browser):
            browser.open(address)
        browser.wait_for(f"({TEXT}).includes('No step is done yet.')")
        for step in range(2):
            sink.write(Batch(BEGAN, (a_sample(STEP_S * step),), tuple(spans_of(step)), (a_step(step),)))
            before = browser.value("reads.length")  # and one more that may have begun before
            first = f"reads.findIndex(([_, text]) => text.includes('{step + 1}/3'))"
            browser.wait_for(f"{first} >= 0")
            assert browser.value(first) <= before + 1
        assert browser.value(STATE).startswith("Running; ")
        assert set(browser.value("reads.map(([ms]) => ms)")) == {1000}
        sink.write(Batch(BEGAN, steps=(a_step(2),), ended="finished"))
        browser.wait_for(f"{STATE} === 'The run has ended.'")
        assert browser.errors == []
    finally:
        server.shutdown()
        server.server_close()
    (folder / DATA).unlink()
    browser.open((folder / PAGE).as_uri())  # now it has its data itself
    assert browser.value(STATE) == "The run has ended." and "3/3" in browser.value(TEXT)


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        ("failed", "The run failed; a resume is shown here."),
        ("stopped", "The run was stopped; a resume is shown here."),
        ("restarting", "A service was lost; the services start again."),
        ("starting", "The services start, and the learner learns again what stands."),
    ],
)
@pytest.mark.parametrize("opened", ["before its end", "after its end"])
def test_a_page_follows_a_run_that_goes_on_after_an_end(
    browser: Page, tmp_path: Path, ended: str, words: str, opened: str
) -> None:
    recipe = Recipe(run=RunConfig(steps=3), observe=ObserveConfig(every_s=60.0))
    sink, folder = sink_of(tmp_path, recipe)
    sink.write(Batch(BEGAN, steps=(a_step(0),)))
    if opened == "before its end":
        browser.open((folder / PAGE).as_uri())
    append_step(folder / "metrics.jsonl", a_step(0))
    sink.write(Batch(BEGAN, ended=ended))
    if opened == "after its end":
        browser.open((folder / PAGE).as_uri())
    browser.wait_for(f"{STATE} === '{words}'")
    PageSink(folder, recipe).write(Batch(BEGAN, steps=(a_step(1),)))
    browser.wait_for(f"({TEXT}).includes('2/3')")
    assert browser.value(STATE).startswith("Running; ") and browser.errors == []


def test_a_page_of_a_finished_run_reads_nothing_more(browser: Page, run: Path, tmp_path: Path) -> None:
    with counted_reads(browser):
        browser.open(write_dashboard([run], tmp_path / "out.html").as_uri())
        assert browser.value("reads.length") == 0
        sink, folder = sink_of(tmp_path, Recipe())
        sink.write(Batch(BEGAN, steps=(a_step(0),), ended="finished"))
        browser.open((folder / PAGE).as_uri())
        assert browser.value("reads.length") == 0


IS_DRAWN = "[...document.querySelectorAll('#charts svg')].map(svg => svg.childElementCount > 0)"


def test_a_chart_is_drawn_once_it_comes_near_and_stays_as_high(browser: Page, run: Path, tmp_path: Path) -> None:
    browser.size(1280, 900)
    browser.open(write_dashboard([run], tmp_path / "out.html").as_uri())
    drawn = browser.value(IS_DRAWN)
    assert drawn[0] and not any(drawn[-6:]) and len(drawn) == len(PANELS) - 1  # all but Reward
    browser.value("scrollTo(0, document.body.scrollHeight)")
    browser.wait_for(f"{IS_DRAWN}.at(-1)")
    heights = "[...document.querySelectorAll('#charts .card')].map(card => card.clientHeight)"
    browser.value("scrollTo(0, 0)")
    before = browser.value(heights)
    browser.value("render(data)")
    assert browser.value(heights) == before and browser.errors == []


def drag(browser: Page, selector: str, since: float, until: float) -> None:
    """With the mouse, from and to these shares of an element's width."""
    browser.point(selector, since)
    box = browser.value(f"document.querySelector('{selector}').getBoundingClientRect().toJSON()")
    y = box["y"] + box["height"] / 2
    for kind, share in (("mousePressed", since), ("mouseMoved", until), ("mouseReleased", until)):
        at = {"x": box["x"] + share * box["width"], "y": y, "button": "left", "buttons": 1, "clickCount": 1}
        browser.call("Input.dispatchMouseEvent", type=kind, **at)


def press(browser: Page, key: str) -> None:
    for kind in ("keyDown", "keyUp"):
        browser.call(
            "Input.dispatchKeyEvent", type=kind, key=key, text=key if len(key) == 1 and kind == "keyDown" else ""
        )


def test_a_drag_over_a_chart_shows_its_range_on_every_chart_of_its_kind(browser: Page, tmp_path: Path) -> None:
    run = observed_run(tmp_path / "run", steps=40)
    browser.open(write_dashboard([run], tmp_path / "out.html").as_uri())
    draw_all(browser)

    def labels(title: str) -> list[str]:
        svg = f"document.querySelector('svg[aria-label=\"{title}\"]')"
        draw_all(browser)
        return list(
            browser.value(f"[...{svg}.querySelectorAll('text:not([text-anchor=end])')].map(t => t.textContent)")
        )

    ranges = "document.getElementById('ranges').innerText"
    whole, kept, groups = labels("Canary"), labels("Kept tokens"), labels("Groups by state")
    drag(browser, "svg[aria-label=Canary]", 0.5, 0.75)
    found = re.fullmatch(r"steps (\d+) to (\d+): show all", browser.value(ranges))
    low, high = map(int, found.groups()) if found else (0, 0)
    assert 16 <= low <= 20 and 26 <= high <= 31
    for title, before in (("Canary", whole), ("Kept tokens", kept)):
        assert labels(title) != before and all(low - 1 <= float(label) <= high + 1 for label in labels(title))
    assert labels("Groups by state") == groups
    browser.point("svg[aria-label=Canary]", 0.01)
    assert f"step {low}" in browser.value("document.querySelector('svg[aria-label=Canary]').parentElement.innerText")
    browser.value("document.querySelector('#ranges button').click()")
    assert labels("Canary") == whole and browser.value(ranges) == ""
    drag(browser, "#lanes svg", 0.5, 0.7)
    title = browser.value("document.querySelector('#lanes h3').innerText")
    assert re.fullmatch(r"Who worked when: \d\d:\d\d:\d\d to \d\d:\d\d:\d\d", title)
    assert labels("Groups by state") != groups and labels("Canary") == whole
    browser.value("document.querySelector('#lanes svg').focus()")
    press(browser, "+")
    assert browser.value("document.querySelector('#lanes h3').innerText") not in (title, "")
    press(browser, "Escape")
    assert browser.value("document.activeElement.getAttribute('aria-label')") == "Who worked when"
    assert labels("Groups by state") == groups and browser.value(ranges) == "" and browser.errors == []


def test_a_short_range_of_a_long_run_has_every_new_step_and_says_what_of_older_ones_is_left_out(
    browser: Page, tmp_path: Path
) -> None:
    charts = RunCharts("run", Recipe(run=RunConfig(steps=5000)))
    charts.add(Batch(BEGAN, steps=tuple(map(a_step, range(5000)))))
    (tmp_path / "out.html").write_text(page("long", data_of([charts.shown({})], 0, "finished")))
    browser.open((tmp_path / "out.html").as_uri())
    norm = "document.querySelector('svg[aria-label=\"Gradient norm\"]')"

    def shown(low: float, high: float) -> tuple[int, str]:
        """How many points the line has, and what stands below it."""
        browser.value(f"zoom('step', [{low}, {high}])")
        draw_all(browser)
        path = f"({norm}.querySelector('path')?.getAttribute('d') ?? '')"
        return browser.value(f"{path}.split(/[ML]/).length - 1"), browser.value(f"{norm}.nextSibling.innerText")

    said = re.compile(r"of each 64 points the first, last, least and greatest; all from step (\d+) on$")
    count, words = shown(4900, 5000)
    assert count == 101 and re.fullmatch(r"norm \S+", words)
    count, words = shown(1000, 1999)
    found = said.search(words)
    assert found and 5000 - NEWEST - STRIDE < int(found[1]) <= 5001 - NEWEST and 1000 / 64 * 2 < count <= 17 * 5
    count, words = shown(1002.2, 1002.8)
    assert count == 0 and words.startswith("none of this range is shown: ") and said.search(words)
    browser.value("zoom('step', null)")
    draw_all(browser)
    assert re.fullmatch(r"norm \S+", browser.value(f"{norm}.nextSibling.innerText")) and browser.errors == []


def test_of_many_engines_a_legend_tells_the_middle_and_the_ends_and_no_label_is_cut_off(
    browser: Page, tmp_path: Path
) -> None:
    charts, rng = RunCharts("run", Recipe()), np.random.default_rng(0)
    samples = [crowded(a_sample(2.0 * place), 16, rng) for place in range(60)]
    charts.add(Batch(BEGAN, tuple(samples), steps=tuple(replace(a_step(step), dropped=0) for step in range(2000))))
    (tmp_path / "out.html").write_text(page("many", data_of([charts.shown({})], 0, "finished")))
    browser.open((tmp_path / "out.html").as_uri())
    draw_all(browser)
    legend = "document.querySelector('svg[aria-label^=Outstanding]').parentElement.querySelector('.legend')"
    held = sorted(one.outstanding_tokens for name, one in samples[-1].engines.items() if "teacher" in name)
    found = re.fullmatch(
        r"16 teacher engines (\S+)k \[(\S+)k, (\S+)k\]", browser.value(f"{legend}.children[1].innerText")
    )
    assert found and [1e3 * float(one) for one in found.groups()] == pytest.approx(
        [held[8], held[0], held[-1]], rel=1e-2
    )
    cut = (
        "[...document.querySelectorAll('#charts svg')].flatMap(svg => [...svg.querySelectorAll('text')].filter(text =>"
        " text.getBoundingClientRect().right > svg.getBoundingClientRect().right + 1).map(text => text.textContent))"
    )
    assert browser.value(cut) == [] and browser.errors == []


def test_counts_of_nothing_are_drawn_at_zero_and_nothing_below_is(browser: Page, tmp_path: Path) -> None:
    charts = RunCharts("run", Recipe())
    charts.add(Batch(BEGAN, steps=tuple(replace(a_step(step), nonfinite_updates=0) for step in range(9))))
    (tmp_path / "out.html").write_text(page("zero", data_of([charts.shown({})], 0, "finished")))
    browser.open((tmp_path / "out.html").as_uri())
    draw_all(browser)
    ticks = "[...document.querySelectorAll('svg[aria-label^=Updates] text[text-anchor=end]')]"
    assert min(browser.value(f"{ticks}.map(text => +text.textContent)")) == 0 and browser.errors == []


def test_what_a_lane_did_is_told_where_the_mouse_is(browser: Page, run: Path, tmp_path: Path) -> None:
    browser.open(write_dashboard([run], tmp_path / "out.html").as_uri())
    browser.point("#lanes svg", 0.5)
    hint = "document.querySelector('#lanes .hint').innerText"
    row = "[...document.querySelectorAll('#lanes svg text')].find(text => text.textContent === 'learner')"
    y = browser.value(f"{row}.getBoundingClientRect().y + 5")
    left, wide = browser.value("(b => [b.x, b.width])(document.querySelector('#lanes svg').getBoundingClientRect())")
    at = {"x": left + 140 + (wide - 180) * 45 / 120, "y": y}  # 5 s after the beginning of the fifth step
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", **at)
    assert browser.value(hint) == "learner: learn 7.0 s" and browser.errors == []


SERVICE_CHARTS = ("Groups by state", "Outstanding tokens", "What the learner waited for")


def test_a_service_that_does_not_answer_is_said_and_is_a_gap(browser: Page, tmp_path: Path) -> None:
    recipe = Recipe(observe=ObserveConfig(every_s=2.0))
    sink, folder = sink_of(tmp_path, recipe)
    silent = tuple(Sample(BEGAN + at, fault="no answer within 2 s") for at in (8.0, 10.0, 22.0))
    spans = [span for step in range(4) for span in spans_of(step)]
    sink.write(Batch(BEGAN, tuple(map(a_sample, (0.0, 2.0, 4.0, 6.0))) + silent, tuple(spans), (a_step(0),)))
    browser.open((folder / PAGE).as_uri())
    engines = "[...document.querySelectorAll('.tile')].find(tile => tile.innerText.includes('engines')).outerHTML"
    state, style, tile = browser.value(f"[{STATE}, document.getElementById('state').className, {engines}]")
    assert state == "Running; the rollout service does not answer: no answer within 2 s." and style == "state stale"
    assert tile == '<div class="tile bad"><b>0/2</b><span>engines answer</span></div>'
    sink.write(Batch(BEGAN, tuple(map(a_sample, (24.0, 26.0, 28.0, 30.0)))))
    browser.wait_for(f"{STATE}.startsWith('Running; ') && !{STATE}.includes('does not answer')")
    assert browser.value(engines) == '<div class="tile"><b>2/2</b><span>engines answer</span></div>'
    draw_all(browser)
    for title in SERVICE_CHARTS:
        paths = f"[...document.querySelector('svg[aria-label=\"{title}\"]').querySelectorAll('path')]"
        pieces = browser.value(f"{paths}.map(path => path.getAttribute('d').split('M').length - 1)")
        assert pieces and set(pieces) == {2}, title
    assert browser.errors == []


def test_a_resume_that_samples_less_often_is_no_row_of_gaps() -> None:
    """Two samples after it the distance is what is usual: by the recipe of the run's folder it was 1 s."""
    charts = RunCharts("run", Recipe(observe=ObserveConfig(every_s=1.0)))
    times = [*map(float, range(5)), *(300.0 + 10 * place for place in range(8))]
    charts.add(Batch(BEGAN, tuple(map(a_sample, times))))
    shown = json.loads(charts.shown({}))["charts"]
    outstanding, waits = (
        shown[next(place for place, panel in enumerate(PANELS) if panel.title == title)]
        for title in ("Outstanding tokens", "What the learner waited for")
    )
    tokens = zip(outstanding["x"], outstanding["series"]["student engine 0"], strict=True)
    assert [x - BEGAN for x, value in tokens if value is None] == [152.0, 305.0]
    assert [x - BEGAN for x in waits["x"]][-5:] == [320.0, 330.0, 340.0, 350.0, 360.0]


def test_a_time_in_which_nobody_asked_is_one_gap() -> None:
    """Between the end of a process and the resume."""
    charts = RunCharts("run", Recipe(observe=ObserveConfig(every_s=2.0)))
    charts.add(Batch(BEGAN, tuple(map(a_sample, (0.0, 2.0, 4.0, 604.0, 606.0, 608.0)))))
    place = next(place for place, panel in enumerate(PANELS) if panel.title == "Outstanding tokens")
    chart = json.loads(charts.shown({}))["charts"][place]
    gaps = [values is None for values in chart["series"]["student engine 0"]]
    assert gaps == [False] * 3 + [True] + [False] * 3 and chart["x"][3] == BEGAN + 304.0


def test_a_clock_that_is_set_back_ends_no_page_and_no_share_is_beyond_the_whole() -> None:
    charts = RunCharts("run", Recipe(observe=ObserveConfig(every_s=2.0)))
    times = [*map(float, range(0, 22, 2)), 8.0, 10.0, 12.0, 15.0, 18.0]
    spans = [span for step in range(3) for span in spans_of(step)]
    charts.add(Batch(BEGAN, tuple(map(a_sample, times)), tuple(spans), (a_step(0),), ended="finished"))
    place = next(place for place, panel in enumerate(PANELS) if panel.title == "What the learner waited for")
    chart = json.loads(charts.shown({}))["charts"][place]
    shares = [sum(values) for values in zip(*chart["series"].values(), strict=True) if None not in values]
    assert [x - BEGAN for x in chart["x"]][-3:] == [12.0, 15.0, 18.0] and all(0 <= share <= 1 for share in shares)


def test_a_run_that_died_is_said_to_be_silent(browser: Page, tmp_path: Path) -> None:
    sink, folder = sink_of(tmp_path, Recipe())
    sink.write(Batch(BEGAN, steps=(a_step(0),)))
    text = (folder / DATA).read_text()
    made = json.loads(text.removeprefix("edgeOpd(").rstrip().removesuffix(")"))["made"]
    (folder / DATA).write_text(text.replace(str(made), str(made - 600)))
    browser.open((folder / PAGE).as_uri())
    silent = f"{STATE}.match(/^Nothing for (\\d+) min: the run may have died/)?.[1]"
    browser.wait_for(silent)
    assert 10 <= int(browser.value(silent)) <= 10.1 + (time.time() - made) / 60


def test_a_host_whose_clock_is_behind_is_no_dead_run(
    browser: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(run=RunConfig(steps=3), observe=ObserveConfig(every_s=60.0))
    monkeypatch.setattr("cluster.dashboard.page.time", SimpleNamespace(time=lambda: time.time() - 3600))
    sink, folder = sink_of(tmp_path, recipe)
    sink.write(Batch(BEGAN, steps=(a_step(0),)))
    browser.open((folder / PAGE).as_uri())
    assert re.fullmatch(r"Figures of 6\d min ago; waiting for new ones\.", browser.value(STATE))
    sink.write(Batch(BEGAN, steps=(a_step(1),)))
    browser.wait_for(f"({TEXT}).includes('2/3')")
    assert re.fullmatch(r"Running; \d\d? s ago\.", browser.value(STATE))


def test_what_is_pointed_at_stays_as_new_steps_come(browser: Page, tmp_path: Path) -> None:
    recipe = Recipe(run=RunConfig(steps=9), observe=ObserveConfig(every_s=60.0))
    sink, folder = sink_of(tmp_path, recipe)
    sink.write(Batch(BEGAN, tuple(map(a_sample, (0.0, 2.0))), (), tuple(map(a_step, range(3)))))
    browser.open((folder / PAGE).as_uri())
    canary = "document.querySelector('svg[aria-label=Canary]')"
    draw_all(browser)
    browser.point("svg[aria-label=Canary]", 0.01)
    assert "step 1" in browser.value(f"{canary}.parentElement.innerText")
    scrolled = browser.value("scrollY")
    sink.write(Batch(BEGAN, tuple(map(a_sample, (4.0, 6.0))), (), tuple(map(a_step, range(3, 5)))))
    browser.wait_for(f"({TEXT}).includes('5/9')")
    text = browser.value(f"{canary}.parentElement.innerText")
    assert "step 1" in text and "canary 0.05" in text and browser.value("scrollY") == scrolled > 0
    assert browser.value(f"{canary}.querySelector('.cursor').getAttribute('visibility')") == "visible"


def last_probe(run: Path) -> ProbeRecord:
    *_, last = read_probes(run / "probes.jsonl").values()
    return last


def test_of_many_runs_the_intervals_are_in_the_legend_alone(browser: Page, run: Path, tmp_path: Path) -> None:
    browser.open(write_dashboard([run] * 4, tmp_path / "out.html").as_uri())
    draw_all(browser)
    probe = "document.querySelector('svg[aria-label=\"Probe without context\"]')"
    bands = f"{probe}.querySelectorAll('path[opacity]').length"
    assert browser.value(bands) == 0
    assert browser.value(f"{probe}.parentElement.innerText").count("selfname 0.979 [0.927, 0.994]") == 4
    browser.value("document.querySelector('#picker input').click()")
    draw_all(browser)
    assert browser.value(bands) == 3 * len(RATES) and browser.errors == []


def test_several_runs_with_other_probes_lie_over_each_other_and_can_be_picked(browser: Page, tmp_path: Path) -> None:
    runs = [REPRODUCED / "N3-seed0", REPRODUCED / "arithmetic-N9-seed0"]
    browser.open(write_dashboard(runs, tmp_path / "out.html").as_uri())
    draw_all(browser)
    probe = "document.querySelector('svg[aria-label=\"Probe without context\"]').parentElement.innerText"
    assert "N3-seed0 selfname" in browser.value(probe) and "arithmetic-N9-seed0 pass_at_1" in browser.value(probe)
    bands = "document.querySelectorAll('svg[aria-label=\"Probe without context\"] path[opacity]').length"
    for run, rate in ((runs[0], "selfname"), (runs[1], "pass_at_1")):
        last = last_probe(run)
        low, high = last.rates[rate].interval
        found = re.search(rf"{run.name} {rate} ([\d.]+) \[([\d.]+), ([\d.]+)\]", browser.value(probe))
        assert found and list(map(float, found.groups())) == pytest.approx(
            [last.rates[rate].share, low, high], abs=1e-3
        )
    assert browser.value(bands) == sum(len(probe.rates) for probe in map(last_probe, runs))
    browser.value("document.querySelector('#picker input').click()")
    draw_all(browser)
    assert "N3-seed0 selfname" not in browser.value(probe) and "arithmetic-N9-seed0 pass_at_1" in browser.value(probe)
    browser.value("document.querySelectorAll('#picker input')[1].click()")
    assert browser.value(PLOTS) == 0 and browser.errors == []


def test_runs_of_very_many_points_lie_over_each_other(browser: Page, tmp_path: Path) -> None:
    """More values of one chart than a call can have arguments."""
    engines = {f"student engine {place}": EngineState("student", True, 8 * place, 1) for place in range(64)}
    charts = RunCharts("run", Recipe())
    charts.add(Batch(BEGAN, tuple(Sample(BEGAN + 2.0 * place, engines=engines) for place in range(180))))
    runs = [charts.shown({}).replace('"name":"run"', f'"name":"run {place}"', 1) for place in range(12)]
    (tmp_path / "out.html").write_text(page("many", data_of(runs, 0, "finished")))
    browser.open((tmp_path / "out.html").as_uri())
    draw_all(browser)
    assert browser.errors == [] and browser.value(PLOTS) == 4


def test_a_run_of_several_days_has_the_day_on_its_charts_of_times(browser: Page, tmp_path: Path) -> None:
    charts = RunCharts("run", Recipe(observe=ObserveConfig(every_s=3600.0)))
    charts.add(Batch(BEGAN, tuple(a_sample(3600.0 * place) for place in range(72))))
    (tmp_path / "out.html").write_text(page("days", data_of([charts.shown({})], 0, "finished")))
    browser.open((tmp_path / "out.html").as_uri())
    draw_all(browser)
    words = "[...document.querySelectorAll('svg[aria-label^=Groups] text')].map(text => text.textContent)"
    labels = [text for text in browser.value(words) if ":" in text]
    assert len(labels) >= 2 and len(set(labels)) == len(labels)
    assert all(re.search(r"\d+ ?\w* \d\d:\d\d$|\w+ \d+ \d\d:\d\d$", label) for label in labels)


def test_runs_weeks_apart_lie_over_each_other_by_the_time_since_the_start_of_each(
    browser: Page, run: Path, tmp_path: Path
) -> None:
    """The other one is a week older, and has the same name."""
    older = tmp_path / "before" / run.name
    shutil.copytree(run, older)
    for name in ("metrics.jsonl", "samples.jsonl", "trace.jsonl"):
        lines = [json.loads(line) for line in (older / name).read_text().splitlines()]
        shifted = [
            line | {key: line[key] - 7 * 86400 for key in ("time", "begin", "end") if line.get(key)} for line in lines
        ]
        (older / name).write_text("".join(json.dumps(line) + "\n" for line in shifted))
    browser.open(write_dashboard([run, older], tmp_path / "out.html").as_uri())
    draw_all(browser)
    chart = "document.querySelector('svg[aria-label=\"Groups by state\"]')"
    paths = browser.value(f"[...{chart}.querySelectorAll('path')].map(path => path.getAttribute('d'))")
    assert len(paths) == 6 and paths[:3] == paths[3:] and len(set(paths)) == 3
    browser.point("svg[aria-label^=Groups]", 0.99)
    assert "00:01:58" in browser.value(f"{chart}.parentElement.innerText")  # the last sample, of 60 that are 2 s apart
    names = f"{run.parent.name}/{run.name}", f"before/{run.name}"
    assert all(f"{name} sampling" in browser.value(f"{chart}.parentElement.innerText") for name in names)
    browser.value("document.querySelector('#picker input').click()")
    draw_all(browser)
    text = browser.value(f"{chart}.parentElement.innerText")
    assert f"{names[1]} sampling" in text and names[0] not in text
    assert browser.value("document.getElementById('words').innerText").startswith(names[1]) and browser.errors == []


def test_a_run_of_an_older_version_opens_with_what_it_has(browser: Page, tmp_path: Path) -> None:
    browser.open(write_dashboard([REPRODUCED / "N1-seed0"], tmp_path / "out.html").as_uri())
    draw_all(browser)
    assert browser.value(PLOTS) > 12 and browser.errors == []
    assert browser.value("document.querySelectorAll('#lanes svg').length") == 0
    assert "edge-opd view RUN --all" in browser.value("document.getElementById('views').innerText")


def test_the_token_views_of_a_run_are_linked(browser: Page, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run #1 of 50%41"
    shutil.copytree(run, folder)
    (folder / "view").mkdir()
    (folder / "view" / "step-000003.html").write_text("step three")
    (folder / "view" / "step-by-step.html").write_text("somebody's own")
    browser.open(write_dashboard([folder], tmp_path / "pages" / "out.html").as_uri())
    browser.value("document.querySelector('#views a').click()")
    browser.wait_for(f"({TEXT}) === 'step three'")


# Without a browser


def test_runs_of_one_name_are_told_apart_by_the_folders_above() -> None:
    folders = [Path(name) for name in ("/a/x/run", "/b/x/run", "/c/y/run", "/c/y/other", "/c/y/run", "/x/run", "/run")]
    expected = ["a/x/run", "b/x/run", "y/run", "other", "y/run (2)", "/x/run", "/run"]
    assert told_apart(folders) == expected and len(set(expected)) == len(expected)


def test_names_and_words_cannot_end_the_script(tmp_path: Path) -> None:
    folder = observed_run(tmp_path / "a<b>&\u2028c", steps=2)
    text = write_dashboard([folder], tmp_path / "out.html").read_text()
    assert text.count("</script>") == 1 and "\\u003cb>&\\u2028c" in text and "<title>a&lt;b&gt;&amp;" in text


@pytest.mark.parametrize("engines", [2, 16, 64])
def test_ten_thousand_steps_are_less_than_a_megabyte(tmp_path: Path, engines: int) -> None:
    sink, folder = sink_of(tmp_path, Recipe(run=RunConfig(steps=10_000)))
    rng = np.random.default_rng(0)
    samples = [crowded(a_sample(2.0 * place), engines // 2, rng) for place in range(10_000)]
    tokens = [[one.outstanding_tokens for one in sample.engines.values()] for sample in samples]
    lanes = [*spans_of(9999), *dense_spans(STEP_S * 9981, 19 * STEP_S, engines)]
    sink.write(Batch(BEGAN + STEP_S * 10_000, tuple(samples), tuple(lanes), tuple(map(a_step, range(10_000)))))
    assert (folder / DATA).stat().st_size < 1 << 20
    data = json.loads((folder / DATA).read_text().removeprefix("edgeOpd(").rstrip().removesuffix(")"))
    rows = data["runs"][0]["lanes"]["rows"]
    assert len(rows) >= engines and 10 * engines < sum(len(row["spans"]) // 4 for row in rows) <= BOXES
    by_title = dict(zip((panel.title for panel in PANELS), data["runs"][0]["charts"], strict=True))
    assert all(len(chart["x"]) <= WHOLE + NEWEST + STRIDE for chart in by_title.values())
    norm, outstanding = by_title["Gradient norm"], by_title["Outstanding tokens"]
    assert len(norm["x"]) > WHOLE // 4 and (norm["x"][0], norm["x"][-1]) == (1, 10_000)
    assert max(norm["series"]["norm"]) == 5.0 and min(norm["series"]["norm"]) == 3.0  # no peak is lost
    shown = list(outstanding["series"].values())
    assert len(shown) == engines and len(outstanding["x"]) >= min(WHOLE, VALUES // engines) // 4
    assert max(map(max, shown)) == pytest.approx(max(map(max, tokens)), rel=1e-4)
    assert [values[-1] for values in shown] == pytest.approx(tokens[-1], rel=1e-4)  # what the legend says


def test_a_write_looks_at_the_last_bucket_of_each_chart_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink, _ = sink_of(tmp_path, Recipe(run=RunConfig(steps=10_000)))
    sink.write(Batch(BEGAN, tuple(a_sample(2.0 * place) for place in range(9990)), (), tuple(map(a_step, range(9990)))))
    looked, points_of = list[int](), columns._points

    def counted(values: np.ndarray) -> list[str]:
        looked.append(values.shape[1])
        return points_of(values)

    monkeypatch.setattr(columns, "_points", counted)
    sink.write(Batch(BEGAN, (a_sample(2.0 * 9990),), (), (a_step(9990),)))
    of_steps_and_samples = [panel for panel in PANELS if panel.of in ("step", "sample")]
    assert 0 < len(looked) <= len(of_steps_and_samples) + 2 and max(looked) < 40


def test_a_chart_that_grows_is_the_chart_that_is_made_at_once_and_loses_no_peak() -> None:
    rng, grown, last = np.random.default_rng(0), Columns(), 4000
    points = [{"a": float(v), **({"b": float(-v)} if x > 1500 else {})} for x, v in enumerate(rng.normal(size=last))]
    for x, values in enumerate(points):
        grown.append(x, values)
        if x % 37 == 0:
            grown.shown()
        if x in (777, 3210):
            grown.gap(x + 0.5)
            grown.gap(x + 0.75)  # which adds nothing
    grown.append(last - 300, {"a": 99.0})  # a resumed run repeats steps
    for x, values in enumerate(points[last - 299 :], start=last - 299):
        grown.append(x, values)
    at_once = Columns()
    for x, values in enumerate(points):
        at_once.append(x, {"a": 99.0} if x == last - 300 else values)
        if x in (777, 3210):
            at_once.gap(x + 0.5)
    assert grown.shown() == at_once.shown()
    shown = json.loads(grown.shown())
    older = [x for x in shown["x"] if x < shown["whole"]]
    assert WHOLE // 4 < len(older) <= WHOLE and (shown["x"][0], shown["x"][-1]) == (0, last - 1)
    assert [x for x, value in zip(shown["x"], shown["series"]["a"], strict=True) if value is None] == [777.5, 3210.5]
    assert max(value for value in shown["series"]["a"] if value is not None) == 99.0
    smallest = min(values["b"] for x, values in enumerate(points) if x > 1500 and x != last - 300)
    assert min(value for value in shown["series"]["b"] if value is not None) == pytest.approx(smallest, rel=1e-4)


def test_of_a_long_chart_the_newest_points_are_all_there_and_of_each_bucket_before_its_ends_and_peaks() -> None:
    grown, values = Columns(), np.random.default_rng(0).normal(size=10_000)
    for x, value in enumerate(values.tolist()):
        grown.append(x, {"a": value})
        if x % 7 == 0:
            grown.shown()
    shown = json.loads(grown.shown())
    whole, each = shown["whole"], shown["each"]
    assert 10_000 - NEWEST - STRIDE < whole <= 10_000 - NEWEST and shown["x"][-10_000 + whole :] == list(
        range(whole, 10_000)
    )
    expected = set[int]()
    for begin in range(0, whole, each):
        part = values[begin : min(begin + each, whole)]
        expected |= {begin, begin + len(part) - 1, begin + int(part.argmin()), begin + int(part.argmax())}
    assert set(shown["x"][: -10_000 + whole]) == expected and len(expected) <= WHOLE
    assert shown["series"]["a"] == pytest.approx(values[np.array(shown["x"], int)].tolist(), rel=1e-4)
    short = Columns()
    for x in range(WHOLE):
        short.append(x, {"a": 1.0})
    assert json.loads(short.shown()).keys() == {"x", "series"}  # all of them are there


@pytest.mark.filterwarnings("error")
def test_the_smallest_and_the_largest_numbers_are_drawn_and_nothing_is_said_on_the_terminal() -> None:
    columns = Columns()
    for x, value in enumerate((5e-324, 4e-308, -1e-300, 1.2345678e-200, 9.9e307, 0.0)):
        columns.append(x, {"a": value})
    assert json.loads(columns.shown())["series"]["a"] == [0.0, 0.0, 0.0, 1.2346e-200, 9.9e307, 0.0]


def test_a_chart_of_very_many_series_has_its_newest_point() -> None:
    wide = Columns()
    for x in range(2 * STRIDE):
        wide.append(x, dict.fromkeys(map(str, range(NEWEST_VALUES + 1)), float(x)))
    shown = json.loads(wide.shown())
    assert shown["x"][-1] == 2 * STRIDE - 1 and shown["whole"] <= 2 * STRIDE - 1 and shown["x"][0] == 0


@pytest.mark.parametrize("command", ["dashboard", "trace", "export-metrics"])
def test_a_folder_to_write_to_is_refused_by_its_name(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], run: Path
) -> None:
    assert main([command, str(run), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"edge-opd: --out: found the folder {tmp_path}, expected a file\n"


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], run: Path) -> None:
    assert main(["dashboard", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"edge-opd: {tmp_path}: found no config.toml, expected a run directory\n"
    damaged = tmp_path / "run"
    shutil.copytree(run, damaged)
    with (damaged / "samples.jsonl").open("a") as file:
        file.write("no JSON\n")
    assert main(["dashboard", str(damaged)]) == 2
    assert "samples.jsonl: line 61: found b'no JSON'" in capsys.readouterr().err


def test_a_torn_last_line_and_a_read_only_run_folder_open(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for name in ("metrics.jsonl", "samples.jsonl", "trace.jsonl", "probes.jsonl"):
        with (folder / name).open("a") as file:
            file.write('{"format": 1, "ste')
    folder.chmod(0o555)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.chdir(tmp_path)
    assert main(["dashboard", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == "dashboard-run.html" and "12/12" in Path("dashboard-run.html").read_text()
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    folder.chmod(0o755)


def test_a_resumed_run_keeps_the_steps_before_and_repeats_those_after_its_checkpoint(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    sink = PageSink(folder, Recipe(run=RunConfig(steps=12)))
    place = next(place for place, panel in enumerate(PANELS) if panel.title == "Gradient norm")

    def norms() -> tuple[list[float], list[float]]:
        text = (folder / DATA).read_text().removeprefix("edgeOpd(").rstrip().removesuffix(")")
        chart = json.loads(text)["runs"][0]["charts"][place]
        return chart["x"], chart["series"]["norm"]

    sink.write(Batch(time.time()))
    assert norms()[0] == list(range(1, 13))
    sink.write(Batch(time.time(), steps=(replace(a_step(8), grad_norm=99.0),)))
    assert norms()[0] == list(range(1, 10)) and norms()[1][-1] == 99.0
    sink.write(Batch(time.time(), steps=(a_step(9),)))
    assert norms()[0] == list(range(1, 11))


def test_the_page_is_there_as_the_services_start_and_says_how_that_ended(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also that of a resume, which said before that the run was stopped; it is told again and again, till the run
    begins."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    PageSink(folder, Recipe()).write(Batch(BEGAN, ended="stopped"))
    monkeypatch.setattr("cluster.dashboard.page.AGAIN_S", 0.01)

    def told(key: str) -> Any:
        return json.loads((folder / DATA).read_text().removeprefix("edgeOpd(").rstrip().removesuffix(")"))[key]

    def wait_until(ready: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not ready():
            assert time.monotonic() < end
            time.sleep(0.01)

    with pytest.raises(RuntimeError), StartingPage(folder, Recipe(), lambda _: "failed"):
        wait_until(lambda: told("ended") == "starting")
        made = told("made")
        wait_until(lambda: told("made") > made)
        assert told("runs")[0]["tiles"][0]["value"].startswith("12/")
        assert '"ended"' not in (folder / PAGE).read_text()  # it reads its data
        raise RuntimeError("an engine")
    assert told("ended") == "failed"
    with pytest.raises(RuntimeError), StartingPage(folder, Recipe(), lambda _: "failed") as page:
        wait_until(lambda: told("ended") == "starting")
        page.end()
        PageSink(folder, Recipe()).write(Batch(BEGAN))
        raise RuntimeError("a step")
    assert told("ended") == ""  # as the run's own sink has it


def test_a_gap_that_is_measured_once_the_page_is_there_is_shown(tmp_path: Path) -> None:
    sink, folder = sink_of(tmp_path, Recipe())

    def shown() -> tuple[list[str], list[str]]:
        text = (folder / DATA).read_text().removeprefix("edgeOpd(").rstrip().removesuffix(")")
        (run,) = json.loads(text)["runs"]
        return [tile["label"] for tile in run["tiles"]], run["advice"]

    sink.write(Batch(BEGAN, steps=(a_step(0),)))
    assert "selfname of the teacher" not in shown()[0]
    write_gap(folder / "gap.json", Gap(BEGAN, "identity", {"selfname": Rate(3, 96)}, {"selfname": Rate(3, 96)}))
    sink.write(Batch(BEGAN + 1))
    tiles, advice = shown()
    assert "selfname of the teacher" in tiles
    assert any("in 0.03 of 96 answers, the base in 0.03 without it: there is nothing to learn" in one for one in advice)


def test_what_is_of_this_process_is_counted_once(tmp_path: Path) -> None:
    """The files may have it before the page reads them. A push of the start is not the first step's."""
    sink, folder = sink_of(tmp_path, Recipe())
    own = [*spans_of(-1), *spans_of(0), *spans_of(1)]
    spans = tuple(replace(span, begin=span.begin + 1e9, end=span.end + 1e9) for span in own)
    steps = tuple(replace(a_step(step), time=BEGAN + 1e9 + STEP_S * (step + 1)) for step in range(2))
    append_spans(folder / "trace.jsonl", spans)
    for step in steps:
        append_step(folder / "metrics.jsonl", step)
    sink.write(Batch(BEGAN + 1e9, spans=spans, steps=steps))
    place = next(place for place, panel in enumerate(PANELS) if panel.title == "A push by part")
    text = (folder / DATA).read_text().removeprefix("edgeOpd(").rstrip().removesuffix(")")
    found = json.loads(text)["runs"][0]["charts"][place]["series"]
    seconds = {"pause": 0.05, "gather": 0.1, "digest": 0.05, "send": 0.1, "load": 0.14, "check": 0.1, "canary": 0.3}
    assert found == {name: pytest.approx([took] * 2, abs=1e-5) for name, took in seconds.items()}


def test_the_parts_of_a_push_are_in_the_records_where_the_timeline_is_gone(tmp_path: Path) -> None:
    folder, parts = fake_run(tmp_path / "run", {}), [{"pause": 0.1, "load": 0.2}, None, {"pause": 0.3, "load": 0.4}]
    for step, seconds in enumerate(parts):
        append_step(folder / "metrics.jsonl", replace(a_step(step), push_parts=seconds))
    place = next(place for place, panel in enumerate(PANELS) if panel.title == "A push by part")
    chart = json.loads(charts_of(read_seen(folder)).shown({}))["charts"][place]
    assert chart == {"x": [1, 3], "series": {"pause": [0.1, 0.3], "load": [0.2, 0.4]}}


def test_a_push_of_an_older_run_which_has_no_parts_is_shown_as_a_whole() -> None:
    place = next(place for place, panel in enumerate(PANELS) if panel.title == "A push by part")
    series = json.loads(charts_of(read_seen(OLDER)).shown({}))["charts"][place]["series"]
    assert list(series) == ["push", "check", "canary"] and min(series["push"]) > 0
