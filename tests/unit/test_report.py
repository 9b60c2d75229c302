"""Reports over fake run directories, every figure against one computed here from the same counts."""

import json
import math
import re
import shutil
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from cluster.__main__ import main
from cluster.commands.reproduce import AXES, RECIPES
from cluster.config import Recipe, load_recipe
from cluster.report.arms import MATRIX, arm_of
from cluster.report.charts import spread
from cluster.report.claims import judge_claims
from cluster.report.findings import headline
from cluster.report.gallery import headline_charts
from cluster.report.groups import Group, group_runs
from cluster.report.numbers import Number, difference
from cluster.report.published import load_published
from cluster.report.runs import RECORD, read_runs
from cluster.report.settings import run_lines
from cluster.report.tables import Table, group_tables
from cluster.report.write import write_report
from cluster.resolved import ADDED, read_resolved
from cluster.run.record import append_step
from evidence.diagnostics import TokenStats
from evidence.kinds import EVIDENCE_KINDS
from evidence.rates import RATES, RateRule
from evidence.rule import REGIONS, SOFT_WEIGHTS, TAU_KINDS
from evidence.view.pages import figure
from learner.objectives import OBJECTIVES
from tests.fakes import Probe, fake_run

ROOT = Path(__file__).parents[2]
ARMS = {  # code -> rollout, evidence and learner settings of the matrix, written out again
    "N1": (0.0, "system", "all", "none", 0.0),
    "N2": (0.5, "system", "all", "none", 0.0),
    "N2u": (0.5, "user", "all", "none", 0.0),
    "N7": (0.5, "system", "pos", "none", 0.0),
    "N7u": (0.5, "user", "pos", "none", 0.0),
    "N4": (0.0, "system", "all", "rlsd", 0.0),
    "N4g": (0.5, "system", "all", "rlsd", 0.0),
    "N3": (0.5, "system", "pos", "none", 0.05),
    "N3u": (0.5, "user", "pos", "none", 0.05),
    "N3u-g0125": (0.125, "user", "pos", "none", 0.05),
    "N3u-g100": (1.0, "user", "pos", "none", 0.05),
    "N11": (0.5, "user", "neg", "none", 0.05),
    "N12": (0.5, "user", "near_zero", "none", 0.05),
    "N9": (0.5, "system", "all", "none", 0.0),
    "N10": (0.5, "system", "all", "rlsd", 0.0),
    "N6": (0.5, "system", "pos", "none", 0.05),
    "N13": (0.5, "system", "neg", "none", 0.05),
    "N14": (0.5, "system", "near_zero", "none", 0.05),
}
MATH = ("N9", "N10", "N6", "N13", "N14", "N15")


def settings(code: str, **run: Any) -> dict[str, dict[str, Any]]:
    guided, context, region, soft, beta = ARMS[code]
    return {
        "run": {"steps": 2, **run},
        "task": {"name": "math" if code in MATH else "identity"},
        "rollout": {"guided_fraction": guided, "context_position": context},
        "evidence": {"region": region, "soft": soft},
        "learner": {"beta_kl": beta},
    }


def rates(selfname: int, capability: int = 5, side_effect: int = 0, n: int = 10) -> Probe:
    keys = {"selfname": selfname, "mention": selfname, "countername": n - selfname}
    return {key: (k, n) for key, k in (keys | {"capability": capability, "side_effect": side_effect}).items()}


def means(kept: float, tokens: int, rows: int = 4) -> dict[str, float]:
    names = ("leverage", "agreement", "mean_evidence", "mean_abs_evidence", "mean_abs_weight_shift", "k1")
    return dict.fromkeys(names, kept / 2) | {
        "kept": kept, "tokens": float(tokens), "rows": float(rows), "mean_response_length": tokens / rows,
    }  # fmt: skip


def split(kept: float, tokens: int) -> dict[str, dict[str, float]]:
    return {"all": means(kept, tokens), "guided": means(kept, tokens), "plain": means(0.0, 0, 1)}


def arm_run(root: Path, code: str, probes: dict[int, Probe] | None = None, *, seed: int = 0, **extra: Any) -> Path:
    found = probes if probes is not None else {0: rates(0), 1: rates(4), 2: rates(6)}
    return fake_run(
        root / f"{code}-{seed}", found, {0: split(0.5, 100), 1: split(0.75, 300)}, **settings(code, seed=seed), **extra
    )


def grouped(*folders: Path) -> Group:
    (group,) = group_runs(read_runs(folders))
    return group


def cells(tables: list[Table], key: str, code: str) -> dict[str, Any]:
    table = next(table for table in tables if table.key == key)
    return dict(next(row for row in table.rows if row["code"] == code))


def score_interval(k: int, n: int) -> tuple[float, float]:
    """Wilson's bounds by their definition: the rates p whose z-score against k/n is 1.96, found by bisection."""

    def bound(outside: float) -> float:
        inside = k / n
        for _ in range(200):
            middle = (inside + outside) / 2
            z = abs(k / n - middle) / math.sqrt(middle * (1 - middle) / n) if 0 < middle < 1 else math.inf
            inside, outside = (middle, outside) if z < 1.959963984540054 else (inside, middle)
        return inside

    return bound(0.0), bound(1.0)


# Arms


def test_the_arms_are_those_of_the_matrix() -> None:
    assert {arm.code for arm in MATRIX} == {*ARMS, "N15"}


@pytest.mark.parametrize("code", ARMS)
def test_a_recipe_is_told_by_its_settings(code: str, tmp_path: Path) -> None:
    assert arm_of(read_resolved(arm_run(tmp_path, code)).recipe).code == code


def recipe(name: str, *changes: str) -> Recipe:
    """A shipped recipe with --set."""
    return load_recipe(RECIPES / f"{name}.toml", changes)


INVITED = (  # README, "The published matrix": the keys for another model and size
    "model.path=ORG/MODEL", "run.steps=100", "learner.lr=5e-6", "rollout.prompts_per_step=16",
    "rollout.max_response_tokens=512", "student.window=2048", "teacher.window=2048",
)  # fmt: skip


@pytest.mark.parametrize("changes", [(), INVITED], ids=["shipped", "invited"])
@pytest.mark.parametrize("name", sorted({*AXES["identity"], *AXES["arithmetic"], *MATH}))
def test_a_shipped_arm_is_that_arm_at_any_size(name: str, changes: tuple[str, ...]) -> None:
    assert arm_of(recipe(name, *changes)).code == name.removesuffix("-arithmetic")


@pytest.mark.parametrize(
    ("name", "change", "described"),
    [
        ("N15", "evidence.soft=none", "grpo, no KL, system, soft none"),
        ("N15", "evidence.region=pos", "grpo, no KL, system, region pos"),
        ("N15", "evidence.soft_mix=1.0", "grpo, no KL, system, soft_mix 1.0"),
        ("N15", "evidence.soft_mix_decay_steps=0", "grpo, no KL, system, soft_mix_decay_steps 0"),
        ("N15", "learner.clip_high=0.2", "grpo, no KL, system, clip_high 0.2"),
        ("N4g", "evidence.soft_mix=0.5", "all, soft, no KL, system, soft_mix 0.5"),
        ("N10", "evidence.soft_mix_decay_steps=9", "all, soft, no KL, system, soft_mix_decay_steps 9"),
        ("N3", "evidence.tau_kind=quantile", "pos, KL, system, tau_kind quantile"),
        ("N3", "rollout.sampler=teacher", "pos, KL, system, sampler teacher"),
        ("N3", "rollout.guided_split=bernoulli", "pos, KL, system, guided_split bernoulli"),
        ("N3", "teacher.path=other", "pos, KL, system, path other"),
        ("N3", "teacher.url=http://there/v1", "pos, KL, system, url http://there/v1"),
        ("N3", "learner.objective=jsd", "jsd, pos, KL, system"),
        ("N4g", "learner.objective=forward_kl", "forward_kl, all, soft, no KL, system"),
        ("N3", "task.context_empty_allowed=true", "pos, KL, system, context_empty_allowed True"),
        ("local-smoke", "run.seed=0", "pos, KL, system, ordinary_questions True"),
        ("local-smoke-lora", "run.seed=0", "pos, KL, system, lora_rank 16, ordinary_questions True"),
    ],
)
def test_a_recipe_that_leaves_its_arm_is_named_by_what_it_changed(name: str, change: str, described: str) -> None:
    arm = arm_of(recipe(name, change))
    assert (arm.code, arm.label) == ("other", f"guided 0.5, {described}")


def without(run: Path, *lines: str) -> Path:
    """The run as if its recipe did not have these lines."""
    path = run / "config.toml"
    text = path.read_text()
    for line in lines:
        assert text.count(f"\n{line}\n") == 1
        text = text.replace(f"\n{line}\n", "\n")
    path.write_text(text)
    return run


def test_a_run_that_is_older_than_a_setting_keeps_its_arm(tmp_path: Path) -> None:
    run = arm_run(tmp_path, "N3")
    whole = read_resolved(run)
    without(run, "ordinary_questions = false", "lora_rank = 0", "gradient_checkpointing = false")
    (found,) = grouped(run).pool("N3").runs
    assert found.recipe == whole.recipe and len(found.stated) == len(whole.stated) - 3
    without(run, "tau = 0.0")  # which every run has had
    assert refused(run) == f"{run / 'config.toml'}: evidence.tau: found nothing, expected a resolved recipe"


@pytest.mark.parametrize("place", sorted(ADDED), ids=lambda place: ".".join(place))
def test_an_older_run_did_what_its_migration_says(place: tuple[str, str], tmp_path: Path) -> None:
    """Also where the default of today is another one."""
    run = arm_run(tmp_path, "N3")
    tables = tomllib.loads((run / "config.toml").read_text())
    del tables[place[0]][place[1]]
    (run / "config.toml").write_text(tomli_w.dumps(tables))
    resolved = read_resolved(run)
    assert place not in resolved.stated
    value = getattr(getattr(resolved.recipe, place[0]), place[1])
    assert (list(value) if isinstance(value, tuple) else value) == ADDED[place]


@pytest.mark.parametrize(
    ("table", "key", "value", "described"),
    [
        ("rollout", "guided_fraction", 0.25, "guided 0.25, pos, KL, system"),
        ("rollout", "guided_fraction", 0.0, "guided 0, pos, KL, system"),
        ("learner", "beta_kl", 0.3, "guided 0.5, pos, KL, system, beta_kl 0.3"),
        ("evidence", "tau", 0.5, "guided 0.5, pos, KL, system, tau 0.5"),
        ("learner", "denominator", "kept", "guided 0.5, pos, KL, system, denominator kept"),
        ("evidence", "soft", "rlsd", "guided 0.5, pos, soft, KL, system"),
        ("teacher", "kind", "live", "guided 0.5, pos, KL, system, kind live"),
    ],
)
def test_another_setting_is_no_published_arm(
    table: str, key: str, value: object, described: str, tmp_path: Path
) -> None:
    plain = read_resolved(arm_run(tmp_path, "N3")).recipe
    arm = arm_of(replace(plain, **{table: replace(getattr(plain, table), **{key: value})}))
    assert (arm.code, arm.label) == ("other", described)


def test_other_arms_are_numbered_and_shown_last(tmp_path: Path) -> None:
    odd = {**settings("N3"), "rollout": {"guided_fraction": 0.25}}
    group = grouped(arm_run(tmp_path, "N3"), fake_run(tmp_path / "odd", {0: rates(0), 2: rates(1)}, **odd))
    assert [pool.arm.code for pool in group.pools] == ["N3", "X1"]
    assert cells(group_tables(group, load_published()), "selfname", "X1")["label"] == "guided 0.25, pos, KL, system"


# Published figures


def test_the_published_figures_are_transcribed() -> None:
    table = (
        "N0 0 0 .531 N1 0 0 .517 N4 0 0 .550 N2 .562 .542 .583 N2u .667 .688 .544 N4g .625 .646 .569 "
        "N7 .583 .562 .575 N7u .542 .521 .550 N3 .521 .500 .533 N3u .562 .583 .556"
    )
    regions = "N3u .500 .104 .556 N11 0 .583 .517 N12 0 .708 .508"
    math_arms = "N9 .517 10 .467 N10 .583 10 .492 N15 .592 40 .575 N6 .392 20 .383 N13 .425 20 .358 N14 .583 10 .583"
    kept = "N3u .655 N11 .630 N12 .553 N6 .788 N13 .676 N14 .767"
    found = load_published().tables
    expected = {
        "best_over_checkpoints": table, "mask_regions": regions, "math": math_arms, "kept_at_end": kept,
        "rlsd_nv": "identity .658 .529 N10 .330 .740",
    }  # fmt: skip
    assert set(found) == set(expected)
    for name, text in expected.items():
        flat = [str(cell) for arm, row in found[name]["rows"].items() for cell in (arm, *row)]
        words = text.split()
        assert [word if word[0] == "N" or word == "identity" else float(word) for word in words] == [
            word if word[0] == "N" or word == "identity" else float(word) for word in flat
        ]


def test_what_is_not_transcribed_stays_empty(tmp_path: Path) -> None:
    row = cells(group_tables(grouped(arm_run(tmp_path, "N11")), load_published()), "selfname", "N11")
    assert row["published_identity"] is None
    assert row["selfname"] is not None


# Pooling


def test_counts_of_seeds_add_up(tmp_path: Path) -> None:
    one = arm_run(tmp_path, "N3", {0: rates(0), 2: rates(3)})
    other = arm_run(tmp_path, "N3", {0: rates(0), 2: rates(8)}, seed=1)
    final = grouped(one, other).pool("N3").final("selfname")
    assert final is not None
    assert (final.value, final.count, final.n) == (11 / 20, 11, 20)
    assert final.interval == pytest.approx(score_interval(11, 20), abs=1e-9)
    assert [(source.run, source.file, source.step) for source in final.sources] == [
        ("N3-0", "probes.jsonl", 2),
        ("N3-1", "probes.jsonl", 2),
    ]


def test_best_is_the_earliest_highest_probe_after_the_first(tmp_path: Path) -> None:
    run = arm_run(tmp_path, "N3", {0: rates(9), 1: rates(7), 2: rates(7), 3: rates(2)})
    pool = grouped(run).pool("N3")
    best, final = pool.best("selfname"), pool.final("selfname")
    assert best is not None and final is not None
    assert (best.value, best.steps, final.value, final.steps) == (0.7, (1,), 0.2, (3,))


def test_a_change_has_newcombes_interval(tmp_path: Path) -> None:
    run = arm_run(tmp_path, "N3", {0: rates(0, capability=8), 2: rates(6, capability=3)})
    change = cells(group_tables(grouped(run), load_published()), "cost", "N3")["change"]
    (low1, high1), (low0, high0) = score_interval(3, 10), score_interval(8, 10)
    assert change.value == pytest.approx(0.3 - 0.8)
    low = -0.5 - math.sqrt((0.3 - low1) ** 2 + (high0 - 0.8) ** 2)
    high = -0.5 + math.sqrt((high1 - 0.3) ** 2 + (0.8 - low0) ** 2)
    assert change.interval == pytest.approx((low, high), abs=1e-9)
    assert {source.step for source in change.sources} == {0, 2}


def test_a_difference_needs_two_rates() -> None:
    mean = Number(0.5, (), 10)
    assert difference(mean, mean) is None
    assert difference(None, mean) is None


def test_diagnostics_are_weighted_by_what_they_are_means_of(tmp_path: Path) -> None:
    runs = [
        fake_run(tmp_path / str(seed), {0: rates(0), 2: rates(1)}, {1: part}, **settings("N3", seed=seed))
        for seed, part in enumerate((split(0.25, 100), split(0.75, 300)))
    ]
    pool = grouped(*runs).pool("N3")
    kept, shift = pool.diagnostic("kept"), pool.diagnostic("mean_abs_weight_shift")
    length = pool.diagnostic("mean_response_length")
    assert kept is not None and shift is not None and length is not None
    assert kept.value == pytest.approx((0.25 * 100 + 0.75 * 300) / 400)
    assert shift.value == pytest.approx((0.125 * 25 + 0.375 * 225) / 250)  # over active tokens
    assert length.value == pytest.approx(400 / 8)  # over rows
    assert pool.diagnostic("kept", "plain") is None  # of no token


@pytest.mark.parametrize(("counted", "expected"), [(True, (0.125 * 32 + 0.375 * 8) / 40), (False, 0.3125)])
def test_agreement_and_k1_are_weighted_by_the_tokens_that_the_student_ran(
    counted: bool, expected: float, tmp_path: Path
) -> None:
    """An older run did not count them: all its response tokens do."""
    runs = []
    for seed, kept, tokens, student_tokens in ((0, 0.25, 80, 32.0), (1, 0.75, 240, 8.0)):
        figures = means(kept, tokens) | ({"student_tokens": student_tokens} if counted else {})
        steps = {1: {"all": figures, "guided": figures, "plain": figures}}
        runs.append(fake_run(tmp_path / str(seed), {0: rates(0), 2: rates(1)}, steps, **settings("N3", seed=seed)))
    pool = grouped(*runs).pool("N3")
    for name in ("agreement", "k1"):
        found = pool.diagnostic(name)
        assert found is not None and found.value == pytest.approx(expected)
    leverage = pool.diagnostic("leverage")
    assert leverage is not None and leverage.value == pytest.approx(0.3125)  # over all tokens


def test_a_newer_run_says_its_sums(tmp_path: Path) -> None:
    """Of which each figure is a mean over what it is counted over, also where one arm has a run of either kind."""
    runs = [arm_run(tmp_path, "N3", {0: rates(0), 2: rates(3)}, seed=seed) for seed in (0, 1)]
    older = read_runs(runs)[0].steps[1]
    stats = TokenStats(5, 40, 30, 20, 8.0, 12.0, 3.0, 1, 25, 10, -5.0)
    newer = replace(older, stats={"all": stats, "guided": stats, "plain": TokenStats()}, wall_s=120.0, older_means={})
    (runs[1] / "metrics.jsonl").unlink()
    append_step(runs[1] / "metrics.jsonl", newer)
    (alone,), both = grouped(runs[1]).pools, grouped(*runs).pool("N3")
    expected = {
        "kept": 30 / 40, "leverage": 20 / 40, "mean_evidence": 8 / 40, "mean_abs_evidence": 12 / 40,
        "mean_abs_weight_shift": 3 / 30, "mean_response_length": 40 / 5, "agreement": 10 / 25, "k1": -5 / 25,
    }  # fmt: skip
    for name, value in expected.items():
        found = alone.diagnostic(name)
        assert found is not None and found.value == pytest.approx(value), name
        assert alone.diagnostic(name, "plain") is None
    k1, shift = both.diagnostic("k1"), both.diagnostic("mean_abs_weight_shift")
    assert k1 is not None and k1.value == pytest.approx((0.375 * 300 - 5) / 325)  # the older did not count: all tokens
    assert shift is not None and shift.value == pytest.approx((0.375 * 225 + 3) / 255)
    assert [(line.minutes, line.tokens) for line in run_lines(grouped(*runs))] == [(1.0, 400), (2.0, 40)]


def test_a_step_whose_rows_the_student_never_ran_has_no_k1(tmp_path: Path) -> None:
    run = arm_run(tmp_path, "N3")
    unseen = {name: {key: value for key, value in group.items() if key not in ("k1", "agreement")}
              for name, group in split(0.0, 50).items()}  # fmt: skip
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 1, "wall_s": 60.0, "k1": None, "diagnostics": unseen}) + "\n")
    pool = grouped(run).pool("N3")
    kept, k1 = pool.diagnostic("kept"), pool.diagnostic("k1")
    assert kept is not None and kept.value == 0.0
    assert k1 is None
    assert write_report([run], tmp_path / "report").is_file()


def test_after_a_resume_the_later_line_counts(tmp_path: Path) -> None:
    run = arm_run(tmp_path, "N3")
    again = {"step": 2, "probe": "identity", "selfname": 0.9, "n": 10}
    with (run / "probes.jsonl").open("a") as file:
        file.write(json.dumps(again) + "\n")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 1, "wall_s": 60.0, "diagnostics": split(0.1, 50)}) + '\n{"step": 1, "torn')
    group = grouped(run)
    final, kept = group.pool("N3").final("selfname"), group.pool("N3").diagnostic("kept")
    assert final is not None and kept is not None
    assert (final.count, kept.value) == (9, pytest.approx(0.1))
    (line,) = run_lines(group)
    assert (line.minutes, line.tokens) == (pytest.approx(1.5), 150)


def base_answers(changed: int) -> list[tuple[str, str]]:
    return [(f"question {i}", f"answer {i}" if i >= changed else f"another {i}") for i in range(10)]


@pytest.mark.parametrize(("changed", "n"), [(0, 10), (4, 10), (5, 20), (10, 20)])
def test_the_same_draws_of_the_base_model_are_counted_once(changed: int, n: int, tmp_path: Path) -> None:
    one = arm_run(tmp_path, "N3", answers=base_answers(0))
    other = arm_run(tmp_path, "N1", answers=base_answers(changed))
    base = grouped(one, other).base.final("capability")
    assert base is not None and base.n == n


# Tables, headline and charts: what is compared with what


def test_the_regions_are_compared_with_the_positive_one(tmp_path: Path) -> None:
    runs = [arm_run(tmp_path, code, {0: rates(0), 2: rates(k)}) for code, k in (("N3u", 6), ("N11", 1), ("N3", 9))]
    tables = group_tables(grouped(*runs), load_published())
    assert cells(tables, "regions", "N11")["gap"].value == pytest.approx(0.5)
    assert cells(tables, "regions", "N3u")["gap"] is None
    assert cells(tables, "regions", "N12")["gap"] is None
    assert [row["code"] for table in tables if table.key == "regions" for row in table.rows] == [
        "N3", "N3u", "N11", "N12",
    ]  # fmt: skip


def test_the_headline_pools_the_arms_of_the_matrix(tmp_path: Path) -> None:
    figures = {"N1": (0, 7, 0), "N4": (1, 8, 1), "N2": (5, 2, 3), "N3": (8, 4, 4), "N11": (2, 0, 9)}
    runs = [
        arm_run(tmp_path, code, {0: rates(0, 9), 1: rates(9, 9, 9), 2: rates(*final)})
        for code, final in figures.items()
    ]
    odd = {**settings("N3"), "rollout": {"guided_fraction": 0.25}}
    runs.append(fake_run(tmp_path / "odd", {0: rates(0, 9), 2: rates(9, 9, 9)}, **odd))
    guidance, regions, cost = headline(grouped(*runs))
    assert [(fact.number.count, fact.number.n) for fact in guidance if fact.number] == [(13, 20), (1, 20)]
    assert [fact.number and fact.number.count for fact in regions] == [8, 2, None]
    before, guided, unguided, leak = (fact.number for fact in cost)
    assert before is not None and guided is not None and unguided is not None and leak is not None
    assert (before.count, before.n) == (54, 60)  # no answers are there to tell repeats by
    assert (guided.value, unguided.value) == (pytest.approx(6 / 20 - 0.9), pytest.approx(15 / 20 - 0.9))
    assert (leak.count, leak.n) == (7, 20)


def test_charts_draw_final_best_and_published(tmp_path: Path) -> None:
    run = arm_run(tmp_path, "N3", {0: rates(0, 8), 1: rates(9, 7), 2: rates(6, 3)})
    level, _, change = headline_charts(grouped(run), load_published())
    titles = re.findall(r"<title>(0\.[69]0|published: 0.521)", level.picture.inline)
    assert titles == ["0.90", "0.60", "published: 0.521"]
    assert re.findall(r"<title>(.0\.50|published: \+?0.002)", change.picture.inline) == ["−0.50", "published: 0.002"]


def test_a_second_task_of_an_axis_has_recipes_of_its_own(tmp_path: Path) -> None:
    for name in ("math", "arithmetic"):
        chosen = {**settings("N6"), "task": {"name": name}}
        fake_run(tmp_path / name, {0: {"pass_at_1": (5, 20)}, 2: {"pass_at_1": (9, 20)}}, **chosen)
    out = write_report([tmp_path / "math", tmp_path / "arithmetic"], tmp_path / "report").parent
    assert {path.name for path in (out / "runs").iterdir()} == {"N6-seed0", "arithmetic-N6-seed0"}


# Claims


@pytest.mark.parametrize(
    ("code", "final", "best", "verdict"),
    [
        ("N1", 0, 0, "shown"), ("N1", 0, 1, "refuted"), ("N4", 0, 0, "shown"),
        ("N3", 4, 9, "shown"), ("N3", 3, 9, "refuted"), ("N2u", 4, 4, "shown"), ("N4g", 3, 3, "refuted"),
        ("N11", 1, 1, "shown"), ("N11", 0, 2, "refuted"), ("N12", 2, 2, "refuted"),
    ],
)  # fmt: skip
def test_a_claim_is_judged_by_its_counts(code: str, final: int, best: int, verdict: str, tmp_path: Path) -> None:
    group = grouped(arm_run(tmp_path, code, {0: rates(0), 1: rates(best), 2: rates(final)}))
    verdicts = judge_claims(group, load_published().claims)
    (own,) = [found for found in verdicts if code in found.claim.arms]
    assert (own.verdict, own.ran) == (verdict, 1)
    (arm,) = [arm for arm in own.arms if arm.arm.code == code]
    assert arm.number is not None and arm.number.count == (best if own.claim.at == "best" else final)
    assert {found.verdict for found in verdicts if found is not own} == {"not run"}


def test_an_unfinished_arm_refutes_an_upper_bound_and_decides_nothing_else(tmp_path: Path) -> None:
    published = load_published().claims
    low = grouped(arm_run(tmp_path, "N3", {0: rates(0), 1: rates(1)}))
    assert [found.verdict for found in judge_claims(low, published)] == ["not run", "undecided", "not run"]
    high = grouped(arm_run(tmp_path, "N11", {0: rates(0), 1: rates(9)}))
    assert [found.verdict for found in judge_claims(high, published)] == ["not run", "not run", "refuted"]


def test_an_unfinished_run_is_marked(tmp_path: Path) -> None:
    group = grouped(arm_run(tmp_path, "N3", {0: rates(0), 1: rates(1)}, seed=0))
    (line,) = run_lines(group)
    assert line.status == "unfinished (step 2 of 2)"
    row = cells(group_tables(group, load_published()), "selfname", "N3")
    assert row["label"] == "EDGE-OPD: unfinished (step 2 of 2)"


# Bad input


def refused(*folders: Path) -> str:
    with pytest.raises(ValueError) as caught:
        group_runs(read_runs(folders))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"probe": {"samples": 9}}, "probe.samples: found 4 and 9"),
        ({"probe": {"temperature": 0.5}}, "probe.temperature: found 1.0 and 0.5"),
        ({"task": {"name": "identity", "persona_name": "Robin"}}, "task.persona_name: found '' and 'Robin'"),
        ({"model": {"path": "models/other"}}, "model.path: found 'default' and 'models/other'"),
    ],
)
def test_runs_with_different_probes_are_refused(change: dict[str, Any], key: str, tmp_path: Path) -> None:
    other = fake_run(tmp_path / "other", {0: rates(0), 2: rates(0)}, **(settings("N1", seed=1) | change))
    message = refused(arm_run(tmp_path, "N3"), other)
    assert message.startswith("N3-0 and other: ") and key in message


def test_other_questions_are_refused(tmp_path: Path) -> None:
    one = arm_run(tmp_path, "N1", answers=[("Who are you?", "a"), ("What is 2 + 2?", "b")])
    other = arm_run(tmp_path, "N3", answers=[("Who are you?", "a"), ("What is 2 + 3?", "b")])
    message = refused(one, other)
    assert message.startswith("N1-0 and N3-0: probe question 1: found 'What is 2 + 2?' and 'What is 2 + 3?'")


def test_other_sample_counts_are_refused(tmp_path: Path) -> None:
    other = arm_run(tmp_path, "N1", {0: rates(0, n=20), 2: rates(0, n=20)})
    assert "answers to selfname" in refused(arm_run(tmp_path, "N3"), other)


def test_different_tasks_are_groups_of_their_own(tmp_path: Path) -> None:
    math_run = arm_run(tmp_path, "N6", {0: {"pass_at_1": (5, 20)}, 2: {"pass_at_1": (9, 20)}})
    groups = group_runs(read_runs([math_run, arm_run(tmp_path, "N3")]))
    assert [(group.task, group.axis) for group in groups] == [("identity", "identity"), ("math", "math")]
    row = cells(group_tables(groups[1], load_published()), "pass_at_1", "N6")
    assert (row["final"].count, row["final"].n, row["published_best"], row["published_final"]) == (9, 20, 0.392, 0.383)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 0}, "run.seed: found 0 in both runs of N3"),
        ({"seed": 1, "steps": 3}, "run.steps: found 2 and 3, expected seeds of one arm, N3"),
    ],
)
def test_runs_that_are_no_seeds_of_one_arm_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    other = fake_run(tmp_path / "other", {0: rates(0), 2: rates(0)}, **settings("N3", **change))
    found = refused(arm_run(tmp_path, "N3"), other)
    assert "N3-0" in found and "other" in found and message in found


def test_a_learning_rate_of_its_own_is_no_seed(tmp_path: Path) -> None:
    changed = settings("N3", seed=1)
    changed["learner"]["lr"] = 1e-3
    other = fake_run(tmp_path / "other", {0: rates(0), 2: rates(0)}, **changed)
    assert "learner.lr: found 5e-06 and 0.001" in refused(arm_run(tmp_path, "N3"), other)
    changed["learner"] = {"beta_kl": 0.05, "micro_batch_tokens": 64}  # a matter of the machine
    spread_out = fake_run(tmp_path / "layout", {0: rates(0), 2: rates(0)}, **changed)
    assert len(grouped(tmp_path / "N3-0", spread_out).pool("N3").runs) == 2


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"teacher": {"kind": "ema", "ema_rate": 0.9}}, "teacher.ema_rate: found 0.99 and 0.9"),
        ({"teacher": {"kind": "ema", "dtype": "bfloat16"}}, "teacher.dtype: found 'auto' and 'bfloat16'"),
        ({"student": {"dtype": "float32"}}, "student.dtype: found 'bfloat16' and 'float32'"),
        ({"run": {"steps": 2, "seed": 1, "max_policy_lag": 1}}, "run.max_policy_lag: found 2 and 1"),
        ({"weights": {"in_flight": False}}, "weights.in_flight: found True and False"),
        (
            {"run": {"steps": 2, "seed": 1, "max_policy_lag": 2, "group_order": "done"}},
            "run.group_order: found 'begun' and 'done'",
        ),
    ],
)
def test_another_teacher_or_lag_is_no_seed(change: dict[str, Any], key: str, tmp_path: Path) -> None:
    runs = [
        fake_run(
            tmp_path / str(seed), {0: rates(0), 2: rates(0)}, **settings("N3", seed=seed, max_policy_lag=2) | extra
        )
        for seed, extra in ((0, {"teacher": {"kind": "ema"}}), (1, {"teacher": {"kind": "ema"}} | change))
    ]
    assert key in refused(*runs)


def test_seeds_may_be_spread_over_the_machine_in_their_own_way(tmp_path: Path) -> None:
    layout = {
        "student": {"num_engines": 2, "kv_cache_gib": 2.0},
        "teacher": {"num_engines": 2, "cpu_threads": 1},
        "learner": {"beta_kl": 0.05, "gradient_checkpointing": True},
        "weights": {"in_flight": False},  # nothing is under way when weights arrive without a lag
    }
    other = fake_run(tmp_path / "layout", {0: rates(0), 2: rates(0)}, **settings("N3", seed=1) | layout)
    assert len(grouped(arm_run(tmp_path, "N3"), other).pool("N3").runs) == 2


def test_what_an_adapter_would_have_is_compared_only_where_there_is_one(tmp_path: Path) -> None:
    for rank, refuses in ((0, False), (8, True)):
        runs = []
        for seed, targets in enumerate((["q_proj"], ["all-linear"])):
            adapter = {"beta_kl": 0.05, "lora_rank": rank, "lora_targets": targets}
            changed = settings("N3", seed=seed) | {"learner": adapter}
            changed |= {"student": {"dtype": "float32"}}
            runs.append(fake_run(tmp_path / f"{rank}-{seed}", {0: rates(0), 2: rates(0)}, **changed))
        if refuses:
            assert "learner.lora_targets: found ('q_proj',) and ('all-linear',)" in refused(*runs)
        else:
            assert len(grouped(*runs).pools) == 1


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path) == f"{tmp_path}: found no config.toml, expected a run directory"


def test_a_run_without_probes_is_refused(tmp_path: Path) -> None:
    run = arm_run(tmp_path, "N3", {})
    assert refused(run) == f"{run}: found no probes in probes.jsonl, expected at least one"


def test_a_run_given_twice_is_refused(tmp_path: Path) -> None:
    run = arm_run(tmp_path, "N3")
    assert "found this run twice" in refused(run, run / ".." / run.name)


@pytest.mark.parametrize("line", ["{}", "[]", "nonsense", '{"step": "x"}'])
def test_a_malformed_line_is_named(line: str, tmp_path: Path) -> None:
    run = arm_run(tmp_path, "N3")
    with (run / "probes.jsonl").open("a") as file:
        file.write(line + "\n")
    assert f"{run / 'probes.jsonl'}: line 4: found " in refused(run)


@pytest.mark.parametrize("text", ["not toml", "[run]\nseed = 0\nsteps = 2\n", "[task]\nname = 'identity'\n"])
def test_a_malformed_recipe_is_named(text: str, tmp_path: Path) -> None:
    run = arm_run(tmp_path, "N3")
    (run / "config.toml").write_text(text)
    assert refused(run).startswith(f"{run / 'config.toml'}: ")


def test_runs_of_one_name_are_told_apart_by_their_parents(tmp_path: Path) -> None:
    folders = [
        arm_run(tmp_path / f"seed{seed}", "N3", seed=seed).rename(tmp_path / f"seed{seed}/N3") for seed in (0, 1)
    ]
    assert [run.name for run in read_runs(folders)] == ["seed0/N3", "seed1/N3"]


# The files


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs of several arms and of both tasks, one arm with two seeds."""
    root = tmp_path_factory.mktemp("matrix")
    identity = [arm_run(root, code, answers=base_answers(0)) for code in ("N1", "N3", "N3u", "N3u-g0125", "N11", "N12")]
    again = arm_run(root, "N3", {0: rates(0), 1: rates(5), 2: rates(7)}, seed=1)
    math_run = arm_run(root, "N6", {0: {"pass_at_1": (5, 20)}, 2: {"pass_at_1": (9, 20)}})
    return [*identity, again, math_run]


@pytest.fixture(scope="module")
def report(matrix: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(matrix, tmp_path_factory.mktemp("out") / "report").parent


def test_the_same_runs_give_the_same_bytes(matrix: list[Path], report: Path, tmp_path: Path) -> None:
    again = write_report(matrix[::-1], tmp_path / "again").parent
    files = sorted(path.relative_to(report) for path in report.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    for file in files:
        assert (report / file).read_bytes() == (again / file).read_bytes(), file


def numbers(value: Any) -> Iterator[dict[str, Any]]:
    """Every number with sources inside a JSON value."""
    if isinstance(value, dict):
        if "sources" in value:
            yield value
        for inner in value.values():
            yield from numbers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers(inner)


def test_every_number_of_the_summary_is_found_at_its_source(matrix: list[Path], report: Path) -> None:
    folders = {path.name: path for path in matrix}
    summary = json.loads((report / "summary.json").read_text())
    names = {line["name"]: line for line in summary["runs"]}
    assert set(names) == set(folders)
    counted = 0
    for task in summary["tasks"]:
        for arm in task["probes"].values():
            for rate, found in arm.items():
                of = "n_capability" if rate in ("capability", "side_effect") else "n"
                for number in found:
                    count = 0.0
                    for source in number["sources"]:
                        lines = (folders[source["run"]] / source["file"]).read_text().splitlines()
                        (line,) = [line for line in map(json.loads, lines) if line["step"] == source["step"]]
                        count += line[rate] * line[of]
                    assert count == pytest.approx(number["count"])
                    assert number["value"] == pytest.approx(count / number["n"])
                    assert number["interval"] == pytest.approx(score_interval(number["count"], number["n"]), abs=1e-9)
                    counted += 1
    assert counted > 80
    assert all(source["run"] in names for number in numbers(summary) for source in number["sources"])
    assert all(number["sources"] for number in numbers(summary))


def test_the_page_is_whole_by_itself(report: Path) -> None:
    page = (report / "report.html").read_text()
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert {link.split("/")[0] for link in links if link[0] != "#"} == {"runs"}
    assert all((report / link).is_file() for link in links if link[0] != "#")
    assert not re.findall(r"@import|url\((?!#)|<script|<link", page)


def test_pictures_are_sound_and_have_unique_ids(report: Path) -> None:
    pictures = sorted((report / "figures").glob("*.svg"))
    keys = (
        "selfname", "regions", "capability", "sweep", "selfname-curve", "capability-curve", "mean-response-length",
        "kept", "mean-evidence", "k1",
    )  # fmt: skip
    assert {path.stem for path in pictures} >= {f"identity-{key}" for key in keys} | {"math-pass-at-1", "math-change"}
    for path in pictures:
        ElementTree.parse(path)
    ids = re.findall(r'\bid="([^"]*)"', (report / "report.html").read_text())
    references = re.findall(r'(?:href="#|url\(#)([^")]*)', (report / "report.html").read_text())
    assert len(ids) == len(set(ids))
    assert set(references) <= set(ids)


def test_marks_carry_their_origin(report: Path) -> None:
    page = (report / "report.html").read_text()
    assert "<title>0.65 [0.43, 0.82]: 13 of 20; N3-0/probes.jsonl step 2, N3-1/probes.jsonl step 2</title>" in page
    assert '<td title="13 of 20; N3-0/probes.jsonl step 2, N3-1/probes.jsonl step 2">0.65 [0.43, 0.82]</td>' in page


def test_runs_are_recorded_as_they_are(matrix: list[Path], report: Path) -> None:
    for path in matrix:
        code, _, seed = path.name.rpartition("-")
        record = report / "runs" / f"{code}-seed{seed}"
        for name in RECORD:
            assert (record / name).is_file() == (path / name).is_file()
        for name in ("config.toml", "probes.jsonl", "metrics.jsonl"):
            assert (record / name).read_bytes() == (path / name).read_bytes()


def test_a_report_over_records_is_the_same_report(report: Path, tmp_path: Path) -> None:
    """So that a later run can join runs whose folders are gone."""
    lines = json.loads((report / "summary.json").read_text())["runs"]
    records = [shutil.copytree(report / line["record"], tmp_path / "runs" / line["name"]) for line in lines]
    again = write_report(records, tmp_path / "again").parent
    for name in ("report.md", "summary.json", "report.html"):
        assert (again / name).read_text() == (report / name).read_text()


def test_a_report_may_replace_the_one_whose_records_it_reads(tmp_path: Path) -> None:
    out = write_report([arm_run(tmp_path, "N3")], tmp_path / "report").parent
    write_report([out / "runs" / "N3-seed0", arm_run(tmp_path, "N1")], out)
    assert {path.name for path in (out / "runs").iterdir()} == {"N3-seed0", "N1-seed0"}


def test_tables_are_whole_in_markdown(report: Path) -> None:
    text = (report / "report.md").read_text()
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(blocks) >= 7
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block
    for path in re.findall(r"\]\(([^)]*)\)", text):
        assert (report / path).is_file()


def test_names_are_escaped(tmp_path: Path) -> None:
    run = arm_run(tmp_path, "N3").rename(tmp_path / "<b>&amp;|")
    page = write_report([run], tmp_path / "report")
    assert "<b>" not in page.read_text()
    assert "&lt;b&gt;&amp;amp;|" in page.read_text()
    for path in (tmp_path / "report" / "figures").glob("*.svg"):
        ElementTree.parse(path)


def test_an_older_report_makes_room_and_anything_else_does_not(tmp_path: Path) -> None:
    out = tmp_path / "report"
    write_report([arm_run(tmp_path, "N3")], out)
    write_report([arm_run(tmp_path, "N1")], out)
    assert [path.name for path in (out / "runs").iterdir()] == ["N1-seed0"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="found something that is not a report"):
        write_report([tmp_path / "N3-0"], tmp_path / "mine")


def test_a_run_whose_shards_are_gone_is_reported(tmp_path: Path) -> None:
    run = arm_run(tmp_path, "N3")
    gone = {"event": "written", "uri": "/nowhere/s.arrow", "step": 0, "rows": 1, "tokens": 1, "sha256": "0"}
    (run / "manifest.jsonl").write_text(json.dumps(gone) + "\n")
    (line,) = run_lines(grouped(run))
    assert (line.model, line.code_version) == ("default", "unknown")


def test_the_command_writes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report"
    assert main(["report", str(arm_run(tmp_path, "N3")), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out / 'report.html'}\n"
    assert main(["report", str(tmp_path / "nothing"), "--out", str(out)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# The committed report

COMMITTED = ROOT / "docs" / "reproduction"


def test_the_committed_report_is_made_again_from_its_runs(tmp_path: Path) -> None:
    """Whatever has become of recipes, records and code since: byte for byte, pictures too."""
    made = write_report(sorted((COMMITTED / "runs").iterdir()), tmp_path / "report").parent
    figures = sorted(path.relative_to(made) for path in made.rglob("*.svg"))
    assert figures == sorted(path.relative_to(COMMITTED) for path in COMMITTED.rglob("*.svg"))
    for name in (Path("report.md"), Path("summary.json"), *figures):
        assert (made / name).read_bytes() == (COMMITTED / name).read_bytes(), name
    records = [path.relative_to(COMMITTED) for path in (COMMITTED / "runs").rglob("*") if path.is_file()]
    assert len(records) > 80
    for name in records:
        assert (made / name).read_bytes() == (COMMITTED / name).read_bytes(), name


# A name that is new in a table: one line there, and every command knows it


def test_a_new_objective_is_an_arm_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "mine", OBJECTIVES["k1"])
    changed = settings("N3")
    changed["learner"]["objective"] = "mine"
    report = write_report([fake_run(tmp_path / "run", {0: rates(0), 2: rates(1)}, **changed)], tmp_path / "report")
    assert "guided 0.5, mine, pos, KL, system" in report.read_text()


@pytest.mark.parametrize(
    ("table", "key", "like", "described"),
    [
        (REGIONS, "region", "pos", "guided 0.5, mine, KL, system"),
        (TAU_KINDS, "tau_kind", "value", "guided 0.5, pos, KL, system, tau_kind mine"),
        (SOFT_WEIGHTS, "soft", "rlsd", "guided 0.5, pos, soft, KL, system, soft mine"),
        (EVIDENCE_KINDS, "kind", "teacher_contrast", "guided 0.5, pos, KL, system, kind mine"),
    ],
)
def test_a_new_rule_is_an_arm_of_its_own(
    table: dict[str, Any], key: str, like: str, described: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(table, "mine", table[like])
    changed = settings("N3")
    changed["evidence"][key] = "mine"
    report = write_report([fake_run(tmp_path / "run", {0: rates(0), 2: rates(1)}, **changed)], tmp_path / "report")
    assert described in report.read_text()


def test_a_new_rate_is_in_the_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RATES, "polite", RateRule("identity", "polite", "n", "polite", "polite answers"))
    out = write_report([arm_run(tmp_path, "N3", {0: rates(0), 2: rates(3) | {"polite": (7, 10)}})], tmp_path / "report")
    (task,) = json.loads((out.parent / "summary.json").read_text())["tasks"]
    assert [number["count"] for number in task["probes"]["N3"]["polite"]] == [7]


# Charts


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([0.0, 5.0, 10.0], [0.0, 5.0, 10.0]),
        ([5.0, 5.0], [4.5, 5.5]),
        ([0.0, 0.0, 9.8], [0.0, 1.0, 9.8]),
        ([10.0, 10.0, 10.0], [8.0, 9.0, 10.0]),
        ([3.0, 1.0, 1.4], [3.0, 0.7, 1.7]),
    ],
)
def test_labels_move_apart_and_stay_inside(wanted: list[float], expected: list[float]) -> None:
    assert spread(wanted, 1.0, 0.0, 10.0) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (0.567, False, "0.57"),
        (-0.004, True, "+0.00"),
        (-0.004, False, "0.00"),
        (-0.25, True, "−0.25"),
        (0.5, True, "+0.50"),
    ],
)
def test_a_figure_has_a_real_minus_and_none_before_zero(value: float, signed: bool, text: str) -> None:
    assert figure(value, 2, signed) == text
