"""RUN/dashboard.html: written once, with its data beside it in dashboard.js, which an open page reads every second.

It is there from the start of the services on. Once the run has ended, it holds its data itself. Where the run has not
come to its last step it reads on, and shows a resume. It asks nothing of a network.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from cluster.config import Recipe
from cluster.dashboard.charts import RunCharts, charts_of
from cluster.dashboard.lanes import COLOURS
from cluster.dashboard.panels import PANELS
from cluster.dashboard.text import list_of, object_of, script_text
from cluster.dashboard.views import LIST, views_of
from cluster.observe.files import place_for
from cluster.observe.observer import FINISHED, STARTING, Batch
from cluster.observe.seen import GAP, read_seen
from cluster.run.record import read_gap
from evidence.files import write_whole
from evidence.view.pages import environment

PAGE, DATA = "dashboard.html", "dashboard.js"
AGAIN_S = 5.0  # between two writes while the services start
JOIN_S = 10.0  # for one of them to end


def data_of(runs: Sequence[str], every_s: float, ended: str) -> str:
    """What the page reads, as JSON. runs: each as `RunCharts.shown` has it. ended: how."""
    made = {"made": time.time(), "every": every_s, "ended": ended}
    return object_of({name: script_text(value) for name, value in made.items()} | {"runs": list_of(runs)})


def page(title: str, data: str = "null", source: str = "", views: str = "") -> str:
    """The page. source: what it reads again and again, until the run is finished. views: where the list of token views
    will be that are made once the page is there."""
    scripts = files("cluster.dashboard").joinpath("templates")
    code = "\n".join(scripts.joinpath(name).read_text(encoding="utf-8") for name in ("charts.js", "page.js"))
    template = environment("cluster.dashboard").get_template("dashboard.html.jinja")
    panels = script_text([panel.shown for panel in PANELS])
    return template.render(
        title=title,
        code=code,
        panels=panels,
        work=script_text(COLOURS),
        source=source,
        views=views,
        data=data,
    )


class PageSink:
    """Writes the page of a run as it goes on."""

    name = "page"

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self._folder, self._recipe, self._made = folder, recipe, time.time()
        self._charts: RunCharts | None = None

    def _begun(self) -> RunCharts:
        """What a run that is resumed has already; what is of this process comes as batches."""
        write_whole(self._folder / PAGE, page(self._folder.name, source=DATA, views=LIST), on_disk=False)
        seen = read_seen(self._folder)
        samples = [sample for sample in seen.samples if sample.time < self._made]
        spans = [span for span in seen.spans if span.begin < self._made]
        return charts_of(replace(seen, recipe=self._recipe, samples=samples, spans=spans))

    def write(self, batch: Batch) -> None:
        if self._charts is None:
            self._charts = self._begun()
        if self._charts.gap is None:
            self._charts.gap = read_gap(self._folder / GAP)
        self._charts.add(batch)
        run = self._charts.shown(views_of(self._folder, ""))
        data = data_of([run], self._recipe.observe.every_s, batch.ended)
        write_whole(self._folder / DATA, f"edgeOpd({data})\n", on_disk=False)
        if batch.ended and batch.ended != STARTING:
            write_whole(self._folder / PAGE, page(self._folder.name, data, DATA, LIST), on_disk=False)


class StartingPage:
    """Within it the page says that the services start, again and again: a learner may learn for hours from what stands.
    Where the folder cannot be read or written nothing is said, which the run's own sink tells.

    ending: how a run ended whose services did not start.
    """

    def __init__(self, folder: Path, recipe: Recipe, ending: Callable[[BaseException], str]) -> None:
        self._sink, self._ending, self._begun = PageSink(folder, recipe), ending, threading.Event()
        self._thread = threading.Thread(target=self._rounds, name="observe-start", daemon=True)

    def __enter__(self) -> "StartingPage":
        self._thread.start()
        return self

    def end(self) -> None:
        """The run begins, and its own sink writes."""
        self._begun.set()
        self._thread.join(JOIN_S)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        has_begun = self._begun.is_set()
        self.end()
        if error is not None and not has_begun:
            self._write(self._ending(error))

    def _rounds(self) -> None:
        while not self._begun.is_set():
            self._write(STARTING)
            self._begun.wait(AGAIN_S)

    def _write(self, ended: str) -> None:
        with suppress(OSError, ValueError):
            self._sink.write(Batch(time.time(), ended=ended))


def told_apart(folders: Sequence[Path]) -> list[str]:
    """A name for each: its folder's, with as many of those above it as no other one has; the same folder again has a
    number."""
    names: list[str] = []
    for folder in folders:
        others = [other for other in folders if other != folder]
        for depth in range(1, len(folder.parts) + 1):
            own = folder.parts[-depth:]
            if all(other.parts[-depth:] != own for other in others):
                break
        name, again = str(Path(*own)), folders[: len(names)].count(folder)
        names.append(f"{name} ({again + 1})" if again else name)
    return names


def write_dashboard(runs: Sequence[Path], out: Path | None) -> Path:
    """One page of several runs from their folders, which are not written to; returns where it is.

    out: default dashboard-RUN.html here, or dashboard.html for several.

    Raises:
        ValueError: not a run, or a damaged file; names it. Or `out` is a folder.
    """
    seen = [read_seen(run) for run in runs]
    path = place_for(out or Path(f"dashboard-{seen[0].name}.html" if len(runs) == 1 else PAGE))
    shown, names = [], told_apart([run.resolve() for run in runs])
    for run, one, name in zip(runs, seen, names, strict=True):
        prefix = os.path.relpath(run.resolve(), path.resolve().parent) + "/"
        shown.append(charts_of(replace(one, name=name)).shown(views_of(run, prefix)))
    title = ", ".join(names)
    ended = FINISHED if all(one.is_whole for one in seen) else "before"
    write_whole(path, page(title, data_of(shown, 0, ended)))
    return path
