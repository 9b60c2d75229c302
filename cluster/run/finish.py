"""The end of a run: what it learned as a table, its model card, and whether it reached what was required."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from cluster.config import Recipe
from cluster.observe.advice import advice
from cluster.observe.seen import read_seen
from cluster.observe.sinks import summary_table
from cluster.run.model_card import write_model_card
from cluster.run.record import ProbeRecord, read_probes, read_steps
from cluster.run.rundir import RunDir
from rollout.tasks.base import Task


def finish(recipe: Recipe, model: str, folder: RunDir, task: Task, notes: Sequence[str]) -> int:
    """The table, the model card, and the exit code: 1 when the required figure was not reached. `notes` are what the
    start of the run said of its prompts.

    Raises:
        ValueError: a line of the run's records that is none; names the file and the line.
    """
    console = Console(highlight=False)
    probes = list(read_probes(folder.probes).values())
    first, last = probes[0], probes[-1]
    table = Table("figure", "before", "after", "answers", title=f"{folder.root.name}: probe without context")
    for row in summary_table(first, last):
        table.add_row(*row)
    console.print(table)
    busy = [step.busy_fraction for step in read_steps(folder.metrics).values() if step.busy_fraction is not None][1:]
    if busy:
        console.print(f"stages' own time over wall time, steps 2 on: {sum(busy) / len(busy):.1%}")
    for one in advice(read_seen(folder.root)):
        console.print(f"advice: {one}", markup=False, soft_wrap=True)
    write_model_card(recipe, model, folder, task, notes, first, last)
    console.print(f"model: {folder.export}", soft_wrap=True)
    return _verdict(recipe.run.require_selfname, last, console)


def _verdict(required: float, last: ProbeRecord, console: Console) -> int:
    if not required:
        return 0
    rate = last.rates["selfname"]
    if rate.share >= required:
        return 0
    console.print(f"self-name is {rate.share:.2f} of {rate.n} answers, expected at least {required:.2f}")
    return 1
