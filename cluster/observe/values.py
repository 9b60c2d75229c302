"""The current value of each figure of a run, as its records come: what Ray's endpoint and OpenMetrics tell."""

from collections.abc import Iterable, Iterator, Sequence

from cluster.config import Recipe
from cluster.observe.figures import COUNTER, FIGURES
from cluster.observe.observer import STOPPED, Batch
from cluster.observe.readings import SUMS, Reading, of_probe, of_recipe, of_sample, of_span, of_step, of_wait
from cluster.observe.waits import Waits
from cluster.run.record import ProbeRecord, StepRecord

LAST_STEP, LAST_PROGRESS = "last_step_timestamp_seconds", "last_progress_timestamp_seconds"
TIMES = (LAST_STEP, LAST_PROGRESS)  # none is awaited until the loop begins
Key = tuple[str, tuple[tuple[str, str], ...]]  # a figure's name and its labels, sorted
_ENGINES_OWN = frozenset(SUMS.values())


class Values:
    """Gauges as they were last read, counters added up. Those of a sample or a step are gone once the next one does not
    say them, such as the load of an engine that is silent, or the time of a stage that was not in the step.

    steps, probes: that a run which is resumed has already, in order. Their gauges are known, but for when the last step
    ended: none is awaited until the loop begins again. Counters are of this process.
    """

    def __init__(self, recipe: Recipe, steps: Sequence[StepRecord] = (), probes: Sequence[ProbeRecord] = ()) -> None:
        self._planned, self._has_probe = recipe.run.steps, False
        self.now: dict[Key, float] = {}
        self._waits = Waits(recipe.observe.every_s)
        self._sums: dict[Key, float] = {}  # as an engine last told them
        self._said: dict[str, set[Key]] = {}  # the gauges of the last record, by its kind
        self.read(of_recipe(recipe))
        self.read([Reading("run_running", 1.0, {}), Reading("run_stopped", 0.0, {})])
        stands = [reading for step in steps[-1:] for reading in of_step(step, self._planned)]
        self._renew("step", [one for one in stands if FIGURES[one.name].kind != COUNTER and one.name not in TIMES])
        self._add_probes(probes)

    def add(self, batch: Batch) -> None:
        """Everything that is new."""
        for sample in batch.samples:
            self._renew("sample", [*of_sample(sample), *(self._silent() if sample.fault else ())])
        for span in batch.spans:
            self.read(of_span(span))
        for window in self._waits.add(batch):
            self.read(of_wait(window))
        for step in batch.steps:
            self._renew("step", list(of_step(step, self._planned)))
        self._add_probes(batch.probes)
        if batch.ended:
            self.read([Reading("run_running", 0.0, {}), Reading("run_stopped", float(batch.ended == STOPPED), {})])
            self._renew("sample", [])  # nobody asks any more

    def _silent(self) -> Iterator[Reading]:
        """Engines of a service that does not answer."""
        return (Reading("engine_up", 0.0, dict(labels)) for name, labels in self.now if name == "engine_up")

    def _renew(self, kind: str, readings: Sequence[Reading]) -> None:
        """What the last record of this kind says is all that is known of its gauges."""
        said = {_key(one) for one in readings if FIGURES[one.name].kind != COUNTER}
        for gone in self._said.get(kind, set()) - said:
            del self.now[gone]
        self._said[kind] = said
        self.read(readings)

    def _add_probes(self, probes: Iterable[ProbeRecord]) -> None:
        for probe in probes:
            self.read(of_probe(probe, is_first=not self._has_probe))
            self._has_probe = True

    def read(self, readings: Iterable[Reading]) -> None:
        """Sets gauges, and adds to counters."""
        for reading in readings:
            key = _key(reading)
            if reading.name in _ENGINES_OWN:
                self.now[key] = self.now.get(key, 0.0) + self._growth(key, reading.value)
            elif FIGURES[reading.name].kind == COUNTER:
                self.now[key] = self.now.get(key, 0.0) + reading.value
            elif reading.name == LAST_PROGRESS:  # steps and spans come each in their own order
                self.now[key] = max(self.now.get(key, 0.0), reading.value)
            else:
                self.now[key] = reading.value

    def _growth(self, key: Key, told: float) -> float:
        """Since the engine last told its sum; one that tells less began again."""
        before, self._sums[key] = self._sums.get(key, 0.0), told
        return told - before if told >= before else told


def _key(reading: Reading) -> Key:
    return reading.name, tuple(sorted(reading.labels.items()))
