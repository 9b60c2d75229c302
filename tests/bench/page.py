"""The page of a run of 10,000 steps with 16 engines: how much data it has, what a step's write takes, and how soon it
is drawn.

    python -m tests.bench.page

The drawing is a real Chromium's, from the start of the navigation to the end of the script that draws every chart.
"""

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cluster.config import Recipe, RunConfig
from cluster.dashboard.page import DATA, PAGE, PageSink
from cluster.observe.observer import Batch
from evidence.telemetry import Sample, Span
from tests.bench.figures import Figure
from tests.browser import chromium
from tests.fakes import fake_run
from tests.observed import BEGAN, a_sample, a_step, spans_of

STEPS, MORE, OPENINGS = 10_000, 20, 5
EACH = 8  # engines of a pool
DRAWN = "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = fake_run(Path(temporary) / "run", {})
        sink = PageSink(folder, Recipe(run=RunConfig(steps=STEPS + MORE)))
        samples = tuple(crowded(a_sample(2.0 * place)) for place in range(STEPS))
        sink.write(Batch(BEGAN, samples, (), tuple(map(a_step, range(STEPS)))))
        Figure("data of the page, MB", (folder / DATA).stat().st_size / 1e6, "<= 1", f"{STEPS} steps").say()
        seconds = [timed(sink, STEPS + step) for step in range(MORE)]
        Figure(
            "a step's write, ms", 1e3 * statistics.median(seconds), "<= 20", f"largest {1e3 * max(seconds):.0f}"
        ).say()
        sink.write(Batch(BEGAN, ended="finished"))
        if shutil.which("chromium") or shutil.which("google-chrome"):
            with chromium(Path(temporary) / "browser") as browser:
                browser.size(1280, 900)
                drawn = []
                for _ in range(OPENINGS):
                    browser.open((folder / PAGE).as_uri())
                    drawn.append(browser.value(DRAWN))
            Figure(
                "first drawing, ms", statistics.median(drawn), "<= 300", json.dumps([round(ms) for ms in drawn])
            ).say()


def timed(sink: PageSink, step: int) -> float:
    """Seconds of one step's write, with two samples and the spans of a step."""
    samples = crowded(a_sample(2.0 * step)), crowded(a_sample(2.0 * step + 1))
    batch = Batch(time.time(), samples, tuple(beside(spans_of(step))), (a_step(step),))
    begun = time.perf_counter()
    sink.write(batch)
    return time.perf_counter() - begun


def crowded(sample: Sample) -> Sample:
    """With as many engines of each pool, which do the same."""
    engines = {name[:-1] + str(place): one for name, one in sample.engines.items() for place in range(EACH)}
    return replace(sample, engines=engines)


def beside(spans: Sequence[Span]) -> Iterator[Span]:
    """What the first engine of a pool does, the others do too."""
    for span in spans:
        lanes = [span.lane[:-1] + str(place) for place in range(EACH)] if "engine" in span.lane else [span.lane]
        yield from (replace(span, lane=lane) for lane in lanes)


if __name__ == "__main__":
    main()
