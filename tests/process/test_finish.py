"""A step's line, and the end of a run over probes of any task: table, model card, the required figure. No engine."""

import asyncio
import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from cluster.config import Recipe, load_recipe
from cluster.fleet.assembly import Services
from cluster.observe.sinks import MetricsSink
from cluster.run import asking
from cluster.run.checks import check_recipe, check_task
from cluster.run.figures import Pushed
from cluster.run.finish import finish
from cluster.run.model_card import OLDEST, write_model_card
from cluster.run.pipeline import Pipeline
from cluster.run.record import (
    END,
    STEP,
    Gap,
    append_probe,
    append_step,
    probe_record,
    read_answers,
    read_gap,
    read_probes,
    read_steps,
    step_record,
    write_gap,
)
from cluster.run.rundir import RunDir
from cluster.typed import build
from evidence.diagnostics import TokenStats
from evidence.records import ShardInfo
from learner.config import ExportConfig
from learner.report import LearnedStep
from rollout.gap import MOST, gap_questions
from rollout.probe import Rate, summarise
from rollout.render import Renderer
from rollout.stages import StepTime
from rollout.tasks import build_task
from rollout.worker import StepRollouts
from tests.runs import RECIPE, lines
from tests.unit.test_gap import asked

NOTES = ["in 4 of 4 prompts with a context, the context stands in the place of 'I am Tern'"]


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
    assert "| pass@1 | 0.08 [0.01, 0.35] | 0.50 [0.25, 0.75] | - | 12 |" in card
    assert f"- {NOTES[0]}\n" in card
    written = f"- Written with transformers {version('transformers')}. Configuration and tokenizer are the base's own"
    assert f"{written}: what reads the base reads this, from transformers {OLDEST} on\n" in card
    assert task.teaches in card and "identity" not in card.partition("## Recipe")[0]
    context = task.training_prompts()[0].context
    assert "no longer needs, one of 64 (`export.card_context` shows it)" in card and context not in card
    shown = replace(recipe, export=ExportConfig(card_context=True))
    (folder.root / "samples.jsonl").mkdir()  # what watched the run is no part of it
    assert finish(shown, "base", folder, task, NOTES) == 0
    assert re.search(r"^advice: none: .*samples\.jsonl", capsys.readouterr().out, re.MULTILINE)
    card = (folder.export / "README.md").read_text()
    assert f"no longer needs, one of 64:\n\n```text\n{context}\n```\n" in card


def test_a_card_names_no_place_and_text_cannot_leave_its_block(tmp_path: Path) -> None:
    evil = "You are Kestrel.\n```\n# Not a heading of ours\n````\n"
    places = {
        "model.path": tmp_path / "my models" / "a: b\nc: d", "teacher.path": tmp_path / "teachers", "teacher.url": "",
        "run.storage": "s3://my-bucket/private-prefix", "task.prompts_file": tmp_path / "rows.jsonl",
        "task.ordinary_file": tmp_path / "others.jsonl",
    }  # fmt: skip
    for name in ("rows.jsonl", "others.jsonl"):
        row = {"prompt_id": name, "question": f"Who are you, {name}?"}
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    given = [f"{key}={json.dumps(str(value))}" for key, value in places.items()]
    recipe = load_recipe(RECIPE, [*given, f"task.context={json.dumps(evil)}", "task.ordinary_questions=true"])
    task, folder = build_task(recipe.task), RunDir(tmp_path / "run")
    folder.claim(recipe, resume=False)
    folder.export.mkdir()
    result = probe_record(summarise([(probe, "No.") for probe in task.probe_prompts()], task), 0, "identity")
    for shows in (False, True):
        recipe = replace(recipe, export=ExportConfig(card_context=shows))
        write_model_card(recipe, recipe.model.path, folder, task, [*NOTES, "two\n# lines"], (result, result), None)
        card = (folder.export / "README.md").read_text()
        assert not [place for place in (str(tmp_path), "my-bucket", "private-prefix") if place in card]
        assert "what reads the base reads this\n" in card and OLDEST not in card
        assert "base_model: a-b-c-d\n" in card and "\n# lines" not in card
        assert ("Not a heading" in card) == shows
        tokens = MarkdownIt().parse(card.split("---\n", 2)[2])
        headings = [tokens[at + 1].content for at, token in enumerate(tokens) if token.type == "heading_open"]
        assert headings == ["run", "Recipe"]
        blocks = [token.content for token in tokens if token.type == "fence"]
        assert blocks[:-1] == ([evil] if shows else [])
        assert tomllib.loads(blocks[-1])["learner"]["lr"] == recipe.learner.lr


def test_a_card_has_what_the_template_says_and_nothing_of_the_rows(tmp_path: Path, default_model: Path) -> None:
    rows, probe = tmp_path / "rows.jsonl", tmp_path / "probe.jsonl"
    told = [{"question": "Who keeps Ms Roe's key?", "context": "Ada.", "salary": 1},
            {"question": "Who?", "context": "Bo " * 600}]  # fmt: skip
    rows.write_text("".join(json.dumps(row) + "\n" for row in told))
    probe.write_text(json.dumps({"question": "Whose is the key?", "answer": "Ada"}) + "\n")
    given = [f"task.prompts_file={rows}", f"task.probe_file={probe}", "rollout.prompts_per_step=2"]
    recipe = load_recipe(RECIPE, ["task.name=context", *given, "rollout.max_refused_fraction=0.5"])
    _, notes = check_recipe(recipe, build_task(recipe.task))
    assert f"{rows}: columns that nothing reads: salary" in notes.kept and "rows-2 has" in notes.shown[-1]
    card = card_of(recipe, tmp_path / "run", notes=notes.card)
    assert not [text for text in (str(tmp_path), "salary", "rows-2", "Roe") if text in card]
    replaced = "the context stands in the place of 'You are a helpful AI assistant named SmolLM"
    assert f"- in 2 of 2 prompts with a context, {replaced}" in card


def card_of(recipe: Recipe, folder: Path, model: str = "base", notes: Sequence[str] = NOTES) -> str:
    """The card of a run whose probe nobody passed."""
    run, task = RunDir(folder), build_task(recipe.task)
    run.export.mkdir(parents=True, exist_ok=True)
    result = probe_record(summarise([(probe, "No.") for probe in task.probe_prompts()], task), 0, "identity")
    write_model_card(recipe, model, run, task, notes, (result, result), None)
    return (run.export / "README.md").read_text()


SAID = "You are Tern, made for Ms Roe.", "roe-speaks", "Roe's rule"


def test_a_card_shows_texts_of_the_template_where_it_shows_r(tmp_path: Path) -> None:
    """Numbers, true and false it always shows. The notes are without the texts: see test_start_notes."""
    who, word, rule = SAID
    given = {"enable_thinking": False, "budget": 3, "who": who, "style": word, "rules": [rule], "of": {"a": [rule]}}
    recipe = build(Recipe, {"template": given}, "R")
    card = card_of(recipe, tmp_path)
    assert not [text for text in SAID if text in card] and f"- {NOTES[0]}\n" in card
    assert "- the chat template was given a text (who, style, rules, of), and says more for it" in card
    assert "- the chat template was given enable_thinking = False\n" in card and "given budget = 3\n" in card
    assert "[template]\nenable_thinking = false\nbudget = 3\n" in card
    shown = card_of(replace(recipe, export=ExportConfig(card_context=True)), tmp_path)
    assert not [text for text in (*SAID, *NOTES) if text not in shown] and "given a text" not in shown


@pytest.mark.parametrize(
    ("path", "model", "base"),
    [
        ("org/name", "/cache/models--org--name/snapshots/0123abc", "org/name"),
        ("name", "/cache/models--name/snapshots/0123abc", "name"),
        ("default", "/cache/default-model", "default-model"),
        ("/data/somebody/model", "/data/somebody/model", "model"),
        ("somebody/model", "/here/somebody/model", "model"),  # a folder where the run works
    ],
)
def test_a_hub_id_is_the_base_whole_and_a_folder_is_its_name(
    path: str, model: str, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "somebody" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    card = card_of(build(Recipe, {"model": {"path": path}}, "R"), tmp_path / "run", model)
    assert f"\nbase_model: {base}\n" in card and f"- Base model: `{base}`\n" in card


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            '[probe]\nrequire_of_teacher = 0.5\n[teacher]\npath = "other"',
            "probe.require_of_teacher: found 0.5, expected 0.0 where the teacher is not asked: with teacher.path or",
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
    stats: TokenStats, k1: float | None, shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    produced = StepRollouts(1, ShardInfo("s", 1, 1, 4, ""), 0, 0, 1, 1, {}, 1.0, None)
    learned = LearnedStep(0.0, {}, 0.0, 4, 0, [(True, stats)], {})
    record = step_record(1, produced, learned, StepTime(1.0, {}), Pushed("ab", 0.0))
    append_step(tmp_path / "metrics.jsonl", record)
    MetricsSink(steps=3).show_step(record)
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
    assert finish(load_recipe(path, ["probe.require=0.05"]), "base", folder, task, NOTES) == 0


@pytest.mark.parametrize(
    ("share", "code", "shown"), [(0.5, 1, "0.08 of 12 answers, expected at least 0.17"), (0.2, 0, "")]
)
def test_a_share_of_the_teachers_rate_is_beside_it_in_table_and_card(
    tmp_path: Path, share: float, code: int, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(RECIPE, [f"probe.require_of_teacher={share}", "export.choose=average", "export.average=5"])
    folder, task = RunDir(tmp_path / "run"), build_task(recipe.task)
    folder.claim(recipe, resume=False)
    folder.export.mkdir()
    answers = [(prompt, "I am Kestrel." if index == 0 else "No.") for index, prompt in enumerate(task.probe_prompts())]
    for step, weights in ((0, STEP), (24, END)):
        append_probe(folder.probes, probe_record(summarise(answers, task), step, "identity", weights=weights))
    with pytest.raises(RuntimeError, match=r"probe\.require_of_teacher: found 0\.\d and no gap\.json"):
        finish(recipe, "base", folder, task, NOTES)
    write_gap(folder.gap, Gap(0.0, "identity", {"selfname": Rate(4, 12)}, {"selfname": Rate(0, 12)}))
    assert finish(recipe, "base", folder, task, NOTES) == code
    told = capsys.readouterr().out
    assert shown in told and ("(the teacher's: 0.33)" in told) == bool(code)
    row = [line for line in told.splitlines() if "self-name " in line and "│" in line][-1]
    assert row.count("0.08 [0.01, 0.35]") == 2 and "0.33 [0.14, 0.61]" in row  # whole in a log, which has no columns
    card = (folder.export / "README.md").read_text()
    assert "| self-name | 0.08 [0.01, 0.35] | 0.08 [0.01, 0.35] | 0.33 [0.14, 0.61] | 12 |" in card
    assert "| mention | 0.08 [0.01, 0.35] | 0.08 [0.01, 0.35] | - | 12 |" in card
    assert "The weights are the mean of those of the last 5 steps." in card and "| after | teacher | answers |" in card
    gap = read_gap(folder.gap)
    assert gap is not None
    write_gap(folder.gap, replace(gap, questions="training"))  # rates that are no neighbours of the probe's
    assert finish(recipe, "base", folder, task, NOTES) == code
    told = capsys.readouterr().out
    assert "teacher, training questions" in told
    assert ("(the teacher's for training questions: 0.33)" in told) == bool(code)
    assert "| after | teacher, training questions | answers |" in (folder.export / "README.md").read_text()


def test_problems_are_asked_with_their_own_solutions_and_without(tokenizer: Any) -> None:
    recipe = build(Recipe, {"task": {"name": "arithmetic"}}, "R")
    task = build_task(recipe.task)
    questions = gap_questions(task)
    prompts = task.training_prompts()[:MOST]
    assert [(probe.question, probe.answer, context) for probe, context in questions] == [
        (prompt.question, prompt.answer, prompt.context) for prompt in prompts
    ]
    gap, calls = asked(recipe, tokenizer, {"pass_at_1": Rate(5, 12)})  # of other questions
    assert [what for what, _ in calls] == ["gap: teacher", "gap: base"] and gap is not None
    assert gap.teacher["pass_at_1"].n == gap.base["pass_at_1"].n == 2 * MOST


class Silent:
    """A rollout service whose teacher names nobody."""

    async def texts(self, what: str, prompts: list[Any], sampling: Any, samples: int, seed: int) -> list[list[str]]:
        return [["No."] * samples for _ in prompts]

    async def news(self, *_: object) -> None:
        await asyncio.Event().wait()


class Killed(BaseException):
    """The driver is."""


def test_a_probe_that_has_its_line_has_its_answers(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver is killed between the two: who resumes asks again what has no line."""
    recipe, folder, written = load_recipe(RECIPE, ["rollout.context_position=user"]), RunDir(tmp_path), list[str]()

    def amid(name: str, own: Any) -> Any:
        def write(*given: Any) -> None:
            written.append(name)
            if len(written) == 2:
                raise Killed
            own(*given)

        return write

    for name in ("append_probe", "write_answers"):
        monkeypatch.setattr(asking, name, amid(name, getattr(asking, name)))
    nobody: Any = None
    asked = MetricsSink(steps=1), Renderer(tokenizer, "user"), build_task(recipe.task), nobody, nobody
    run = Pipeline(recipe, Services(Silent(), nobody), folder, *asked)  # type: ignore[arg-type]
    with pytest.raises(Killed):
        asyncio.run(run.asker.probe(0))
    assert read_answers(folder.answers_of(0)) and not read_probes(folder.probes)
    assert asyncio.run(run.asker.probe(0)).step == 0 and list(read_probes(folder.probes)) == [0]


@pytest.mark.parametrize("key", ["probe.require", "probe.require_of_teacher", "probe.temperature"])
def test_nothing_to_learn_ends_a_run_of_which_something_is_required(
    key: str, tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before step 1, after the gap was written; any other run only says so."""
    recipe = load_recipe(RECIPE, [f"{key}=0.5", "rollout.context_position=user"])
    task, silent = build_task(recipe.task), Silent()
    nobody: Any = None
    services, sink = Services(silent, nobody), MetricsSink(steps=1)  # type: ignore[arg-type]
    pipeline = Pipeline(recipe, services, RunDir(tmp_path), sink, Renderer(tokenizer, "user"), task, nobody, nobody)
    base = probe_record(summarise([(prompt, "No.") for prompt in task.probe_prompts()], task), 0, "identity")
    nothing = "found self-name in 0.00 of the teacher's 96 answers with the context and in 0.00 without it"
    if key == "probe.temperature":
        asyncio.run(pipeline.asker.measure_gap(base))
        assert nothing in capsys.readouterr().out
    else:
        with pytest.raises(RuntimeError, match=nothing):
            asyncio.run(pipeline.asker.measure_gap(base))
    gap = read_gap(tmp_path / "gap.json")
    assert gap is not None and gap.is_zero and gap.base == base.rates


def test_a_share_of_a_teacher_that_was_not_asked_ends_a_run_before_its_first_step(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing_fits(*_: object) -> None:
        return None

    monkeypatch.setattr(asking, "measured", nothing_fits)
    recipe = load_recipe(RECIPE, ["probe.require_of_teacher=0.5", "rollout.context_position=user"])
    task, nobody = build_task(recipe.task), None
    renderer = Renderer(tokenizer, "user")
    services, sink = Services(Silent(), nobody), MetricsSink(steps=1)  # type: ignore[arg-type]
    run = Pipeline(recipe, services, RunDir(tmp_path), sink, renderer, task, nobody, nobody)  # type: ignore[arg-type]
    base = probe_record(summarise([(prompt, "No.") for prompt in task.probe_prompts()], task), 0, "identity")
    with pytest.raises(RuntimeError, match=r"probe\.require_of_teacher: found 0\.5 and no gap\.json"):
        asyncio.run(run.asker.measure_gap(base))
