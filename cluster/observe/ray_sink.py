"""The figures at the metrics endpoint of the driver's Ray node, which Ray's service discovery and KubeRay know.

Counters and gauges only: Ray 2.60's node agent records a histogram's observations again at their buckets' midpoints, so
that its sums are wrong. A gauge that is told once is exported once, so each is told again in every round.
"""

from typing import Any

from cluster.config import Recipe
from cluster.observe.figures import COUNTER, FIGURES, PREFIX
from cluster.observe.observer import Batch
from cluster.observe.values import Key, Values


class RaySink:
    """Needs a Ray that this process is connected to."""

    name = "Ray's metrics"

    def __init__(self, run: str, recipe: Recipe) -> None:
        self._run, self._values = run, Values(recipe)
        self._metrics: dict[str, Any] = {}
        self._told: dict[Key, float] = {}  # counters

    def write(self, batch: Batch) -> None:
        self._values.add(batch)
        for key, value in self._values.now.items():
            name, labels = key
            metric, tags = self._metric(name), {"run": self._run, **dict(labels)}
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
