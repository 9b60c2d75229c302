"""The end of a run of `facts` that began when its main rate was that of all questions. No engine."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster.config import Recipe
from cluster.run.finish import finish
from cluster.run.model_card import write_model_card
from cluster.run.record import END, STEP, Gap, ProbeRecord, append_probe, write_gap
from cluster.run.rundir import RunDir
from cluster.typed import build
from rollout.probe import Rate
from rollout.tasks import build_task

OLD, NEW = ("correct", "correct:facts"), ("correct:facts", "correct")


def probed(step: int, names: Sequence[str], weights: str) -> ProbeRecord:
    """A probe with its rates in this order: the first is the main one."""
    rates = {"correct": Rate(30, 80), "correct:facts": Rate(4, 40)}
    return ProbeRecord(step, None, "facts", {name: rates[name] for name in names}, 40, 1, weights=weights)


def begun(path: Path, **tables: dict[str, object]) -> tuple[Recipe, RunDir]:
    recipe, folder = build(Recipe, {"task": {"name": "facts"}} | tables, "R"), RunDir(path)
    folder.claim(recipe, resume=False)
    folder.export.mkdir()
    return recipe, folder


@pytest.mark.parametrize(
    ("probe", "least"), [({"require": 0.5}, "0.50"), ({"require_of_teacher": 0.5}, "0.35"), ({"require": 0.1}, "")]
)
def test_its_gap_has_not_the_main_rate_of_today(
    probe: dict[str, object], least: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, folder = begun(tmp_path / "run", probe=probe)
    append_probe(folder.probes, probed(0, OLD, STEP))
    append_probe(folder.probes, probed(recipe.run.steps, NEW, END))  # after it was resumed
    write_gap(folder.gap, Gap(0.0, "facts", {"correct": Rate(70, 100)}, {"correct": Rate(0, 100)}, "training"))
    assert finish(recipe, "base", folder, build_task(recipe.task), []) == bool(least)
    of = "(the teacher's correct for training questions: 0.70)"
    said = f"correct, facts is 0.10 of 40 answers, expected at least {least} {of}"
    assert (said in capsys.readouterr().out) == bool(least)


@pytest.mark.parametrize(("names", "by"), [(OLD, "correct"), (NEW, "correct, facts")])
def test_its_card_names_the_rate_that_chose_its_weights(names: Sequence[str], by: str, tmp_path: Path) -> None:
    recipe, folder = begun(tmp_path / "run", export={"choose": "best"})
    probes = probed(0, OLD, STEP), probed(recipe.run.steps, names, END)
    write_model_card(recipe, "base", folder, build_task(recipe.task), [], probes, None)
    card = (folder.export / "README.md").read_text()
    assert f"The weights are those with the best {by} of the probes on the way" in card
