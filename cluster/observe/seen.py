"""What is known of a run, from its folder or as it goes on: what the page, the timeline and the advice are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cluster.config import Recipe
from cluster.observe.files import SAMPLES, TRACE
from cluster.observe.waits import Window, together, windows
from cluster.resolved import read_resolved
from cluster.run.record import Gap, ProbeRecord, StepRecord, read_gap, read_notes, read_plans, read_probes, read_steps
from evidence.telemetry import Sample, Span, read_samples, read_spans

GAP, MEMORY = "gap.json", "memory.jsonl"
RECENT_SAMPLES = 200  # that advice is of


@dataclass(frozen=True)
class Seen:
    """Steps and probes by their step, samples and spans by their time; runs of older versions have none of the two."""

    name: str
    recipe: Recipe
    steps: Sequence[StepRecord] = ()
    probes: Sequence[ProbeRecord] = ()
    samples: Sequence[Sample] = ()
    spans: Sequence[Span] = ()
    gap: Gap | None = None  # none in older runs, and before it is measured
    notes: Sequence[str] = ()  # what the start said of the prompts, and the last one of the GPUs' memory
    waits: Sequence[Window] = ()  # between the recent samples
    colocated: bool = False  # whether engines and ranks share a node's cores, or one GPU; False in older runs

    @cached_property
    def beside(self) -> float:
        """The share of the run's time between steps, which probes and checkpoints take; 0 where older lines do not say
        it. The pace is of this process; of a run that was resumed the steps before count as its own do."""
        walls = [step.wall_s for step in self.steps if step.wall_s]
        pace = self.steps[-1].pace_s if self.steps else None
        return max(0.0, 1 - sum(walls) / len(walls) / pace) if walls and pace else 0.0

    @cached_property
    def waited(self) -> dict[tuple[str, str], float]:
        """The share of the time of `waits` that each service waited, by (service, cause)."""
        seconds = sum(window.end - window.begin for window in self.waits)
        return {of: waited / seconds for of, waited in together(self.waits).seconds.items()} if self.waits else {}

    @property
    def is_whole(self) -> bool:
        """Whether the run came to its last probe."""
        return any(probe.ends(self.recipe.run.steps) for probe in self.probes)


def read_records(folder: Path) -> tuple[list[StepRecord], list[ProbeRecord]]:
    """The steps and the probes of a run's folder. ValueError names a damaged file."""
    return list(read_steps(folder / "metrics.jsonl").values()), list(read_probes(folder / "probes.jsonl").values())


def read_seen(folder: Path) -> Seen:
    """A run's folder.

    Raises:
        ValueError: not a run, or a damaged file; names it.
    """
    recipe = read_resolved(folder).recipe
    planned = read_plans(folder / MEMORY)[-1:]
    samples, spans = read_samples(folder / SAMPLES), read_spans(folder / TRACE)
    return Seen(
        folder.resolve().name,
        recipe,
        *read_records(folder),
        samples,
        spans,
        read_gap(folder / GAP),
        [*read_notes(folder / "inputs.json"), *(line for plan in planned for line in plan.said)],
        windows(samples[-RECENT_SAMPLES:], spans, recipe.observe.every_s),
        any(plan.colocated for plan in planned),
    )
