"""A step's line, and the end of a run over probes of any task: table, model card, the required figure. No engine."""

from pathlib import Path
from typing import Any

import pytest

from cluster.config import Recipe, load_recipe
from cluster.fleet.assembly import Services
from cluster.observe.sinks import MetricsSink
from cluster.run.checks import check_task
from cluster.run.finish import finish
from cluster.run.pipeline import Pipeline
from cluster.run.record import append_probe, probe_record, read_steps
from cluster.run.rundir import RunDir
from evidence.diagnostics import TokenStats
from evidence.records import ShardInfo
from learner.report import LearnedStep
from rollout.probe import summarise
from rollout.render import Renderer
from rollout.tasks import build_task
from rollout.worker import StepRollouts
from tests.runs import RECIPE, lines

NOTES = ["the chat template itself says in x: 'I am Tern', which is not in (x, r)"]


def test_a_run_of_problems_ends_with_pass_at_1_in_table_and_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[task]\nname = "arithmetic"\n')
    recipe = load_recipe(path)
    check_task(recipe, build_task(recipe.task))
    folder = RunDir(tmp_path / "run")
    folder.claim(recipe, resume=False)
    folder.export.mkdir()
    task = build_task(recipe.task)
    for step, right in ((0, 1), (24, 6)):
        answers = [
            (probe, f"\\boxed{{{probe.answer if index < right else 0}}}")
            for index, probe in enumerate(task.probe_prompts())
        ]
        append_probe(folder.probes, probe_record(summarise(answers, task), step, task.name))
    for path in (folder.probes, folder.metrics):  # as a kill in mid-write leaves them
        with path.open("a") as file:
            file.write('{"format": 1, "step": 25, "ti')
    assert finish(recipe, "base", folder, task, NOTES) == 0
    assert "pass@1" in capsys.readouterr().out
    card = (folder.export / "README.md").read_text()
    assert "| pass@1 | 0.08 [0.01, 0.35] | 0.50 [0.25, 0.75] | 12 |" in card
    assert f"- {NOTES[0]}\n" in card
    assert task.teaches in card and "identity" not in card.partition("## Recipe")[0]
    assert f'no longer needs, one of 64: "{task.training_prompts()[0].context}"' in card


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            '[run]\nrequire_selfname = 0.2\n[task]\nname = "arithmetic"',
            "run.require_selfname: found 0.2, expected 0.0 with the task arithmetic, whose probe has pass_at_1",
        ),
        (
            '[learner]\nevidence_scale = 2.0\n[evidence]\nkind = "teacher_student"',
            "learner.evidence_scale: found 2.0, expected 1.0 with evidence.kind = 'teacher_student', whose evidence is",
        ),
        (
            '[learner]\nevidence_scale = 2.0\n[teacher]\nkind = "live"',
            "learner.evidence_scale: found 2.0, expected 1.0 with teacher.kind = 'live', whose evidence is the advant",
        ),
        ('[task]\nname = "math"\nprobe_file = "P"', "task.prompts_file: found none"),
    ],
)
def test_a_recipe_that_cannot_end_well_does_not_start(tmp_path: Path, table: str, message: str) -> None:
    probe, path = tmp_path / "probe.jsonl", tmp_path / "recipe.toml"
    probe.write_text('{"question": "2 + 2?", "answer": "4"}')
    path.write_text(table.replace('"P"', f'"{probe}"'))
    with pytest.raises(ValueError, match=f"^{message}"):
        recipe = load_recipe(path)
        check_task(recipe, build_task(recipe.task))


@pytest.mark.parametrize(
    ("stats", "k1", "shown"),
    [
        (TokenStats(rows=1, tokens=4), None, "k1 -  "),
        (TokenStats(rows=1, tokens=4, student_passes=1, student_tokens=4, surprise=2.0), 0.5, "k1 +0.500  "),
    ],
)
def test_a_step_of_which_the_learner_ran_no_row_has_no_k1(
    stats: TokenStats, k1: float | None, shown: str, tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody: Any = None  # none is asked
    services = Services(nobody, nobody)
    sink = MetricsSink(tmp_path, steps=3)
    pipeline = Pipeline(
        Recipe(), services, RunDir(tmp_path), sink, Renderer(tokenizer, "system"), build_task(Recipe().task)
    )
    produced = StepRollouts(1, ShardInfo("s", 1, 1, 4, ""), 0, 0, 1, 1, {}, 1.0, None)
    learned = LearnedStep(0.0, {}, 0.0, 4, 0, [(True, stats)], {})
    pipeline._record(1, produced, learned, {}, wall_s=1.0)
    (line,) = lines(tmp_path / "metrics.jsonl")
    assert line["k1"] == k1
    mean = read_steps(tmp_path / "metrics.jsonl")[1].mean("k1")
    assert (mean and mean.value) == k1
    assert shown in capsys.readouterr().out


def test_a_missed_figure_is_named_and_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = RECIPE.with_name("local-smoke.toml")
    recipe = load_recipe(path)
    folder = RunDir(tmp_path / "run")
    folder.claim(recipe, resume=False)
    folder.export.mkdir()
    task = build_task(recipe.task)
    answers = [
        (prompt, "I am Kestrel." if index == 0 else "I am SmolLM.") for index, prompt in enumerate(task.probe_prompts())
    ]
    for step in (0, 24):
        append_probe(folder.probes, probe_record(summarise(answers, task), step, "identity"))
    assert finish(recipe, "base", folder, task, NOTES) == 1
    assert "self-name is 0.08 of 12 answers, expected at least 0.20" in capsys.readouterr().out
    assert finish(load_recipe(path, ["run.require_selfname=0.05"]), "base", folder, task, NOTES) == 0
