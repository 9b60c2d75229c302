"""Advice: each rule speaks where its figure is beyond the bound, names it, and is silent just inside."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.config import Recipe, RunConfig, WeightsConfig
from cluster.dashboard.charts import charts_of
from cluster.fleet.placement import Share, make_plan
from cluster.observe.advice import FEW, KEEPS_MORE, Advice, advice, sentence, stage_shares
from cluster.observe.seen import Seen, read_seen
from cluster.observe.waits import Window
from cluster.run.memory import plan_in_use
from cluster.run.planned import MemoryPlan
from cluster.run.record import Gap, ProbeRecord, append_plan
from evidence.diagnostics import TokenStats
from evidence.rule import REGIONS, EvidenceConfig
from evidence.telemetry import Sample
from rollout.probe import Rate
from rollout.stages import StageTime
from tests.observed import observed_run
from tests.unit.test_record import a_step

LAG = Recipe(run=RunConfig(max_policy_lag=1))


def stats(tokens: int, active: int, rows: int = 4) -> dict[str, TokenStats]:
    return {"all": replace(TokenStats(), rows=rows, tokens=tokens, active=active)}


def steps_of(count: int = 12, **changes: Any) -> list[Any]:
    usual = {
        "stats": stats(100, 50), "canary": 0.01, "rows": 10, "truncated": 0, "wall_s": 10.0,
        "stages": {"sample": StageTime(2.0, 9), "learn": StageTime(7.5, 9)},
    }  # fmt: skip
    return [a_step(step, **usual | changes) for step in range(count)]


def said(seen: Seen) -> list[str]:
    return [str(one) for one in advice(seen)][1:]  # the first is the bottleneck's


def test_the_sentence_and_the_first_advice_name_the_bottleneck() -> None:
    seen = Seen("run", LAG, steps_of(30, metrics={}))
    assert stage_shares(seen.steps) == {"learn": 0.75, "sample": 0.2}
    assert sentence(seen) == "The learner is the bottleneck: learn is 75% of the last 20 steps (sample 20%)."
    first = str(advice(seen)[0])
    assert first.startswith("learn takes 75% of the wall time. ") and "learner.num_ranks" in first
    assert "max_policy_lag" not in first and "Most of it" not in first
    timed = steps_of(19, metrics={"forward_s": 1.0, "backward_s": 3.0, "lr": 3e-5})
    timed += steps_of(1, metrics={"forward_s": 9.0, "backward_s": 3.0})  # the last step is another
    assert str(advice(Seen("run", LAG, timed))[0]).endswith("Most of it is backward: 68%.")
    balanced = {"sample": StageTime(4.0, 9), "score": StageTime(3.0, 9), "learn": StageTime(3.0, 9)}
    assert "run.max_policy_lag = 1" in str(advice(Seen("run", Recipe(), steps_of(stages=balanced)))[0])


def test_the_bottlenecks_keys_are_those_of_the_engines_that_do_it() -> None:
    def of(recipe: Recipe, stage: str) -> tuple[str, str]:
        seen = Seen("run", recipe, steps_of(stages={stage: StageTime(9.0, 9)}))
        return sentence(seen).partition(" the bottleneck")[0], str(advice(seen)[0])

    who, act = of(LAG, "score")
    assert who == "The teacher's engines are" and "teacher.num_engines" in act and "student" not in act
    beside_an_adapter = replace(LAG, learner=replace(LAG.learner, lora_rank=8))
    who, act = of(beside_an_adapter, "score")
    assert who == "The student's engines are" and "student.num_engines" in act and "teacher" not in act
    server = replace(LAG, teacher=replace(LAG.teacher, url="http://127.0.0.1:8000/v1"))
    who, act = of(server, "score")
    assert who == "The teacher's server is" and "teacher.url" in act and "num_engines" not in act
    who, act = of(replace(LAG, rollout=replace(LAG.rollout, sampler="teacher")), "sample")
    assert who == "The teacher's engines are" and "teacher.num_engines" in act and "student" not in act


def keys_in(recipe: Recipe, colocated: bool) -> str:
    """All that any rule says where a stage, its queue and its waiting service are at their worst."""
    waiting = {"student": 9, "teacher": 9}
    samples = [Sample(2.0 * place, groups={"done": 0}, waiting=waiting) for place in range(FEW)]
    waits = windows_of({("learner", "rollouts"): 1.0})
    found = []
    for stage in ("sample", "score", "learn"):
        steps = steps_of(stages={stage: StageTime(6.0, 9), "push": StageTime(0.1, 0)})
        seen = Seen("run", recipe, steps, samples=samples, waits=waits, colocated=colocated)
        found += [str(one) for one in advice(seen)]
    return " ".join(found)


def test_more_engines_or_ranks_are_advised_only_where_there_is_room_for_them() -> None:
    """On one node's cores they share what there is, and one GPU takes no more of them."""
    for recipe in (LAG, Recipe()):
        alone, shared = keys_in(recipe, False), keys_in(recipe, True)
        assert all(key in alone for key in ("student.num_engines", "teacher.num_engines", "learner.num_ranks"))
        assert "num_engines" not in shared and "num_ranks" not in shared and "max_policy_lag" not in shared
        assert "student.max_num_seqs" in shared and "learner.micro_batch_tokens" in shared


@pytest.mark.parametrize("colocated", [False, True])
@pytest.mark.parametrize("stage", ["sample", "score", "learn", "push", "verify"])
@pytest.mark.parametrize("teacher", [{}, {"url": "http://127.0.0.1:8000/v1"}], ids=["engines", "server"])
def test_an_advice_says_one_thing_after_another(teacher: dict[str, str], stage: str, colocated: bool) -> None:
    """With a second colon nobody knows what the first one belongs to."""
    recipe = replace(LAG, teacher=replace(LAG.teacher, **teacher))
    waits = windows_of({("learner", "rollouts"): 1.0} | ({("rollout", "verify"): 1.9} if stage == "verify" else {}))
    steps = steps_of(stages={"learn": StageTime(4.0, 9), stage: StageTime(9.0, 9)})
    seen = Seen("run", recipe, steps, waits=waits, colocated=colocated)
    found = [str(one) for one in advice(replace(seen, samples=[Sample(1.0, waiting={"teacher": 9})] * FEW))]
    assert len(found) > 1 and found[0].startswith(f"{stage} takes ")
    assert [one for one in found if one.count(": ") > 1] == []


@pytest.mark.parametrize("colocated", [False, True])
def test_what_shares_a_machine_is_known_of_a_runs_folder_and_of_its_page(tmp_path: Path, colocated: bool) -> None:
    run = observed_run(tmp_path / "run")
    append_plan(run / "memory.jsonl", MemoryPlan(1.0, "cuda", 512, {}, False, colocated=not colocated))
    append_plan(run / "memory.jsonl", MemoryPlan(2.0, "cuda", 512, {}, False, colocated=colocated))  # of a resume
    seen = read_seen(run)
    assert seen.colocated == colocated
    for text in (str(advice(seen)[0]), charts_of(seen).shown({})):
        assert ("learner.num_ranks" in text) != colocated and "learner.micro_batch_tokens" in text


@pytest.mark.parametrize(("gpus", "colocated"), [(0.0, True), (1.0, True), (3.0, False)])
def test_a_start_writes_down_what_shares_a_machine(gpus: float, colocated: bool) -> None:
    plan = make_plan(Recipe(), [Share(8.0, gpus)])
    assert plan_in_use(Recipe(), plan, []).colocated == colocated


def test_a_teachers_server_has_no_engines_of_ours() -> None:
    server = replace(LAG, teacher=replace(LAG.teacher, url="http://127.0.0.1:8000/v1"))
    for colocated in (False, True):
        said_of = keys_in(server, colocated)
        assert "raise teacher.max_num_seqs" in said_of and "teacher.num_engines" not in said_of


def test_time_beside_the_steps_is_counted_and_the_keys_for_it_are_named() -> None:
    def of(pace_s: float) -> tuple[str, list[str]]:
        seen = Seen("run", LAG, steps_of(30, metrics={}, pace_s=pace_s))
        return sentence(seen), [str(one) for one in advice(seen)]

    learner = "The learner is the bottleneck: learn is 75% of the last 20 steps (sample 20%)."
    assert of(10.5)[0] == learner and of(8.0)[0] == learner
    assert of(12.5)[0] == f"{learner} Probes and checkpoints take 20% of the run's time."
    words, told = of(40.0)
    assert words == "Probes and checkpoints are the bottleneck: they take 75% of the run's time. " + (
        "Of the last 20 steps learn is 75% (sample 20%)."
    )
    assert len(told) == 2 and "run.probe_every (8)" in told[1] and "run.checkpoint_every" not in told[1]
    assert len(of(12.5)[1]) == 1


def test_nothing_is_said_before_the_first_step_or_of_a_healthy_run() -> None:
    assert advice(Seen("run", LAG)) == [] and sentence(Seen("run", LAG)) == "No step is done yet."
    assert said(Seen("run", LAG, steps_of())) == []
    older = steps_of(wall_s=None, stages={}, stats={}, rows=None, truncated=None, canary=None)
    assert advice(Seen("run", LAG, older)) == []


@pytest.mark.parametrize(
    ("at_bound", "beyond", "words"),
    [
        ({"truncated": 2}, {"truncated": 3}, "30% of the responses are cut at the limit. Raise rollout"),
        ({"stats": stats(100, 2)}, {"stats": stats(100, 1)}, "1.0% of the tokens are kept: there is almost nothing"),
        ({"stats": stats(100, 98)}, {"stats": stats(100, 99)}, "99.0% of the tokens are kept: the mask selects"),
        ({"canary": 0.08}, {"canary": 0.09}, "the canary is at 0.090 of 0.1 nats (90%), beyond which the run stops."),
        ({"canary": 0.03, "canary_bound": 0.04}, {"canary": 0.035, "canary_bound": 0.04}, "the canary is at 0.035 of "),
    ],
    ids=["truncation", "kept low", "kept high", "canary", "its bound"],
)  # fmt: skip
def test_a_rule_speaks_beyond_its_bound(at_bound: dict[str, Any], beyond: dict[str, Any], words: str) -> None:
    assert said(Seen("run", LAG, steps_of(**at_bound))) == []
    (found,) = said(Seen("run", LAG, steps_of(**beyond)))
    assert found.startswith(words)


@pytest.mark.parametrize(
    ("rule", "few", "many"),
    [
        ({"region": "pos"}, "Lower evidence.tau, which is 0", "Raise evidence.tau, which is 0"),
        ({"region": "pos", "tau": 0.8, "tau_kind": "quantile"}, "Lower evidence.tau, ", "Raise evidence.tau, "),
        ({"region": "neg", "tau": 0.5}, "Lower evidence.tau, which is 0.5", "Raise evidence.tau, which is 0.5"),
        ({"region": "near_zero"}, "Raise evidence.near_zero, which is 0.1", "Lower evidence.near_zero, which is 0.1"),
        ({"region": "pos", "tau": float("inf")}, "Lower evidence.tau, which is inf", ""),
        ({"region": "pos", "tau": float("-inf")}, "Lower evidence.tau, which is -inf", ""),
        ({"region": "near_zero", "near_zero": float("inf")}, "Raise evidence.near_zero, which is inf", ""),
        ({"region": "all"}, "", ""),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_the_advice_on_the_mask_names_the_key_of_its_region_and_the_way(
    rule: dict[str, Any], few: str, many: str
) -> None:
    """A threshold that keeps every token is no fault."""
    recipe = replace(LAG, evidence=EvidenceConfig(**rule))
    for active, words in ((1, few), (99, many)):
        found = said(Seen("run", recipe, steps_of(stats=stats(100, active))))
        assert len(found) == bool(words) and all(words in one for one in found)
        assert all(f"evidence.region = {rule['region']!r}" in one for one in found)


def test_every_region_has_its_key() -> None:
    assert KEEPS_MORE.keys() == REGIONS.keys() - {"all"}


def test_a_canary_is_near_its_own_bound_only() -> None:
    wide = replace(LAG, weights=WeightsConfig(canary_tolerance=1.0))
    assert said(Seen("run", wide, steps_of(canary=0.09))) == []


def test_float32_is_advised_where_it_is_not_used() -> None:
    def of(student: str, learner: str) -> str:
        recipe = replace(LAG, student=replace(LAG.student, dtype=student), learner=replace(LAG.learner, dtype=learner))
        (found,) = said(Seen("run", recipe, steps_of(canary=0.09)))
        return found.partition("stops. ")[2]

    assert of("bfloat16", "bfloat16").startswith("student.dtype = learner.dtype = 'float32' has")
    assert of("float32", "bfloat16").startswith("learner.dtype = 'float32' has")
    assert of("float32", "float32").startswith("Both compute in float32")


def test_lengths_that_collapse_are_said() -> None:
    lengths = [100] * 6 + [60] * 6
    assert said(Seen("run", LAG, [a for n in lengths for a in steps_of(1, stats=stats(4 * n, 2 * n))])) == []
    lengths = [100] * 6 + [40] * 6
    (found,) = said(Seen("run", LAG, [a for n in lengths for a in steps_of(1, stats=stats(4 * n, 2 * n))]))
    assert found.startswith("responses fell from 100 to 40 tokens.")


def probes(*counts: int) -> list[ProbeRecord]:
    return [
        ProbeRecord(8 * place, None, "identity", {"selfname": Rate(k, 96)}, 12, 8) for place, k in enumerate(counts)
    ]


def test_a_probe_that_falls_from_its_best_beyond_chance_is_said() -> None:
    assert said(Seen("run", LAG, steps_of(), probes(10, 80, 70))) == []
    (found,) = said(Seen("run", LAG, steps_of(), probes(10, 80, 40)))
    assert found.startswith("selfname fell from 0.83 at step 8 to 0.42 at step 16, beyond their 95% intervals.")


def test_a_capability_that_falls_while_the_main_rate_rises_is_said() -> None:
    def both(*capable: int) -> list[ProbeRecord]:
        found = probes(10, 50, 80)
        return [
            replace(one, rates=one.rates | {"capability": Rate(k, 96)}) for one, k in zip(found, capable, strict=True)
        ]

    assert said(Seen("run", LAG, steps_of(), both(90, 92, 88))) == []
    (found,) = said(Seen("run", LAG, steps_of(), both(90, 60, 10)))
    assert found.startswith("capability fell from 0.94 at step 0 to 0.10 at step 16, beyond their 95% intervals.")


def gap(teacher: int, base: int = 2) -> Gap:
    return Gap(1795834800.0, "identity", {"selfname": Rate(teacher, 96)}, {"selfname": Rate(base, 96)})


def test_the_teachers_own_rate_is_what_there_is_to_learn() -> None:
    def of(known: Gap | None, *counts: int) -> list[str]:
        return said(Seen("run", LAG, steps_of(), probes(*counts), gap=known))

    assert of(None, 2, 95) == [] and of(gap(90), 2, 89) == [] and of(gap(48), 2, 47) == []
    (weak,) = of(gap(47), 2, 9)
    words = "the teacher with the context shows selfname in 0.49 of 96 answers, the base in 0.02: that is all there is"
    assert weak.startswith(words) and "`edge-opd gap` shows each" in weak
    (nothing,) = of(gap(2), 2, 9)
    assert nothing.startswith("the teacher with the context shows selfname in 0.02 of 96 answers, the base in 0.02 wit")
    assert "nothing to learn. Try another rollout.context_position" in nothing
    (reached,) = of(gap(72), 2, 83)
    assert reached.startswith("selfname is 0.86 at step 8, and the teacher with the context shows selfname in 0.75 of")
    assert of(gap(72), 2, 72) == [] and of(gap(72), 2, 79) == []  # within the probe's own interval: it may have more
    assert of(gap(72), 83) == []  # the base's probe, before anything is learned
    assert of(replace(gap(72), questions="training"), 2, 83) == []  # of other questions than the probe's
    (weak,) = of(replace(gap(40), questions="training"), 2, 83)
    assert weak.startswith(
        "the teacher with the context shows selfname in 0.42 of 96 answers to training questions, the"
    )
    beyond = replace(LAG, learner=replace(LAG.learner, evidence_scale=1.25))
    assert said(Seen("run", beyond, steps_of(), probes(2, 83), gap=gap(72))) == []  # further than the teacher
    other = ProbeRecord(8, None, "identity", {"capability": Rate(96, 96)}, 12, 8)
    assert said(Seen("run", LAG, steps_of(), [*probes(2), other], gap=gap(72))) == []


def test_queues_that_are_always_full_are_said() -> None:
    def of(count: int = FEW, **changes: Any) -> list[str]:
        sample = Sample(1.0, groups={"done": 1}, waiting={"student": 0, "teacher": 0})
        return said(Seen("run", LAG, steps_of(), samples=[replace(sample, **changes)] * count))

    waiting = {"student": 0, "teacher": 3}
    assert of() == [] and of(FEW - 1, waiting=waiting) == []
    assert "teacher.max_num_seqs" in of(waiting=waiting)[0]
    assert of(waiting=waiting, fault="late") == []


def windows_of(seconds: dict[tuple[str, str], float], count: int = FEW) -> list[Window]:
    """Each of 2 s."""
    return [Window(2.0 * place, 2.0 * place + 2.0, seconds) for place in range(count)]


def bound_by(stage: str, other: str) -> list[Any]:
    """At lag 1: one stage takes the steps' time, and the learner half of it."""
    return steps_of(stages={stage: StageTime(9.5, 9), other: StageTime(3.0, 9), "learn": StageTime(5.0, 9)})


def test_the_service_that_waits_for_the_other_is_said() -> None:
    def of(recipe: Recipe, steps: list[Any], seconds: dict[tuple[str, str], float], count: int = FEW) -> list[str]:
        return said(Seen("run", recipe, steps, waits=windows_of(seconds, count)))

    starved, bound = {("learner", "rollouts"): 1.0, ("rollout", "lag"): 0.1}, bound_by("score", "sample")
    words = "the learner waited for rollouts in 50% of the time. Of sample and score it waits for"
    assert of(LAG, bound, starved) == [f"{words} score: add teacher engines (teacher.num_engines)."]
    of_sampling = bound_by("sample", "score")
    assert of(LAG, of_sampling, starved) == [f"{words} sample: add student engines (student.num_engines)."]
    server = replace(LAG, teacher=replace(LAG.teacher, url="http://127.0.0.1:8000/v1"))
    assert of(server, bound, starved) == [f"{words} score: the server at teacher.url has to be faster."]
    assert of(LAG, bound, {("learner", "rollouts"): 0.6}) == []
    assert of(LAG, bound, starved, FEW - 1) == [] and of(Recipe(), bound, starved) == []
    (idle,) = of(LAG, steps_of(), {("rollout", "lag"): 0.8})
    assert idle.startswith(
        "finished groups and idle engines waited for the learner in 40% of the time. More of them wo"
    )
    assert (
        of(LAG, steps_of(), {("rollout", "lag"): 0.6}) == []
        and of(Recipe(), steps_of(), {("rollout", "lag"): 0.8}) == []
    )


def test_a_learner_that_waits_for_rollouts_is_not_the_bottleneck() -> None:
    stages = {"sample": StageTime(4.5, 9), "score": StageTime(3.0, 9), "learn": StageTime(5.0, 9)}
    seen = Seen("run", LAG, steps_of(stages=stages), waits=windows_of({("learner", "rollouts"): 0.9}))
    of = "of the last 12 steps"
    assert sentence(seen) == f"The student's engines are the bottleneck: sample is 45% {of} (score 30%, learn 50%)."
    assert str(advice(seen)[0]).startswith("sample takes 45% of the wall time. For shorter steps, raise ")
    learner = f"The learner is the bottleneck: learn is 50% {of} (sample 45%, score 30%)."
    assert sentence(replace(seen, recipe=Recipe())) == learner  # by turns, each waits for the other
    assert sentence(replace(seen, waits=windows_of({("learner", "rollouts"): 0.6}))) == learner
    assert sentence(replace(seen, waits=seen.waits[1:])) == learner


def test_services_that_take_turns_are_told_one_thing() -> None:
    """Not more engines and fewer of them."""
    waits = windows_of({("learner", "rollouts"): 0.7, ("rollout", "lag"): 0.8})
    (found,) = said(Seen("run", LAG, steps_of(), waits=waits))
    assert found == (
        "the learner waited for rollouts in 35% of the time, and finished groups and idle engines waited for the "
        "learner in 40% of the time. They take turns: raise run.max_policy_lag (1)."
    )


def test_a_verifier_that_all_wait_for_is_the_bottleneck() -> None:
    stages = {"sample": StageTime(3.0, 9), "score": StageTime(2.0, 9), "learn": StageTime(4.0, 9)}
    waits = windows_of({("learner", "rollouts"): 1.0, ("rollout", "verify"): 0.9})
    seen = Seen("run", LAG, steps_of(stages=stages), waits=waits)
    of = "of the last 12 steps"
    assert sentence(seen) == f"The verifier is the bottleneck: verify is 45% {of} (learn 40%, sample 30%, score 20%)."
    first, waiting = map(str, advice(seen))
    assert first.startswith("verify takes 45% of the wall time. For shorter steps, give the rollout service more")
    assert "engines" not in waiting
    assert waiting.startswith("the learner waited for rollouts in 50% of the time. It waits for the verifier: give")
    assert "verify" not in sentence(replace(seen, waits=windows_of({("rollout", "verify"): 0.19})))


def test_a_run_whose_teacher_is_the_bottleneck_is_told_nothing_of_the_student() -> None:
    samples = [Sample(2.0 * place, groups={"done": 0}, waiting={"student": 0, "teacher": 9}) for place in range(FEW)]
    waits = windows_of({("learner", "rollouts"): 1.0})
    found = list(map(str, advice(Seen("run", LAG, bound_by("score", "sample"), samples=samples, waits=waits))))
    assert len(found) == 3 and not any("student" in one for one in found)


def test_a_runs_folder_has_what_the_services_waited_for(tmp_path: Path) -> None:
    """A step of 10 s: the engines work until 5.0 and the learner from 2.0; what covers neither is the push."""
    seen = read_seen(observed_run(tmp_path / "run"))
    assert len(seen.waits) == len(seen.samples) - 1
    (found,) = said(replace(seen, gap=None, probes=[]))
    assert found.startswith("finished groups and idle engines waited for the learner in 40% of the time.")


def test_advice_is_one_sentence_with_its_figure_and_one_with_what_to_do() -> None:
    assert str(Advice("a figure", "Do it.")) == "a figure. Do it."
