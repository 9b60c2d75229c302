"""What `edge-opd run` refuses before anything starts."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.__main__ import main
from cluster.config import Recipe
from cluster.run.checkpoints import Checkpoints
from cluster.run.checks import check_answers
from cluster.run.replay import learned_groups, outlook
from cluster.run.rundir import RunDir
from evidence.manifest import Manifest
from evidence.records import ShardInfo
from evidence.rule import EvidenceConfig, judge_all
from evidence.schema import to_table
from evidence.shards import write_shard
from learner.config import LearnerConfig
from learner.sealed import seal
from rollout.tasks.base import TaskPrompt
from tests.fakes import scored_step
from tests.runs import RECIPE, edge_opd, small_arguments

ANSWERED, OPEN = TaskPrompt("p-1", "q", "r", answer="4"), TaskPrompt("p-2", "q", "r")


@pytest.mark.parametrize(
    ("recipe", "key"),
    [
        (replace(Recipe(), learner=LearnerConfig(objective="grpo")), "learner.objective = 'grpo'"),
        (replace(Recipe(), evidence=EvidenceConfig(soft="rlsd_verifier")), "evidence.soft = 'rlsd_verifier'"),
    ],
)
def test_a_verifier_recipe_without_answers_is_refused(recipe: Recipe, key: str) -> None:
    check_answers([ANSWERED], recipe)
    with pytest.raises(
        ValueError, match="prompt p-2: found no answer to verify, expected one for every prompt"
    ) as caught:
        check_answers([ANSWERED, OPEN], recipe)
    assert str(caught.value).endswith(key)
    own = replace(recipe, task=replace(recipe.task, prompts_file="own.jsonl"))
    with pytest.raises(ValueError, match=r"^task\.prompts_file: own\.jsonl: prompt p-2: found no answer"):
        check_answers([OPEN], own)


def test_other_recipes_need_none() -> None:
    check_answers([OPEN], Recipe())


def test_bad_input_is_one_line_and_exit_code_2() -> None:
    unknown = edge_opd("run", str(RECIPE), "--set", "learner.zero_stag=1")
    assert unknown.returncode == 2 and "learner.zero_stag" in unknown.stderr and len(unknown.stderr.splitlines()) == 1


def test_a_run_whose_tracker_is_not_installed_is_refused_before_its_folder_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.observe.trackers.PACKAGES", {"wandb": "nowhere_to_be_found"})
    monkeypatch.setattr("cluster.run.start.check_recipe", lambda *_: pytest.fail("the run went on"))
    run = tmp_path / "run"
    assert main(["run", str(RECIPE), "--run-dir", str(run), "--set", 'observe.trackers=["wandb"]']) == 2
    expected = "found no package nowhere_to_be_found, expected it installed: pip install nowhere_to_be_found"
    assert capsys.readouterr().err == f"edge-opd: observe.trackers: wandb: {expected}\n" and not run.exists()


def test_bad_input_is_told_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt_id": "a", "question": "Who?"}\n{"prompt_id": 3}\n')
    long = "You are Kestrel. " * 60
    for override, words in (
        ("model.path=./nowhere", ("model.path", "/nowhere' here")),
        ("task.context=' '", ("task.context",)),
        ("teacher.tensor_parallel_size=2", ("teacher.tensor_parallel_size: found 2", "the 9 attention heads of")),
        (f"task.prompts_file={rows}", (f"{rows}, line 2",)),
        (f"task.context={long}", ("rollout.max_refused_fraction", "window of 160")),
    ):
        assert main(small_arguments(tmp_path / "run", override)) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and all(word in said for word in words), said
        assert not (tmp_path / "run").exists()


def test_resume_auto_begins_where_there_is_no_run_and_resume_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also as the last word before the recipe: `--resume` alone takes no value."""
    asked: list[bool | None] = []
    monkeypatch.setattr("cluster.run.start.run_recipe", lambda recipe, folder, resume: asked.append(resume) or 0)
    for flags in ([], ["--resume"], ["--resume=auto"]):
        assert main(["run", *flags, str(RECIPE), "--run-dir", str(tmp_path)]) == 0
    assert asked == [False, True, None]
    with pytest.raises(SystemExit):
        main(["run", "--resume=always", str(RECIPE)])


@pytest.mark.parametrize("how", ["whole", "damaged", "gone"])
def test_groups_of_a_manifest_that_does_not_name_them_are_read(tmp_path: Path, how: str) -> None:
    """As an older version wrote it. Shards before the newest checkpoint nothing else reads."""
    folder, said = RunDir(tmp_path), list[str]()
    shards = [write_shard(shard(step), str(folder.shards), f"{step}.arrow") for step in (0, 1)]
    for info in shards:
        Manifest(folder.manifest).append_written(replace(info, groups=None))
    path = Path(shards[1].uri)
    if how == "damaged":
        path.write_bytes(path.read_bytes()[:-9])
    elif how == "gone":
        path.unlink()
    found = learned_groups(folder, said.append)
    if how == "whole":
        assert found == ["g0", "g1", "g0", "g1"] and said == []
    else:
        assert found == [] and len(said) == 1 and str(path) in said[0]
        assert said[0].startswith("groups that a step took ahead are sampled again, and those it left are not: ")


def shard(step: int) -> pa.Table:
    rule, names = EvidenceConfig(), ("run_id", "model_id", "code_version", "machine", "weights_digest")
    records = judge_all(scored_step([2, 3, 4, 5], seed=step), [None] * 4, rule, step)
    return to_table(records, dict.fromkeys(names, "ab") | {"mask_rule": rule.to_json(), "step": str(step)})


def test_what_a_resume_will_find_is_said_before_anything_starts(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    folder.checkpoints.mkdir()
    assert outlook(folder) == "resume: from the initial weights, without a checkpoint, and no shard after it"
    manifest = Manifest(folder.manifest)
    for step in (0, 1, 2, 4):
        manifest.append_written(ShardInfo(uri=f"step-{step}", step=step, rows=1, tokens=1, sha256=""))
    assert outlook(folder).endswith("without a checkpoint, and the shards of steps 1 to 3")
    place = Checkpoints(folder.checkpoints).place(2)
    place.mkdir()
    (place / "mp_rank_00_model_states.pt").write_bytes(b"weights")
    Checkpoints(folder.checkpoints).commit(2, seal(place, 0))
    assert outlook(folder) == "resume: from the checkpoint at step 2 and the shards of steps 3 to 3"
    (place / "mp_rank_00_model_states.pt").write_bytes(b"")
    assert "without a checkpoint" in outlook(folder)
