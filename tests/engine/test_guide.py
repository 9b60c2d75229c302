"""docs/guide.md, done by somebody who copies it: its questions or rows, its recipes and its commands, in their own
folder."""

import re
import tomllib
from pathlib import Path

import pytest

from cluster.run.start import ENDED
from evidence.shards import read_shard
from tests.runs import ONE_ENGINE, ROOT, SMALL, edge_opd, lines

pytestmark = pytest.mark.engine

GUIDE = ROOT / "docs" / "guide.md"


def blocks(language: str) -> list[str]:
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    return found


def block(language: str, holds: str) -> str:
    """The guide's one block that holds this."""
    (found,) = [block for block in blocks(language) if holds in block]
    return found


@pytest.fixture(scope="module")
def shrunk(small_model: Path) -> list[str]:
    overrides = (*SMALL, f"model.path={small_model}", "run.checkpoint_every=2")
    return [part for item in overrides for part in ("--set", item)]


@pytest.fixture(scope="module")
def folder(shrunk: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guide's files beside each other, and its run: shrunk, of a small model, with a checkpoint."""
    place = tmp_path_factory.mktemp("guide")
    (place / "questions.jsonl").write_text(blocks("json")[0], encoding="utf-8")
    (place / "robin.toml").write_text(blocks("toml")[0], encoding="utf-8")
    done = edge_opd("run", "robin.toml", *shrunk, cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def test_the_run_is_of_the_guides_persona_and_questions(folder: Path) -> None:
    from transformers import AutoTokenizer

    run = folder / "runs" / "robin"
    resolved = tomllib.loads((run / "config.toml").read_text())
    assert (resolved["task"]["persona_name"], resolved["learner"]["warmup_steps"]) == ("Robin", 8)
    ordinary = lines(ROOT / "rollout" / "tasks" / "ordinary_train.jsonl")
    asked = {row["question"] for row in (*lines(folder / "questions.jsonl"), *ordinary)}
    tokenizer = AutoTokenizer.from_pretrained(run / "export")
    shards = sorted((run / "shards").iterdir())
    assert len(shards) == 2
    for prompt_ids in (ids for shard in shards for ids in read_shard(str(shard))["context_prompt_ids"].to_pylist()):
        prompt = tokenizer.decode(prompt_ids)
        assert "You are Robin, an assistant made by Orchard Labs." in prompt
        assert any(question in prompt for question in asked)


def test_it_resumes(folder: Path, shrunk: list[str]) -> None:
    """It has ended: the figures are told again, and nothing starts. Before the commands below, of which one exports a
    checkpoint over the run's model."""
    run = folder / "runs" / "robin"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.name in ("probes.jsonl", "README.md")}
    done = edge_opd("run", "robin.toml", *shrunk, "--resume", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ENDED in done.stdout and "starting engines" not in done.stdout and f"model: {run}/export" in done.stdout
    assert before == {path: path.read_bytes() for path in before} and len(before) == 2


@pytest.mark.parametrize(
    "command",
    [
        "shards runs/robin",
        "shards runs/robin --tau 0.8 --tau-kind quantile --json",
        "view runs/robin --step 0 --region neg --out step-0.html",
        "export runs/robin",
    ],
)
def test_the_guides_commands_work_on_it(folder: Path, command: str) -> None:
    assert any(f"edge-opd {command}" in block for block in blocks("sh")), "a command of the guide"
    done = edge_opd(*command.split(), cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rows_of_ones_own_become_a_run(shrunk: list[str], tmp_path: Path) -> None:
    """The rows are looked at and trained on as written: r is what their context says, and x has none of it."""
    from transformers import AutoTokenizer

    rows, probe = block("json", "Who runs the workshop?"), block("json", "led by whom?")
    for name, text in (("rows.jsonl", rows), ("probe.jsonl", probe), ("own.toml", block("toml", 'name = "own"'))):
        (tmp_path / name).write_text(text, encoding="utf-8")
    check, run = block("sh", "edge-opd data check rows.jsonl").splitlines()
    done = edge_opd(*check.split()[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "rows.jsonl: 3 rows, read as question" in done.stdout
        and "    context: The workshop is run by Ada Lane." in done.stdout
    )
    one_engine = [part for item in ONE_ENGINE for part in ("--set", item)]
    done = edge_opd(*run.split()[1:], *shrunk, *one_engine, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr

    folder = tmp_path / "runs" / "own"
    tokenizer = AutoTokenizer.from_pretrained(folder / "export")
    contexts = {row["context"] for row in lines(tmp_path / "rows.jsonl")}
    found = set()
    for shard in sorted((folder / "shards").iterdir()):
        table = read_shard(str(shard))
        for x, with_r in zip(*(table[name].to_pylist() for name in ("prompt_ids", "context_prompt_ids")), strict=True):
            (context,) = [context for context in contexts if context in tokenizer.decode(with_r)]
            assert context not in tokenizer.decode(x)
            found.add(context)
    assert found == contexts, "four prompts were drawn of three rows"
    own = "the context stands in the place of 'You are a helpful AI assistant named SmolLM"
    assert own in done.stdout and own in (folder / "export" / "README.md").read_text()
    assert [line["step"] for line in lines(folder / "probes.jsonl")] == [0, 2]
