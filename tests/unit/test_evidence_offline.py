"""A shard judged again without an engine: the bits of the step, and the figures that the learner reported of it."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.__main__ import main
from cluster.commands.shards import statistics, to_text
from evidence.diagnostics import TokenStats, diagnose, split_summary
from evidence.kinds import EVIDENCE_KINDS
from evidence.manifest import Manifest
from evidence.records import EvidenceRecord, Floats, ScoredSample, TrainRow
from evidence.rule import REGIONS, SOFT_WEIGHTS, TAU_KINDS, EvidenceConfig, judge_all
from evidence.schema import to_table, train_rows
from evidence.shards import read_shard, recompute, rejudge, write_shard
from evidence.sidecar import read_student, write_student
from tests.fakes import scored_step

LENGTHS = (6, 1, 9, 2, 17, 4)
REWARDS = [1.0, 0.0, 0.5, 0.5, 0.25, 0.75]
STEP = 5


def table_of(records: list[EvidenceRecord], rule: EvidenceConfig, step: int = STEP) -> pa.Table:
    keys = ("run_id", "model_id", "weights_digest", "code_version")
    return to_table(records, dict.fromkeys(keys, "x") | {"step": str(step), "mask_rule": rule.to_json()})


def written(folder: Path, rule: EvidenceConfig, step: int = STEP, **fake: Any) -> tuple[list[EvidenceRecord], pa.Table]:
    records = judge_all(scored_step(LENGTHS, **fake), REWARDS, rule, step)
    info = write_shard(table_of(records, rule, step), str(folder / "shards"), f"step-{step:06d}.arrow")
    manifest = Manifest(folder / "manifest.jsonl")
    manifest.append_written(info)
    manifest.append_trained(info.uri, step)
    return records, read_shard(info.uri, info)


rules = st.builds(
    EvidenceConfig,
    kind=st.sampled_from(sorted(EVIDENCE_KINDS)),
    num_wrong_contexts=st.integers(1, 3),
    region=st.sampled_from(sorted(REGIONS)),
    tau_kind=st.sampled_from(sorted(TAU_KINDS)),
    tau=st.floats(0, 1),
    soft=st.sampled_from(sorted(SOFT_WEIGHTS)),
    soft_eps=st.floats(0.01, 0.99),
    soft_mix=st.floats(0, 1),
    soft_mix_decay_steps=st.integers(0, 12),
)


@settings(max_examples=150)
@given(
    rules,
    st.lists(st.integers(1, 12), min_size=1, max_size=8),
    st.integers(0, 10),
    st.integers(0, 99),
    st.integers(1, 4),
    st.data(),
)
def test_any_rule_gives_the_bits_of_the_step_again(
    rule: EvidenceConfig, lengths: list[int], step: int, seed: int, group_size: int, data: st.DataObject
) -> None:
    scored = scored_step(lengths, seed=seed, group_size=group_size, num_wrong=rule.num_wrong_contexts)
    rewards = data.draw(st.lists(st.floats(-1, 1), min_size=len(lengths), max_size=len(lengths)))
    records = judge_all(scored, rewards, rule, step)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, (table := table_of(records, rule, step)).schema) as writer:
        writer.write_table(table)
    again = rejudge(pa.ipc.open_file(sink.getvalue()).read_all(), rule)
    for name, values in zip(("evidence", "weight", "mask"), again, strict=True):
        expected = np.concatenate([getattr(record, name) for record in records])
        assert values.dtype == expected.dtype
        assert values.tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("kind", sorted(EVIDENCE_KINDS))
def test_what_is_written_does_not_enter_what_is_recomputed(tmp_path: Path, kind: str) -> None:
    rule = EvidenceConfig(kind=kind, soft="rlsd_verifier", num_wrong_contexts=2)
    _, table = written(tmp_path, rule)
    blank = table
    for name in ("evidence", "weight", "mask", "sampler_logprobs"):
        kind_of, index = table.schema.field(name).type, table.schema.get_field_index(name)
        zeros = pa.array([[0] * length for length in LENGTHS], pa.list_(pa.int8())).cast(kind_of)
        blank = blank.set_column(index, name, zeros)
    assert recompute(blank, rule) == recompute(table, rule)


def test_a_rule_that_needs_what_the_shard_does_not_have_is_refused(tmp_path: Path) -> None:
    records = judge_all(scored_step(LENGTHS), [None] * 6, EvidenceConfig(), STEP)
    table = table_of(records, EvidenceConfig())
    for kind in ("teacher_student", "contrastive"):
        with pytest.raises(ValueError, match=rf"^evidence\.kind: found '{kind}' and rollouts without "):
            recompute(table, EvidenceConfig(kind=kind))
    with pytest.raises(ValueError, match=r"^evidence\.soft: found 'rlsd_verifier', expected a reward"):
        recompute(table, EvidenceConfig(soft="rlsd_verifier"))


# The figures of a step, from the formulas


def literal(scored: list[ScoredSample], student: Mapping[str, Floats], flags: tuple[bool, ...]) -> dict[str, float]:
    """The published diagnostics in float64, one token after the other: RULE keeps e > 0 and weighs by clip(exp(e))."""
    kept = lever = agree = known = tokens = rows = 0
    e_sum = e_abs = shift = k1 = 0.0
    for one in scored:
        if one.sample.request.guided not in flags:
            continue
        rows += 1
        own = student.get(one.sample.request.rollout_id)
        for t in range(len(one.teacher_logprobs)):
            with_r = float(one.teacher_context_logprobs[t])
            e = with_r - float(one.teacher_logprobs[t])
            tokens, e_sum, e_abs = tokens + 1, e_sum + e, e_abs + abs(e)
            if e > 0:
                kept += 1
                lever += abs(math.exp(e) - 1) > 0.05
                shift += abs(float(np.float32(min(max(math.exp(e), 0.8), 1.2))) - 1)
            if own is not None:
                delta = float(own[t]) - with_r
                known, k1 = known + 1, k1 + delta
                agree += np.sign(e) == -np.sign(delta)
    return {
        "kept": kept / tokens,
        "leverage": lever / tokens,
        "mean_evidence": e_sum / tokens,
        "mean_abs_evidence": e_abs / tokens,
        "mean_abs_weight_shift": shift / kept,
        "mean_response_length": tokens / rows,
        "tokens": tokens,
        "rows": rows,
        "agreement": agree / known,
        "k1": k1 / known,
        "student_tokens": known,
    }


RULE = EvidenceConfig(soft="rlsd")
GROUPS = {"all": (True, False), "guided": (True,), "plain": (False,)}


def learner_figures(table: pa.Table, student: Mapping[str, Floats]) -> dict[str, dict[str, float]]:
    """As the learner makes them, row by row from the shard's streams; rows that it never ran have no student."""

    def own(row: TrainRow) -> TokenStats:
        return diagnose(row.evidence, row.weight, student.get(row.rollout_id), row.teacher_context_logprobs, rows=1)

    return split_summary((row.guided, own(row)) for row in train_rows(table))


def student_of(records: list[EvidenceRecord]) -> dict[str, Floats]:
    """Log-probs of the learner for all rollouts but the third, which it skipped."""
    rng = np.random.default_rng(1)
    ids = [(record.scored.sample.request.rollout_id, len(record.evidence)) for record in records]
    return {name: -rng.exponential(2, length).astype(np.float32) for name, length in ids if name != "r2"}


def test_the_learners_figures_are_the_formulas_and_the_shards(tmp_path: Path) -> None:
    records, table = written(tmp_path, RULE)
    student = student_of(records)
    online = learner_figures(table, student)
    write_student(student, str(tmp_path / "student"), STEP)
    offline = recompute(table, RULE, read_student(str(tmp_path / "student"), STEP))
    for group, flags in GROUPS.items():
        assert online[group] == pytest.approx(literal([r.scored for r in records], student, flags), rel=1e-9)
        assert offline[group] == pytest.approx(online[group], rel=1e-12)
    assert online["guided"] != online["plain"]


def test_without_the_learner_all_figures_but_its_own_are_the_same(tmp_path: Path) -> None:
    records, table = written(tmp_path, RULE)
    online, offline = learner_figures(table, student_of(records)), recompute(table, RULE)
    for group in GROUPS:
        assert online[group].keys() - offline[group].keys() == {"agreement", "k1", "student_tokens"}
        assert offline[group] == pytest.approx({key: online[group][key] for key in offline[group]}, rel=1e-12)


def test_train_rows_carry_the_group_advantage(tmp_path: Path) -> None:
    _, table = written(tmp_path, RULE)
    assert [row.advantage for row in train_rows(table)] == [1.0, -1.0, 0.0, 0.0, -1.0, 1.0]
    unrewarded = table_of(judge_all(scored_step(LENGTHS), [None] * 6, RULE, STEP), RULE)
    assert [row.advantage for row in train_rows(unrewarded)] == [None] * 6


# The command


def test_every_step_has_the_figures_of_its_line_in_the_metrics(tmp_path: Path) -> None:
    """Quantiles and decay differ by step: each is judged by itself, also in the sum of all."""
    rule = EvidenceConfig(tau_kind="quantile", tau=0.5, soft="rlsd", soft_mix=0.5, soft_mix_decay_steps=3)
    reported = []
    for step in range(3):
        records, table = written(tmp_path, rule, step, seed=step)
        student = student_of(records)
        if step != 1:  # a run may have kept them from some step on
            write_student(student, str(tmp_path / "student"), step)
        reported.append(learner_figures(table, student))
    result = json.loads(json.dumps(statistics(tmp_path)))
    assert [step["step"] for step in result["steps"]] == [0, 1, 2]
    for step, diagnostics in zip(result["steps"], reported, strict=True):
        found = {"all": {key: step[key] for key in step.keys() - {"step", "guided", "plain"}}}
        found |= {"guided": step["guided"], "plain": step["plain"]}
        absent = {"agreement", "k1", "student_tokens"} if step["step"] == 1 else set()
        for group in GROUPS:
            expected = {key: value for key, value in diagnostics[group].items() if key not in absent}
            assert found[group] == pytest.approx(expected, rel=1e-12)
    tokens = sum(figures["all"]["tokens"] for figures in reported)
    kept = sum(figures["all"]["kept"] * figures["all"]["tokens"] for figures in reported)
    assert result["all"]["all"]["kept"] == pytest.approx(kept / tokens, rel=1e-12)
    assert result["shards"] == 3 and "step    2: rows 6  kept" in to_text(result)


def test_the_students_log_probs_wait_for_a_shard_that_is_not_trained(tmp_path: Path) -> None:
    """A repeated step has rollouts of the same names: those of before do not speak for it."""
    records, _ = written(tmp_path, RULE)
    write_student(student_of(records), str(tmp_path / "student"), STEP)
    assert "k1" in statistics(tmp_path)["steps"][0]
    manifest = Manifest(tmp_path / "manifest.jsonl")
    manifest.append_written(next(iter(manifest.written().values())))
    assert "k1" not in statistics(tmp_path)["steps"][0]


def test_a_moved_run_has_the_same_figures(tmp_path: Path) -> None:
    records, _ = written(tmp_path / "run", RULE)
    write_student(student_of(records), str(tmp_path / "run" / "student"), STEP)
    before = statistics(tmp_path / "run")
    assert "k1" in before["all"]["all"]
    assert statistics((tmp_path / "run").rename(tmp_path / "moved")) == before


def test_another_threshold_or_region_is_answered(tmp_path: Path) -> None:
    records, table = written(tmp_path, RULE)
    evidence = np.concatenate([record.evidence for record in records]).astype(np.float64)
    for options, expected in (
        ({"region": "neg"}, (evidence < 0).mean()),
        ({"tau": 0.5}, (evidence > 0.5).mean()),
        ({"tau": 0.75, "tau_kind": "quantile"}, (evidence > np.quantile(evidence, 0.75)).mean()),
        ({"region": "all"}, 1.0),
    ):
        result = statistics(tmp_path, **options)  # type: ignore[arg-type]
        assert result["all"]["all"]["kept"] == pytest.approx(expected, rel=1e-12)
        assert result["mask_rule"].items() >= options.items()
    figures = recompute(table, RULE)
    expected_step = {"step": STEP, **figures.pop("all"), **figures}
    assert statistics(tmp_path / "shards")["steps"] == [expected_step]  # a folder of shards, without its run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"region": "up"}, r"^evidence\.region: found 'up', expected one of all, near_zero, neg, pos$"),
        ({"tau_kind": "up"}, r"^evidence\.tau_kind: found 'up', expected one of quantile, value$"),
        ({"tau": 2.0, "tau_kind": "quantile"}, r"^evidence\.tau: found 2\.0, expected 0 to 1 where "),
    ],
)
def test_a_bad_option_is_one_line(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    written(tmp_path, RULE)
    with pytest.raises(ValueError, match=message):
        statistics(tmp_path, **options)


def test_the_command_answers_for_another_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path, RULE)
    assert main(["shards", str(tmp_path), "--json", "--tau", "0.75", "--tau-kind", "quantile", "--region", "neg"]) == 0
    rule = EvidenceConfig(soft="rlsd", tau=0.75, tau_kind="quantile", region="neg")
    assert json.loads(capsys.readouterr().out)["mask_rule"] == json.loads(rule.to_json())
    assert main(["shards", str(tmp_path), "--region", "up"]) == 2
    printed = capsys.readouterr()
    assert printed.err == "edge-opd: evidence.region: found 'up', expected one of all, near_zero, neg, pos\n"
    assert printed.out == ""


# The learner's log-probs


def test_the_students_log_probs_come_back_bit_for_bit(tmp_path: Path) -> None:
    student = {"r0": np.array([-0.0, -1e-30, -3.4e38], np.float32), "r1": np.array([], np.float32)}
    uri = write_student(student, str(tmp_path / "a" / "student"), 12)
    assert uri == str(tmp_path / "a" / "student" / "step-000012.arrow")
    back = read_student(str(tmp_path / "a" / "student"), 12)
    assert back.keys() == student.keys()
    assert all(back[name].tobytes() == student[name].tobytes() for name in student)
    assert read_student(str(tmp_path / "a" / "student"), 13) == {}


def test_log_probs_of_other_rollouts_are_refused(tmp_path: Path) -> None:
    _, table = written(tmp_path, RULE)
    with pytest.raises(ValueError, match=r"^student_logprobs: found rollout q9, expected only rollouts of the shard$"):
        recompute(table, RULE, {"q9": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=r"^student_logprobs: found shape \(3,\), expected \(6,\)"):
        recompute(table, RULE, {"r0": np.zeros(3, np.float32)})


def test_a_file_that_is_none_of_the_students_is_named(tmp_path: Path) -> None:
    path = tmp_path / "step-000001.arrow"
    path.write_bytes(b"ARROW1 and no more")
    with pytest.raises(ValueError, match=rf"^{path}: found 18 bytes .*, expected a whole Arrow IPC file$"):
        read_student(str(tmp_path), 1)
    written(tmp_path, RULE, step=1)
    (tmp_path / "shards" / "step-000001.arrow").replace(path)
    with pytest.raises(ValueError, match=rf"^{path}: columns: found .*, expected .*student_logprobs"):
        read_student(str(tmp_path), 1)
