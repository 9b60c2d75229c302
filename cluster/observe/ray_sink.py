"""The figures at the metrics endpoint of the driver's Ray node, which Ray's service discovery and KubeRay know.

Counters and gauges only: Ray 2.60's node agent records a histogram's observations again at their buckets' midpoints, so
that its sums are wrong. A gauge that is told once is exported once, so each is told again in every round, also while no
observer writes: as the services start, and as they end.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cluster.config import Recipe
from cluster.observe.figures import COUNTER, FIGURES, PREFIX
from cluster.observe.observer import Batch
from cluster.observe.readings import Reading
from cluster.observe.seen import read_records
from cluster.observe.values import TIMES, Key, Values


class RaySink:
    """Needs a Ray that this process is connected to. folder: of the run, which may have steps already."""

    name = "Ray's metrics"

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self._folder, self._recipe = folder, recipe
        self._values: Values | None = None
        self._lock = threading.Lock()  # two threads tell what is known
        self._has_begun = False
        self._metrics: dict[str, Any] = {}
        self._told: dict[Key, float] = {}  # counters

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tells all that is known every `observe.every_s`, from a thread of its own."""
        ended = threading.Event()
        threading.Thread(target=self._rounds, args=(ended,), name="observe-again", daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def _rounds(self, ended: threading.Event) -> None:
        """Where the folder cannot be read there is nothing to tell, which `write` says."""
        while not ended.is_set():
            with suppress(OSError, ValueError), self._lock:
                self._tell(self._known())
            ended.wait(self._recipe.observe.every_s)

    def write(self, batch: Batch) -> None:
        with self._lock:
            if not self._has_begun:  # the loop has: what was learned again stands too, and a step is awaited
                self._has_begun, self._values = True, None
                self._known().read(Reading(name, batch.time, {}) for name in TIMES)
            values = self._known()
            values.add(batch)
            self._tell(values)

    def _known(self) -> Values:
        """At first what stands."""
        if self._values is None:
            self._values = Values(self._recipe, *read_records(self._folder))
        return self._values

    def _tell(self, values: Values) -> None:
        for key, value in values.now.items():
            name, labels = key
            metric, tags = self._metric(name), {"run": self._folder.name, **dict(labels)}
            if FIGURES[name].kind != COUNTER:
                metric.set(value, tags=tags)
            elif (more := value - self._told.get(key, 0.0)) > 0:  # Ray refuses to add 0
                metric.inc(more, tags=tags)
                self._told[key] = value

    def _metric(self, name: str) -> Any:
        if name not in self._metrics:
            from ray.util.metrics import Counter, Gauge

            row = FIGURES[name]
            kind, keys = Counter if row.kind == COUNTER else Gauge, ("run", *row.labels)
            self._metrics[name] = kind(PREFIX + name, description=row.meaning, tag_keys=keys)
        return self._metrics[name]
