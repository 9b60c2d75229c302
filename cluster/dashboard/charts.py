"""One run as the page shows it, put together batch by batch: live from the observer, or at once from its folder."""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf
from operator import attrgetter
from typing import Any

from cluster.config import Recipe
from cluster.dashboard.columns import Columns
from cluster.dashboard.lanes import Lanes
from cluster.dashboard.panels import PANELS
from cluster.dashboard.text import list_of, object_of, script_text
from cluster.observe.advice import advice, sentence
from cluster.observe.observer import FINISHED, STOPPED, Batch
from cluster.observe.seen import RECENT_SAMPLES, Seen
from cluster.observe.timeline import PUSH_PARTS
from cluster.observe.waits import Apart, Waits, Window, together
from cluster.run.record import Gap, ProbeRecord, StepRecord
from evidence.telemetry import Sample, Span

SLACK_S = 0.5  # by which a push's last span may end after the step was recorded
NEAR = 0.8  # of the canary's tolerance, from which its tile is marked


class RunCharts:
    """The columns of every chart, and what else the page says of one run. gap: once it is measured. notes: what the
    start said of the prompts, such as what the chat template itself says in them, and of the GPUs' memory."""

    def __init__(self, name: str, recipe: Recipe, gap: Gap | None = None, notes: Sequence[str] = ()) -> None:
        self.name, self.recipe, self.gap, self.notes = name, recipe, gap, notes
        self.colocated = False
        self._columns = [Columns() for _ in PANELS]
        self._steps: list[StepRecord] = []
        self._probes: list[ProbeRecord] = []
        self._samples: deque[Sample] = deque(maxlen=RECENT_SAMPLES)
        self._fault, self._apart = "", Apart(recipe.observe.every_s)  # of the last sample
        self._lanes = Lanes()
        self._pushes: deque[Span] = deque()  # that no step has yet, by their end
        self._waits, self._windows = Waits(recipe.observe.every_s), deque[Window]()
        self._recent: deque[Window] = deque(maxlen=RECENT_SAMPLES)
        self._began, self._ended = inf, ""

    def add(self, batch: Batch) -> None:
        """What is new."""
        self._lanes.add(batch.spans)
        self._began, self._ended = min([self._began, self._lanes.began, *_times(batch)]), batch.ended
        pushes = [span for span in batch.spans if (span.lane, span.name) in PUSH_PARTS]
        self._pushes.extend(sorted(pushes, key=attrgetter("end")))
        for sample in batch.samples:
            self._add_sample(sample)
        for step in batch.steps:
            self._add_step(step)
        for window in self._waits.add(batch):
            self._add_window(window)
        for probe in batch.probes:
            self._probes = [*(one for one in self._probes if one.step < probe.step), probe]
            self._append("probe", probe.step, probe)

    def _add_sample(self, sample: Sample) -> None:
        """A service that does not answer is a gap in its charts, and so is a time in which nobody asked."""
        self._fault, before = sample.fault, self._samples[-1] if self._samples else None
        if sample.fault:
            self._gap("sample", sample.time)
            return
        if before and self._apart.are(sample.time - before.time):
            self._gap("sample", (before.time + sample.time) / 2)
        self._append("sample", sample.time, sample, before)
        self._samples.append(sample)

    def _add_step(self, step: StepRecord) -> None:
        while self._steps and self._steps[-1].step >= step.step:
            self._steps.pop()
        self._steps.append(step)
        self._append("step", step.step + 1, step, self.recipe)
        end = (step.time or 0.0) + SLACK_S
        begin = (step.time or 0.0) - (step.wall_s or 0.0)  # a push before it is of the start
        own = []
        while self._pushes and self._pushes[0].end <= end:
            own.append(self._pushes.popleft())
        self._append("push", step.step + 1, step, [span for span in own if span.begin >= begin])

    def _add_window(self, window: Window) -> None:
        """Shown together with those before it, as far back as the last step took by then: windows shorter than a step
        are all wait or none. Before the first step is done each is shown alone."""
        if self._windows and window.begin != self._windows[-1].end:  # nobody asked, or the clock was set back
            self._gap("wait", window.begin)
            self._windows.clear()
        self._windows.append(window)
        self._recent.append(window)
        done = bisect_right(self._steps, window.end, key=lambda step: step.time or 0.0)
        step_s = self._steps[done - 1].wall_s if done else None
        while step_s is not None and len(self._windows) > 1 and self._windows[1].begin <= window.end - step_s:
            self._windows.popleft()
        self._append("wait", window.end, window if step_s is None else together(self._windows))

    def _append(self, of: str, x: float, *records: Any) -> None:
        for panel, columns in zip(PANELS, self._columns, strict=True):
            if panel.of == of:
                columns.append(x, panel.read(*records))

    def _gap(self, of: str, x: float) -> None:
        for panel, columns in zip(PANELS, self._columns, strict=True):
            if panel.of == of:
                columns.gap(x)

    def shown(self, views: Mapping[int, str]) -> str:
        """The run as the page reads it, as JSON. views: where the token view of a step is, by its number from 1."""
        samples, waits = list(self._samples), list(self._recent)
        known = Seen(self.name, self.recipe, self._steps, self._probes, samples, gap=self.gap, waits=waits)
        seen = replace(known, colocated=self.colocated)
        shown = {
            "name": self.name,
            "planned": self.recipe.run.steps,
            "began": self._began if self._began < inf else 0.0,
            "fault": self._fault,
            "sentence": sentence(seen),
            "notes": list(self.notes),
            "advice": [str(one) for one in advice(seen)],
            "tiles": [{"value": value, "label": label, "bad": bad} for value, label, bad in self._tiles()],
            "lanes": self._shown_lanes(),
            "views": {str(step): place for step, place in views.items()},
        }
        charts = list_of(columns.shown() for columns in self._columns)
        return object_of({name: script_text(value) for name, value in shown.items()} | {"charts": charts})

    def _tiles(self) -> Iterable[tuple[str, str, bool]]:
        if not self._steps:
            return
        last, planned = self._steps[-1], self.recipe.run.steps
        early = bool(self._probes) and self._probes[-1].is_early(planned)
        yield f"{last.step + 1}/{planned}", "steps, ended level" if early else "steps", False
        if last.wall_s:
            yield f"{last.wall_s:.1f}", "s a step", False
            yield last.left(last.step + 1 if early else planned), "left", False
            learned = last.stages["learn"].tokens if "learn" in last.stages else 0
            yield f"{learned / last.wall_s:,.0f}", "learner tok/s", False
        if last.busy_fraction is not None:
            yield f"{last.busy_fraction:.0%}", "stages' time over wall time", False
        if kept := last.mean("kept"):
            yield f"{kept.value:.2f}", "kept", False
        if last.grad_norm is not None:
            yield f"{last.grad_norm:.3g}", "gradient norm", False
        dropped = sum(step.dropped or 0 for step in self._steps[-20:])
        yield str(dropped), "dropped, 20 steps", dropped > 0
        if last.canary is not None:
            bound = last.canary_bound or self.recipe.weights.canary_tolerance
            yield f"{last.canary:.3f}", "canary", last.canary > NEAR * bound
        if self._probes and (name := next(iter(self._probes[-1].rates), "")):
            yield f"{self._probes[-1].rates[name].share:.2f}", name, False
        if self.gap is not None:
            yield (
                f"{self.gap.teacher[self.gap.main].share:.2f}",
                f"{self.gap.main} of the {self.gap.of}",
                self.gap.is_zero,
            )
        if self._samples:
            engines = self._samples[-1].engines.values()
            count, up = len(engines), 0 if self._fault else sum(engine.up for engine in engines)
            yield f"{up}/{count}", "engines answer", up < count

    def _shown_lanes(self) -> dict[str, Any]:
        last = self._steps[-1] if self._steps else None
        finished = last.time if last and self._ended == FINISHED else None
        return self._lanes.shown((last.wall_s if last else None) or 0.0, finished)


def _times(batch: Batch) -> Iterator[float]:
    """When samples and steps that it holds began, Unix times."""
    yield from (sample.time for sample in batch.samples)
    yield from (step.time - (step.wall_s or 0.0) for step in batch.steps if step.time is not None)


def charts_of(seen: Seen) -> RunCharts:
    """A run from its folder."""
    charts = RunCharts(seen.name, seen.recipe, seen.gap, seen.notes)
    charts.colocated = seen.colocated
    last = max([step.time or 0.0 for step in seen.steps] + [span.end for span in seen.spans], default=0.0)
    ended = FINISHED if seen.is_whole else STOPPED
    charts.add(Batch(last, tuple(seen.samples), tuple(seen.spans), tuple(seen.steps), tuple(seen.probes), ended))
    return charts
