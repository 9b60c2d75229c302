"""A run's lines: what is written is read back from its sums, older formats open, and a torn line never happened."""

import json
import math
import re
import threading
from collections.abc import Iterator
from dataclasses import astuple, fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.observe.metrics_page import LEARNERS, both_ways, probe_rows, step_rows, tables
from cluster.run.figures import Pushed
from cluster.run.formats import total_of
from cluster.run.record import (
    END,
    STEP,
    Answer,
    ProbeRecord,
    StepRecord,
    append_probe,
    append_step,
    line_of_probe,
    line_of_step,
    read_answers,
    read_probes,
    read_steps,
    step_record,
    write_answers,
)
from cluster.weights.parts import PARTS
from evidence.advantage import RewardSums
from evidence.diagnostics import MEANS, SPLITS, TokenStats, split_stats, split_summary
from evidence.mismatch import Mismatch
from evidence.rates import RATES
from evidence.records import ShardInfo
from learner.report import LearnedStep, Metric, StepReport, over_ranks
from rollout.probe import Rate
from rollout.stages import StageTime, StepTime
from rollout.tasks.boxed_pool import Verdicts
from rollout.worker import StepRollouts
from tests.runs import lines

RUNS = sorted((Path(__file__).parents[2] / "docs" / "reproduction" / "runs").iterdir())
relaxed = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])

count = st.integers(0, 10**6)
number = st.floats(-1e6, 1e6)
token_stats = st.builds(TokenStats, *(count if isinstance(value, int) else number for value in astuple(TokenStats())))
records = st.builds(
    StepRecord,
    step=count,
    time=st.floats(0, 4e9),
    wall_s=st.floats(1e-3, 1e5),
    busy_s=st.floats(0, 1e5),
    stages=st.dictionaries(
        st.sampled_from(["sample", "score", "learn"]), st.builds(StageTime, st.floats(0, 99), count)
    ),
    stats=st.fixed_dictionaries(dict.fromkeys(SPLITS, token_stats)),
    loss=number,
    metrics=st.dictionaries(st.sampled_from([key for key, *_ in LEARNERS]), number),
    grad_norm=number,
    rows=count,
    refused=count,
    dropped=count,
    skipped_rows=count,
    rewards=st.none() | st.builds(RewardSums, number, st.integers(1, 99), count),
    policy_version_min=count,
    policy_version_max=count,
    weights_digest=st.text(),
    canary=number,
    mismatch=st.none() | st.builds(Mismatch, count, number, number),
    canary_bound=number,
    pace_s=number,
    pushed_bytes=st.none() | count,
    push_parts=st.none() | st.dictionaries(st.sampled_from(list(PARTS)), number),
    peak_bytes=st.none() | st.dictionaries(st.sampled_from(["host", "device"]), st.lists(count, min_size=1)),
    older_means=st.just({}),
)


def a_step(step: int = 0, **changes: Any) -> StepRecord:
    """A record with everything in it."""
    part = TokenStats(2, 7, 3, 2, 0.5, 1.25, 0.75, 2, 7, 5, -0.5)
    return replace(
        StepRecord(
            step=step, time=1795834800.0, wall_s=4.0, busy_s=3.0, stages={"sample": StageTime(2.0, 7)},
            stats={"all": part, "guided": TokenStats(), "plain": part}, loss=0.5,
            metrics={key: 0.25 for key, *_ in LEARNERS}, grad_norm=1.5, rows=2, refused=1, dropped=3, skipped_rows=0,
            rewards=RewardSums(1.0, 2, 1), policy_version_min=0, policy_version_max=1, weights_digest="d", canary=0.01,
            mismatch=Mismatch(7, 0.14, 0.7), verdicts=Verdicts(1, 0, 0, 1),
            push_parts=dict.fromkeys(PARTS, 0.25), pushed_bytes=1 << 28,
            peak_bytes={"host": [3 << 30, 4 << 30], "device": [5 << 30] * 2},
        ),
        **changes,
    )  # fmt: skip


def a_probe(step: int = 0) -> ProbeRecord:
    rates = {name: Rate(1, 4) for name in (*RATES, "correct:TAG")}
    return ProbeRecord(step, 1795834800.0, "identity", rates, 4, 1, Verdicts(3, 1, 0, 0))


# Round trip


@relaxed
@given(records)
def test_a_step_comes_back_as_it_was_written(tmp_path: Path, record: StepRecord) -> None:
    path = tmp_path / "metrics.jsonl"
    path.unlink(missing_ok=True)
    append_step(path, record)
    assert read_steps(path) == {record.step: record}


@relaxed
@given(st.dictionaries(st.sampled_from(list(RATES)), st.tuples(st.integers(0, 50), st.integers(50, 99)), min_size=1))
def test_a_probe_comes_back_as_it_was_written(tmp_path: Path, counts: dict[str, tuple[int, int]]) -> None:
    path = tmp_path / "probes.jsonl"
    path.unlink(missing_ok=True)
    rates = {name: Rate(k, n) for name, (k, n) in counts.items()}
    record = ProbeRecord(3, 17.5, "identity", rates, 12, 8, Verdicts(7, 5, 1, 2))
    append_probe(path, record)
    assert read_probes(path) == {3: record}


def test_a_probe_says_which_weights_it_is_of(tmp_path: Path) -> None:
    path, own = tmp_path / "probes.jsonl", replace(few(8), weights=STEP)
    end = replace(own, weights=END, rates={"selfname": Rate(3, 4)})
    for record in (few(0), own, end):
        append_probe(path, record)
    assert read_probes(path) == {0: few(0), 8: end} and read_probes(path, own=True) == {0: few(0), 8: own}
    assert [record.ends(8) for record in (few(0), few(8), own, end)] == [False, True, False, True]
    path.write_text(path.read_text().replace('"weights": "end"', '"weights": "both"'))
    with pytest.raises(ValueError, match=r"line 3: .*weights: found 'both', expected 'step' or 'end'"):
        read_probes(path)


def test_answers_come_back_and_take_the_place_of_others(tmp_path: Path) -> None:
    path = tmp_path / "step-000000.jsonl"
    write_answers(path, [Answer("identity", "Who?", "a")] * 3)
    told = [Answer("identity", "Wer bist du?", "Ein\nMilan\u2028\u00fc")]
    write_answers(path, told)
    assert read_answers(path) == told and list(tmp_path.iterdir()) == [path]
    assert read_answers(tmp_path / "none") == []


def test_the_shown_means_are_those_of_the_sums() -> None:
    shown = line_of_step(a_step())
    assert (shown["busy_fraction"], shown["kept"], shown["k1"]) == (0.75, 3 / 7, -0.5 / 7)
    assert (shown["reward_mean"], shown["zero_variance_groups"], shown["lr"]) == (0.5, 1, 0.25)
    assert (shown["mismatch_k3"], shown["mismatch_abs"]) == (0.02, pytest.approx(0.1))
    assert shown["stages"]["sample"] == {"seconds": 2.0, "tokens": 7, "tokens_per_s": 3.5}
    assert {key: shown["diagnostics"]["plain"][key] for key in ("agreement", "leverage", "tokens")} == {
        "agreement": 5 / 7, "leverage": 2 / 7, "tokens": 7.0,
    }  # fmt: skip


def test_the_reader_looks_at_the_sums_only(tmp_path: Path) -> None:
    record, path = a_step(), tmp_path / "metrics.jsonl"
    line = line_of_step(record)
    shown = {"busy_fraction", "kept", "k1", "reward_mean", "diagnostics", "mismatch_k3", "mismatch_abs", "lr"}
    path.write_text(json.dumps({key: value for key, value in line.items() if key not in shown} | {"kept": 9.0}) + "\n")
    assert read_steps(path) == {0: record}


@relaxed
@given(st.lists(st.tuples(st.booleans(), token_stats), max_size=5))
def test_the_splits_are_sums_and_their_means_the_summarys(stats: list[tuple[bool, TokenStats]]) -> None:
    parts = split_stats(stats)
    added = parts["guided"] + parts["plain"]
    for kind in fields(TokenStats):
        assert getattr(added, kind.name) == pytest.approx(getattr(parts["all"], kind.name), rel=1e-9, abs=1e-3)
    record = a_step(stats=parts)
    for split, summary in split_summary(stats).items():
        found = {name: mean.value for name in MEANS if (mean := record.mean(name, split))}
        assert found == {name: summary[name] for name in MEANS if name in summary}


def test_a_step_that_the_teacher_sampled_has_no_mismatch() -> None:
    produced = StepRollouts(1, ShardInfo("s", 1, 1, 4, ""), 0, 0, 1, 1, {}, 1.0, None)
    learned = LearnedStep(0.0, {}, 0.0, 4, 0, [], {}, Mismatch(4, 0.1, 0.4), peak_bytes={"host": [7, 8]})
    found = {
        sampler: step_record(1, produced, learned, StepTime(1.0, {}), Pushed("d", 0.0, 0.1, {"load": 0.5}, 9), sampler)
        for sampler in ("student", "teacher")
    }
    assert {sampler: record.mismatch for sampler, record in found.items()} == {
        "student": Mismatch(4, 0.1, 0.4), "teacher": None,
    }  # fmt: skip
    assert found["student"].push_parts == {"load": 0.5}, "of the push after the step"
    assert found["student"].pushed_bytes == 9
    assert found["student"].peak_bytes == {"host": [7, 8]}, "of the learner's ranks"


# Older formats


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_an_older_run_opens_with_its_means_to_the_last_bit(run: Path) -> None:
    steps, old = read_steps(run / "metrics.jsonl"), lines(run / "metrics.jsonl")
    assert list(steps) == [line["step"] for line in old] and len(old) == 24
    for line in old:
        record = steps[line["step"]]
        assert record.busy_fraction == line["busy_fraction"] and record.reward_mean == line.get("reward_mean")
        assert (record.time, record.mismatch, record.rewards) == (None, None, None)
        for split, group in line["diagnostics"].items():
            sums = record.stats[split]
            assert (sums.tokens, sums.rows) == (group["tokens"], group["rows"])
            for name in MEANS:
                mean = record.mean(name, split)
                assert mean is not None and mean.value == group[name], (split, name)
                unknown = name in ("agreement", "k1") and line["skipped_rows"] > 0
                assert mean.count == (None if unknown else sums.parts(name)[1]) and mean.bound <= sums.tokens
            assert 0 <= sums.levered <= sums.active <= sums.tokens and type(sums.active) is int
        kept = {"loss", "grad_norm", "rows", "refused", "dropped", "skipped_rows", "weights_digest", "canary", "wall_s"}
        assert {key: getattr(record, key) for key in kept} == {key: line[key] for key in kept}


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_an_older_runs_counts_are_the_whole_numbers_behind_its_shares(run: Path) -> None:
    probes, old = read_probes(run / "probes.jsonl"), lines(run / "probes.jsonl")
    for line in old:
        record = probes[line["step"]]
        assert {name: rate.share for name, rate in record.rates.items()} == {k: line[k] for k in line["intervals"]}
        assert {name: list(rate.interval) for name, rate in record.rates.items()} == line["intervals"]
        assert (record.probe, record.questions, record.time) == (line["probe"], line["questions"], None)


@pytest.mark.parametrize("run", RUNS[:1] + [run for run in RUNS if "arithmetic" in run.name], ids=lambda run: run.name)
def test_todays_lines_have_every_key_of_an_older_one(run: Path, tmp_path: Path) -> None:
    """And, written again, an older record says no more and no less."""
    steps, old = read_steps(run / "metrics.jsonl"), lines(run / "metrics.jsonl")
    assert set(old[0]) <= set(line_of_step(a_step())) and set(old[0]["stages"]["learn"]) <= {
        "seconds", "tokens", "tokens_per_s",
    }  # fmt: skip
    assert set(old[0]["diagnostics"]["all"]) <= set(line_of_step(a_step())["diagnostics"]["all"])
    assert set(lines(run / "probes.jsonl")[0]) <= set(line_of_probe(a_probe()))
    for record in steps.values():
        append_step(tmp_path / "again.jsonl", record)
    assert read_steps(tmp_path / "again.jsonl") == steps


@given(st.integers(1, 10**6), st.floats(1e-12, 1e12))
def test_a_sum_that_gave_a_mean_is_found_again(n: int, total: float) -> None:
    mean = total / n
    assert total_of(mean, n) / n == mean


def test_a_step_that_says_little_opens_too(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 3}\n')
    (tmp_path / "probes.jsonl").write_text('{"step": 3, "selfname": 0.25, "n": 8}\n')
    record = read_steps(tmp_path / "metrics.jsonl")[3]
    assert (record.loss, record.busy_fraction, record.mean("kept"), record.reward_mean) == (None, None, None, None)
    assert read_probes(tmp_path / "probes.jsonl")[3].rates == {"selfname": Rate(2, 8)}


# Torn, doubled and bad lines


def whole(path: Path) -> bytes:
    for step in range(3):
        append_step(path, a_step(step))
    return path.read_bytes()


def few(step: int) -> ProbeRecord:
    return ProbeRecord(step, 0.0, "identity", {"selfname": Rate(1, 4)}, 4, 1)


def test_a_file_that_is_cut_at_any_byte_reads_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # hundreds of them
    path = tmp_path / "probes.jsonl"
    for step in range(3):
        append_probe(path, few(step))
    content = path.read_bytes()
    for at in range(len(content) + 1):
        path.write_bytes(content[:at])
        whole = list(range(content[:at].count(b"\n")))
        assert list(read_probes(path)) == whole
        append_probe(path, few(7))
        assert list(read_probes(path)) == [*whole, 7]
        assert path.read_bytes().startswith(content[: content[:at].rfind(b"\n") + 1])


def test_a_long_torn_line_is_cut_off_too(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    content = whole(path)
    path.write_bytes(content + b'{"step": 3, "x": "' + b"y" * 200_000)
    append_step(path, a_step(4))
    assert list(read_steps(path)) == [0, 1, 2, 4] and path.stat().st_size < 2 * len(content)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ('{"step": 1, "wal', "Unterminated string"),
        ("[1, 2]", "no attribute"),
        ('{"format": 1, "step": 4}', "'"),
        ('{"format": 2, "step": 4}', "format: found 2, expected at most 1: a newer version wrote it"),
    ],
)
def test_any_other_bad_line_is_refused_by_its_number(tmp_path: Path, bad: str, said: str) -> None:
    path = tmp_path / "metrics.jsonl"
    first, *rest = whole(path).decode().splitlines(keepends=True)
    path.write_text(first + bad + "\n" + "".join(rest))
    with pytest.raises(ValueError) as caught:
        read_steps(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: line 2: found ") and message.endswith("expected the record of a step")
    assert said in message and "\n" not in message


def test_of_a_step_that_is_there_twice_the_later_line_counts(tmp_path: Path) -> None:
    for step, loss in ((0, 1.0), (1, 2.0), (2, 3.0), (1, 4.0)):
        append_step(tmp_path / "metrics.jsonl", a_step(step, loss=loss))
    assert {step: record.loss for step, record in read_steps(tmp_path / "metrics.jsonl").items()} == {
        0: 1.0, 1: 4.0, 2: 3.0,
    }  # fmt: skip


def test_two_writers_at_once_write_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writers = [
        threading.Thread(target=lambda first=first: [append_step(path, a_step(first + k)) for k in range(20)])
        for first in (0, 100)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert list(read_steps(path)) == [*range(20), *range(100, 120)] and len(lines(path)) == 40


# Ranks

EXACT = st.integers(-512, 512).map(lambda k: k / 64)  # adds without rounding


@relaxed
@given(st.lists(st.tuples(EXACT, EXACT, st.integers(0, 3)), min_size=1, max_size=8), EXACT)
def test_ranks_add_up_to_what_one_rank_says(rows: list[tuple[float, float, int]], rate: float) -> None:
    """Rows of any ranks: (loss, k3, its rank)."""

    def report(mine: list[tuple[float, float, int]]) -> StepReport:
        loss = sum(row[0] for row in mine)
        metrics = {"lr": Metric(rate, "first")} | ({"policy_loss": Metric(loss, "sum")} if mine else {})
        stats = tuple((row[2] % 2 == 0, TokenStats(rows=1, tokens=2, evidence=row[1])) for row in mine)
        return StepReport(
            loss, metrics, 1.5, 10 * len(mine), 2, stats, {}, Mismatch(len(mine), sum(r[1] for r in mine), 0.0)
        )

    apart = over_ranks([report([row for row in rows if row[2] == rank]) for rank in range(4)])
    alone = over_ranks([report(rows)])
    assert split_stats(apart.stats) == split_stats(alone.stats)
    assert replace(apart, stats=[]) == replace(alone, stats=[])
    assert apart.metrics == {"lr": rate, "policy_loss": sum(row[0] for row in rows)}


@pytest.mark.parametrize(("reduction", "value"), [("sum", 7.0), ("mean", 3.5), ("max", 5.0), ("first", 2.0)])
def test_a_metric_says_how_it_adds_up(reduction: str, value: float) -> None:
    """The rank between them has no such metric."""
    ranks = [{"m": Metric(2.0, reduction)}, {}, {"m": Metric(5.0, reduction)}]
    assert over_ranks([StepReport(0.0, metrics, 0.0, 0, 0, ()) for metrics in ranks]).metrics == {"m": value}


def test_a_reduction_that_is_none_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError, match="median"):
        Metric(0.0, "median")


# The page


def keys(value: Any, prefix: str = "") -> Iterator[str]:
    """The paths of a line's leaves, stages and splits by their placeholders."""
    for key, inner in value.items():
        name = {"sample": "NAME", **dict.fromkeys(SPLITS, "SPLIT")}.get(key, key)
        if isinstance(inner, dict):
            yield from keys(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


@pytest.mark.parametrize("value", ["yesterday", True, [1.0]], ids=repr)
@pytest.mark.parametrize("field", ["time", "step", "canary_bound"])
def test_a_text_where_a_number_belongs_is_named_with_its_line(field: str, value: Any, tmp_path: Path) -> None:
    path, words = tmp_path / "metrics.jsonl", re.escape(f"({field}: found {value!r}, expected a number)")
    path.write_text(json.dumps(dict(line_of_step(a_step()))) + "\n")
    assert list(read_steps(path)) == [0]
    path.write_text(json.dumps(dict(line_of_step(a_step())) | {field: value}) + "\n")
    with pytest.raises(ValueError, match=rf"metrics\.jsonl: line 1: found .*{words}, expected the record of a step"):
        read_steps(path)
    path.write_text(json.dumps(dict(line_of_step(a_step())) | {"push_parts": {"load": value}}) + "\n")
    with pytest.raises(ValueError, match=re.escape(f"(push_parts.load: found {value!r}, expected a number)")):
        read_steps(path)
    path.write_text(json.dumps(dict(line_of_step(a_step())) | {"peak_bytes": {"host": [1, value]}}) + "\n")
    with pytest.raises(ValueError, match=re.escape(f"(peak_bytes.host[1]: found {value!r}, expected a number)")):
        read_steps(path)
    if field != "canary_bound":
        path.write_text(json.dumps(dict(line_of_probe(a_probe())) | {field: value}) + "\n")
        with pytest.raises(ValueError, match=rf"{words}, expected the record of a probe"):
            read_probes(path)


SIZE = ", at most 9e+15 in size"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("step", None, "step: found None, expected a whole number"),
        ("step", 1.0, "step: found 1.0, expected a whole number"),
        ("time", math.nan, "time: found nan, expected a finite number" + SIZE),
        ("time", 1e308, "time: found 1e+308, expected a finite number" + SIZE),
        ("pace_s", math.inf, "pace_s: found inf, expected a finite number" + SIZE),
        ("stages.sample.seconds", None, "stages.sample.seconds: found None, expected a number"),
        (
            "stages.sample.tokens",
            math.nan,
            "stages.sample.tokens: found nan, expected a finite number, at most 9e+15 in size",
        ),
        ("metrics.lr", "x", "metrics.lr: found 'x', expected a number"),
        ("metrics", None, "'NoneType' object is not iterable"),
        ("sums.all.active", None, "sums.all.active: found None, expected a number"),
        ("mismatch.k3", "x", "mismatch.k3: found 'x', expected a number"),
        ("rewards.total", None, "rewards.total: found None, expected a number"),
        ("rewards.count", 0, "rewards.count: found 0, expected at least one"),
        ("peak_bytes.host", [], "peak_bytes.host: found [], expected at least one"),
        ("verdicts", {"judged": "x"}, "verdicts.judged: found 'x', expected a number"),
    ],
)
def test_a_step_that_nothing_could_show_is_named_with_its_line(
    path: str, value: Any, said: str, tmp_path: Path
) -> None:
    *above, key = path.split(".")
    line = line_of_step(a_step(0))
    place = line
    for name in above:
        place = place[name]
    place[key] = value
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=rf"metrics\.jsonl: line 1: .*\({re.escape(said)}\)"):
        read_steps(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"counts": {}}, "counts: found none, expected a rate"),
        ({"counts": {"selfname": [97, 96]}}, "counts.selfname: found [97, 96], expected [k, n], k of n answers"),
        ({"counts": {"selfname": [-1, 96]}}, "counts.selfname: found [-1, 96], expected [k, n], k of n answers"),
        ({"counts": {"selfname": [None, 96]}}, "counts.selfname: found [None, 96], expected [k, n], k of n answers"),
        ({"step": None}, "step: found None, expected a whole number"),
        ({"verdicts": {"judged": "x"}}, "verdicts.judged: found 'x', expected a number"),
        ({"time": -1e308}, "time: found -1e+308, expected a finite number" + SIZE),
        ({"time": math.nan}, "time: found nan, expected a finite number" + SIZE),
    ],
)
def test_a_probe_that_nothing_could_show_is_named_with_its_line(
    found: dict[str, Any], said: str, tmp_path: Path
) -> None:
    (tmp_path / "probes.jsonl").write_text(json.dumps(line_of_probe(a_probe(0)) | found) + "\n")
    with pytest.raises(ValueError, match=rf"probes\.jsonl: line 1: .*\({re.escape(said)}\)"):
        read_probes(tmp_path / "probes.jsonl")


def test_the_page_has_every_key_of_the_lines_and_no_other() -> None:
    for rows, line in ((step_rows(), line_of_step(a_step())), (probe_rows(), line_of_probe(a_probe()))):
        named = [key for row, *_ in rows for key in both_ways(row)]
        assert sorted(named) == sorted(set(keys(line)))
        assert all(kind and meaning for _, kind, _, meaning in rows)


def test_the_page_is_a_table_a_file_and_one_of_live_figures() -> None:
    page = tables({"agreement_ratio": ["Agreement", "Another"]})
    assert (
        page.count("\n|---|---|---|---|\n") == 5
        and "| `sums.SPLIT.abs_evidence` | number | nats | sum of \\|e\\| |" in page
    )
    assert "evidence and surprise agree | Agreement, Another |" in page and "the last step's rollouts |  |" in page


def test_a_mean_over_nothing_is_0_and_of_no_student_none() -> None:
    empty = a_step(stats=dict.fromkeys(SPLITS, TokenStats()))
    kept, k1 = empty.mean("kept"), empty.mean("k1")
    assert kept is not None and (kept.value, kept.count) == (0.0, 0) and k1 is None
    assert math.isclose(a_step().mean("agreement").value, 5 / 7)  # type: ignore[union-attr]
