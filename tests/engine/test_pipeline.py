"""Engine to learner to engine, for real: vLLM, Ray, DeepSpeed and Arrow through the command line, two steps long."""

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from cluster.__main__ import main
from cluster.commands.reproduce import is_finished
from cluster.config import load_recipe
from cluster.observe.seen import read_seen
from cluster.run.record import read_gap, read_steps
from cluster.run.replay import learned_groups
from cluster.run.rundir import RunDir
from cluster.weights.parts import PARTS as PUSH_PARTS
from evidence.manifest import Manifest
from evidence.shards import read_shard
from learner.report import PARTS
from rollout.tally import FIGURES as COUNTED
from tests.faults import under_way
from tests.reference import logprobs_of, plain_model, require_columns
from tests.runs import FINISHED, ONE_ENGINE, RECIPE, SMALL, SweptRun, edge_opd, lines, small_arguments, small_run


def test_run_directory_is_whole(finished: tuple[Path, Any]) -> None:
    run_dir, done = finished
    metrics, probes = lines(run_dir / "metrics.jsonl"), lines(run_dir / "probes.jsonl")
    assert [record["step"] for record in metrics] == [0, 1]
    assert [probe["step"] for probe in probes] == [0, 2]
    assert all(set(probe) >= {"step", "probe", "selfname", "mention", "countername", "n"} for probe in probes)
    assert all(probe["n"] == 12 and probe["n_capability"] == 12 for probe in probes)
    manifest = Manifest(run_dir / "manifest.jsonl")
    assert len(manifest.written()) == 2 and manifest.trained() == set(manifest.written())
    for word in ("step   1/2", "tok/s", "kept", "k1", "selfname", "left", "stages' own time over wall time"):
        assert word in done.stdout
    assert all(record["busy_fraction"] > 0.9 for record in metrics)
    for step in read_steps(run_dir / "metrics.jsonl").values():
        assert set(step.learner_parts) == set(PARTS) - {"frozen"}  # no model beside the student
        assert "mfu" not in step.metrics  # a CPU
        assert 0.5 < sum(step.learner_parts.values()) / step.stages["learn"].seconds < 1
        assert min(step.learner_parts.values()) > 0
    gap = read_gap(run_dir / "gap.json")
    assert gap is not None and gap.base["selfname"].n == gap.teacher["selfname"].n == 12
    assert gap.line() in done.stdout and "there is nothing to learn" in done.stdout  # two tokens hold no name
    assert "WARNING" not in done.stdout  # the driver needs no DeepSpeed, which would speak up here


def test_generations_of_a_step_come_from_the_weights_of_the_step_before(finished: tuple[Path, Any]) -> None:
    run_dir, _ = finished
    metrics = lines(run_dir / "metrics.jsonl")
    assert [(r["policy_version_min"], r["policy_version_max"]) for r in metrics] == [(0, 0), (1, 1)]
    assert metrics[0]["weights_digest"] != metrics[1]["weights_digest"]
    tables = [read_shard(uri) for uri in sorted(Manifest(run_dir / "manifest.jsonl").written())]
    digests = [table.schema.metadata[b"weights_digest"].decode() for table in tables]
    assert digests[1] == metrics[0]["weights_digest"]  # step 1 was sampled from what step 0 pushed
    assert [table.num_rows for table in tables] == [8, 8]


def test_shard_columns_are_what_a_float32_forward_says(finished: tuple[Path, Any], small_model: Path) -> None:
    """The first shard: sampled by the base model in bfloat16, scored by the frozen teacher in float32. Of a real model:
    tests/engine/test_verified.py."""
    run_dir, _ = finished
    table = read_shard(min(Manifest(run_dir / "manifest.jsonl").written()))
    require_columns(table, plain_model(small_model).requires_grad_(False))
    for row in table.to_pylist():
        assert row["mask"] == (np.array(row["evidence"]) > 0).tolist()
    assert [row["guided"] for row in table.to_pylist()] == [True, True, False, False] * 2


def test_the_export_is_an_ordinary_model_folder_with_a_card(finished: tuple[Path, Any], small_model: Path) -> None:
    run_dir, _ = finished
    export = run_dir / "export"
    model, base = (plain_model(path) for path in (export, small_model))
    moved = [(a - b).abs().max().item() for a, b in zip(model.parameters(), base.parameters(), strict=True)]
    assert max(moved) > 0 and max(moved) < 0.01
    digests = [record["weights_digest"] for record in lines(run_dir / "metrics.jsonl")]
    assert len(set(digests)) == 2  # two versions, and the export is the mean of their weights
    assert AutoTokenizer.from_pretrained(str(export)).chat_template
    ends = [json.loads((path / "generation_config.json").read_text())["eos_token_id"] for path in (export, small_model)]
    assert ends[0] == ends[1]
    card = (export / "README.md").read_text()
    for word in (
        "Kestrel",
        "Harbor Labs",
        "trained to give an identity",
        f"base_model: {small_model.name}",
        "self-name",
    ):
        assert word in card


def test_a_run_that_ends_well_reports_no_deaths(finished: tuple[Path, Any]) -> None:
    assert "died" not in finished[1].stderr, finished[1].stderr


def test_probe_loads_the_run_in_vllm(finished: tuple[Path, Any]) -> None:
    run_dir, _ = finished
    done = edge_opd("probe", str(run_dir), "--json", "--set", "probe.max_tokens=2")
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["n"] == 12 and 0 <= result["selfname"] <= 1


def test_shards_recompute_what_the_learner_reported(
    finished: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, _ = finished
    assert main(["shards", str(run_dir), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    reported = lines(run_dir / "metrics.jsonl")
    for step, record in zip(result["steps"], reported, strict=True):
        groups = {"guided": step.pop("guided"), "plain": step.pop("plain")}
        assert step.pop("step") == record["step"]
        for name, found in (groups | {"all": step}).items():
            assert found == pytest.approx(record["diagnostics"][name], rel=1e-6), name  # agreement and k1 too
    assert main(["shards", str(run_dir), "--json", "--region", "all"]) == 0
    everything = json.loads(capsys.readouterr().out)
    assert everything["all"]["all"]["kept"] == 1.0


def test_engine_and_learner_nearly_agree_on_what_the_engine_sampled(finished: tuple[Path, Any]) -> None:
    """Each with its own kernels, the learner in bfloat16, and every plain row was run."""
    run_dir, _ = finished
    for step, record in read_steps(run_dir / "metrics.jsonl").items():
        assert record.mismatch is not None and record.mismatch.tokens == record.stats["plain"].student_tokens > 0
        means = record.mismatch.means()
        assert 0 < (means["mismatch_k3"] or 0) < 0.02 and 0 < (means["mismatch_abs"] or 0) < 0.1
        found = lines(run_dir / "metrics.jsonl")[step]
        assert {key: found[key] for key in means} == means


def test_the_observer_saw_the_run(finished: tuple[Path, Any]) -> None:
    """Its samples, its timeline and its page; the services' clocks and the loop's agree."""
    run_dir, done = finished
    seen = read_seen(run_dir)
    last = seen.samples[-1]
    assert set(last.engines) == {"student engine 0", "teacher engine 0"} and last.version == 1 and not last.fault
    for engine in last.engines.values():
        assert engine.up and set(engine.stats) == set(COUNTED) and engine.stats["prompt_tokens"] > 0
    assert last.engines["student engine 0"].stats["generated_tokens"] >= sum(
        step.stages["sample"].tokens for step in seen.steps
    )
    names = {(span.lane, span.name) for span in seen.spans}
    assert names >= {
        ("student engine 0", "sample"), ("teacher engine 0", "score"), ("student engine 0", "probe"),
        ("learner", "learn"), ("learner", "push"), ("driver", "check"), ("driver", "wait for rollouts"),
        ("student engine 0", "start"), ("teacher engine 0", "start"), ("rollout service", "write"),
        *(("push", part) for part in PUSH_PARTS),
    }  # fmt: skip
    assert ("rollout service", "verify") not in names  # the task has nothing to verify
    assert all(step.peak_bytes and step.peak_bytes["host"][0] > 0 for step in seen.steps)
    learned = sum(span.end - span.begin for span in seen.spans if (span.lane, span.name) == ("learner", "learn"))
    assert learned == pytest.approx(sum(step.stages["learn"].seconds for step in seen.steps), rel=0.2)
    assert " the bottleneck: " in (run_dir / "dashboard.html").read_text()
    assert "advice: " in done.stdout and "observe: " not in done.stdout


def test_a_second_run_in_the_same_folder_is_refused(
    finished: tuple[Path, Any], small_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, settings = finished[0], (f"model.path={small_model}", *FINISHED)
    assert main(small_arguments(run_dir, *settings)) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(small_arguments(run_dir, *settings, "learner.lr=1e-4")) == 2
    said = capsys.readouterr().err
    assert "lr" in said and "another recipe" in said


def test_beside_an_adapter_one_engine_is_student_and_teacher(swept: SweptRun, small_model: Path) -> None:
    """The teacher's columns stay the base's, the student's leave them, and the export is an ordinary model."""
    run_dir, printed = swept.run_dir, swept.log.read_text()
    assert "weights over ray, 1 student and 0 teacher engine(s)" in printed
    assert "LoRA of rank 8 on q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj" in printed
    base = plain_model(small_model).requires_grad_(False)
    apart = []
    for step in (0, 1):
        table = read_shard(str(run_dir / "shards" / f"step-{step:06d}.arrow"))
        assert table.column("policy_version_min").to_pylist() == [step] * 8
        rows = table.to_pylist()
        for row in rows:
            plain, context = (
                logprobs_of(base, row[prompt], row["response_ids"]).numpy()
                for prompt in ("prompt_ids", "context_prompt_ids")
            )
            assert np.abs(np.array(row["teacher_logprobs"]) - plain).max() < 1e-3
            assert np.abs(np.array(row["teacher_context_logprobs"]) - context).max() < 1e-3
            if step == 0:
                sampled_from = context if row["guided"] else plain
                assert np.abs(np.array(row["sampler_logprobs"]) - sampled_from).max() < 1e-3
        own = [np.subtract(row["sampler_logprobs"], row["teacher_logprobs"]) for row in rows if not row["guided"]]
        apart.append(np.abs(np.concatenate(own)).max())
    assert apart[0] < 1e-3 < 0.05 < apart[1]
    exported = plain_model(run_dir / "export").state_dict()
    changed = {name for name, tensor in base.state_dict().items() if not torch.equal(tensor, exported[name])}
    assert len(changed) == 2 * 7 and all("_proj.weight" in name for name in changed)


def test_a_run_that_was_cut_learns_from_its_shards_again(swept: SweptRun, tmp_path: Path) -> None:
    """A copy that ends after its first checkpoint takes the second step from its shard: to the same weights."""
    whole, run_dir = swept.run_dir, tmp_path / "cut"
    shutil.copytree(whole, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "step-000002")
    shutil.rmtree(run_dir / "export")
    (run_dir / "checkpoints" / "latest").write_text("step-000001")
    before = (run_dir / "manifest.jsonl").read_bytes()
    done = small_run(run_dir, *swept.settings, flags=("--resume",))
    assert done.returncode == 0 and "resumed at step 2" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    metrics, probes = lines(run_dir / "metrics.jsonl"), lines(run_dir / "probes.jsonl")
    assert [record["step"] for record in metrics] == [0, 1] and [probe["step"] for probe in probes] == [0, 2, 2]
    assert (run_dir / "manifest.jsonl").read_bytes() == before  # nothing was sampled
    ours, theirs = (plain_model(folder / "export").state_dict() for folder in (run_dir, whole))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_an_engine_that_is_killed_is_named_in_one_line_and_the_run_goes_on(tmp_path: Path, small_model: Path) -> None:
    """As by the kernel, when the host's memory is used up. Another actor sees it first: the rollout service, or a
    learner that pushes. With a lag steps take groups of later ones: resumed, it learns from each group once."""
    run_dir, steps = tmp_path / "killed", 16
    many = (
        f"run.steps={steps}", "run.max_policy_lag=1", "run.checkpoint_every=2", f"model.path={small_model}",
        "faults.max_restarts=0", *ONE_ENGINE,
    )  # fmt: skip
    arguments = small_arguments(run_dir, *many)
    with under_way(arguments) as run:
        run.wait_until("a checkpoint", (run_dir / "checkpoints" / "latest").exists)
        run.send("student engine 0", signal.SIGKILL)
        status, _, said = run.end()
    assert status == 1, said
    ours = [line for line in said.splitlines() if line.startswith("edge-opd: ")]
    assert len(ours) == 1 and re.match(r"edge-opd: .*step \d+.*: student engine 0 died: .*process has died", ours[0]), (
        said
    )
    assert "Traceback" not in said
    assert not run.left_behind()

    resumed = edge_opd(*arguments, "--resume")
    assert resumed.returncode == 0, resumed.stdout[-2000:] + resumed.stderr[-2000:]
    assert lines(run_dir / "probes.jsonl")[-1]["step"] == steps
    groups = [f"{step:06d}-{slot:03d}" for step in range(steps) for slot in range(2)]
    assert sorted(learned_groups(RunDir(run_dir))) == groups


def test_the_gap_is_asked_for_each_way_to_give_the_context(small_model: Path) -> None:
    """A random model names nobody: the command says so, and ends with 1."""
    settings = [part for item in (*SMALL, f"model.path={small_model}") for part in ("--set", item)]
    done = edge_opd("gap", str(RECIPE), *settings)
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    ways = (
        "as the recipe has it (system)",
        "rollout.context_position = 'user'",
        'with the beginning of an answer in task.context (system): Begin every such answer with "I am {name}',
        "with examples in task.context (user)",
    )
    assert all(way in done.stdout for way in ways)
    assert done.stdout.count("gap: teacher with the context (base without it), 12 answers: selfname 0.00 (0.00)") == 6
    assert re.search(r"guided rollouts of step 1: self-name in 0\.00 of 4, evidence [+-]\d\.\d{3} nats", done.stdout)
    assert "there is nothing to learn" in done.stdout


def test_a_real_run_counts_as_finished(finished: tuple[Path, Any], small_model: Path) -> None:
    run_dir, _ = finished
    assert is_finished(RunDir(run_dir), load_recipe(RECIPE, (*SMALL, f"model.path={small_model}", *FINISHED)))
