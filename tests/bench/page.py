"""The page of a run of 10,000 steps with 16 engines, and with 64, each with figures of its own and with work each
0.2 s: how much data it has, what a step's write takes, in processor time, and how soon it is seen.

    python -m tests.bench.page

It is seen in a real Chromium, from the start of the navigation to the first frame after the one in which everything in
view is laid out and painted; a chart far below is drawn once it comes near. Engines are not in step with each other.
"""

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cluster.config import Recipe, RunConfig
from cluster.dashboard.page import DATA, PAGE, PageSink
from cluster.observe.observer import Batch
from tests.bench.figures import Figure
from tests.browser import chromium
from tests.fakes import fake_run
from tests.observed import BEGAN, STEP_S, a_sample, a_step, crowded, dense_spans, spans_of

STEPS, MORE, OPENINGS = 10_000, 20, 5
LANES = 20  # steps whose spans are there
ENGINES = (16, 64)  # half of them in each pool
# The script that draws is a part of the document: the frame after it paints, and the next one begins once it has.
PAINTED = """addEventListener("DOMContentLoaded", () =>
  requestAnimationFrame(() => requestAnimationFrame(at => { window.painted = at; })));"""


def main() -> None:
    for engines in ENGINES:
        with tempfile.TemporaryDirectory() as temporary:
            measure(Path(temporary), engines // 2)


def measure(temporary: Path, each: int) -> None:
    """The figures with `each` engines of a pool."""
    folder, rng, engines = fake_run(temporary / "run", {}), np.random.default_rng(0), f"{2 * each} engines"
    sink = PageSink(folder, Recipe(run=RunConfig(steps=STEPS + MORE)))
    samples = tuple(crowded(a_sample(STEP_S * place), each, rng) for place in range(STEPS))
    last = range(STEPS - LANES, STEPS)
    spans = dense_spans(STEP_S * last[0], STEP_S * LANES, 2 * each) + [span for step in last for span in spans_of(step)]
    sink.write(Batch(BEGAN + STEPS * STEP_S, samples, tuple(spans), tuple(map(a_step, range(STEPS)))))
    text = (folder / DATA).read_text()
    (run,) = json.loads(text.removeprefix("edgeOpd(").rstrip().removesuffix(")"))["runs"]
    boxes = sum(len(row["spans"]) // 4 for row in run["lanes"]["rows"])
    assert len(run["lanes"]["rows"]) > 2 * each, "every engine has a lane"
    size = (folder / DATA).stat().st_size
    Figure(f"data of the page, {engines}, MB", size / 1e6, "<= 1", f"{STEPS} steps, {boxes} stretches of lanes").say()
    taken = [timed(sink, STEPS + step, each, rng) for step in range(MORE)]
    note = f"largest {1e3 * max(taken):.0f}"
    Figure(f"a step's write, {engines}, ms of the processor", 1e3 * statistics.median(taken), "<= 20", note).say()
    sink.write(Batch(BEGAN, ended="finished"))
    if shutil.which("chromium") or shutil.which("google-chrome"):
        painted = list(openings(temporary / "browser", (folder / PAGE).as_uri()))
        note = json.dumps([round(ms) for ms in painted])
        Figure(f"first paint of the charts, {engines}, ms", statistics.median(painted), "<= 300", note).say()


def openings(profile: Path, address: str) -> Iterator[float]:
    """Milliseconds until the charts are painted."""
    with chromium(profile) as browser:
        browser.size(1280, 900)
        browser.call("Page.addScriptToEvaluateOnNewDocument", source=PAINTED)
        for _ in range(OPENINGS):
            browser.open(address)
            browser.wait_for("window.painted")
            yield browser.value("painted")


def timed(sink: PageSink, step: int, each: int, rng: np.random.Generator) -> float:
    """Processor seconds of one step's write, with two samples and the spans of a step."""
    samples = tuple(crowded(a_sample(STEP_S * step + since), each, rng) for since in (0.0, STEP_S / 2))
    spans = (*spans_of(step), *dense_spans(STEP_S * step, STEP_S, 2 * each))
    batch = Batch(BEGAN + STEP_S * (step + 1), samples, spans, (a_step(step),))
    begun = time.thread_time()
    sink.write(batch)
    return time.thread_time() - begun


if __name__ == "__main__":
    main()
