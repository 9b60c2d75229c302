"""The end of a run: what it learned as a table, its model card, and whether it reached what was required."""

from collections.abc import Sequence
from functools import partial

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.config import Recipe
from cluster.observe.advice import advice
from cluster.observe.seen import read_seen
from cluster.observe.sinks import summary_table
from cluster.run.gap import required
from cluster.run.model_card import write_model_card
from cluster.run.record import Gap, ProbeRecord, read_gap, read_probes, read_steps
from cluster.run.rundir import RunDir
from evidence.patience import bounded, retried_within
from evidence.rates import RATES
from rollout.tasks.base import Task

LOG_COLUMNS = 110  # that the table fits


def finish(recipe: Recipe, model: str, folder: RunDir, task: Task, notes: Sequence[str]) -> int:
    """The table, the model card, and the exit code: 1 when the required figure was not reached. `notes` are
    those of `Notes.card`.

    Raises:
        ValueError: a line of the run's records that is none; names the file and the line.
    """
    console = Console(highlight=False)
    if not console.is_terminal:  # a log, for which rich takes 80 columns and breaks each interval
        console.width = max(console.width, LOG_COLUMNS)
    patient = partial(retried_within, recipe.faults.store_s)
    probes = list(patient(folder.probes, partial(read_probes, folder.probes)).values())
    first, last = probes[0], probes[-1]
    gap = patient(folder.gap, partial(read_gap, folder.gap))
    early = f", ended level at step {last.step} of {recipe.run.steps}" if last.is_early(recipe.run.steps) else ""
    title = escape(f"{folder.root.name}: probe without context{early}")
    table = Table("figure", "before", "after", gap.of if gap else "teacher", "answers", title=title)
    for row in summary_table(first, last, gap.teacher if gap else {}):
        table.add_row(*row)
    console.print(table)
    steps = patient(folder.metrics, partial(read_steps, folder.metrics)).values()
    busy = [step.busy_fraction for step in steps if step.busy_fraction is not None][1:]
    if busy:
        console.print(f"stages' own time over wall time, steps 2 on: {sum(busy) / len(busy):.1%}")
    card = partial(write_model_card, recipe, model, folder, task, notes, (first, last), gap)
    patient(folder.export, card)
    for line in _advice(folder):
        console.print(f"advice: {line}", markup=False, soft_wrap=True)
    console.print(f"model: {folder.export}", markup=False, soft_wrap=True)
    return _verdict(required(recipe, gap), last, gap, console)


def _advice(folder: RunDir) -> list[str]:
    """What watched the run is no part of it: without its files there is no advice."""
    try:
        return [str(one) for one in advice(bounded(folder.root, partial(read_seen, folder.root)))]
    except (OSError, ValueError) as error:
        return [f"none: {error}"]


def _verdict(least: float, last: ProbeRecord, gap: Gap | None, console: Console) -> int:
    name, rate = next(iter(last.rates.items()))
    if rate.share >= least:
        return 0
    teacher = f" (the teacher's{_of(gap, name)}: {gap.teacher[gap.main].share:.2f})" if gap else ""
    said = f"{RATES[name].label} is {rate.share:.2f} of {rate.n} answers, expected at least {least:.2f}{teacher}"
    console.print(said, markup=False, soft_wrap=True)
    return 1


def _of(gap: Gap, name: str) -> str:
    """What the teacher's rate is of, where that is not the rate `name` of the probe's questions: before `task.main_tag`
    the main rate had another name."""
    rate = "" if gap.main == name else f" {RATES[gap.main].label}"
    return rate + ("" if gap.is_of_probe else " for training questions")
