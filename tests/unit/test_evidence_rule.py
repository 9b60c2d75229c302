"""The rule against references written as plain loops."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evidence.kinds import EVIDENCE_KINDS
from evidence.records import EvidenceRecord, RolloutRequest, Sample, ScoredSample
from evidence.rule import REGIONS, SOFT_WEIGHTS, TAU_KINDS, EvidenceConfig, judge, judge_all, remask, reweigh
from evidence.streams import are_finite, log_probs, not_finite
from tests.fakes import scored_step

logprobs = st.floats(min_value=-60, max_value=0, width=32)
nats = st.floats(min_value=-200, max_value=200, width=32)
pairs = st.lists(st.tuples(logprobs, logprobs), min_size=1, max_size=30)
relaxed = settings(max_examples=60)


def scored_sample(
    teacher_context: list[float], teacher: list[float], sampler: list[float] | None = None, response: int | None = None
) -> ScoredSample:
    length = len(teacher) if response is None else response
    request = RolloutRequest(
        rollout_id="step3/row7",
        prompt_id="p",
        group_id="g",
        guided=True,
        context_position="system",
        prompt_ids=np.array([1, 2], np.int32),
        context_prompt_ids=np.array([9, 1, 2], np.int32),
    )
    sample = Sample(
        request=request,
        response_ids=np.arange(length, dtype=np.int32),
        sampler_logprobs=np.array(teacher if sampler is None else sampler, np.float32),
        finish_reason="stop",
        policy_version_min=3,
        policy_version_max=3,
    )
    return ScoredSample(
        sample=sample,
        teacher_context_logprobs=np.array(teacher_context, np.float32),
        teacher_logprobs=np.array(teacher, np.float32),
        teacher_version=0,
    )


def reference_kept(e: float, config: EvidenceConfig) -> bool:
    tau, near_zero = float(np.float32(config.tau)), float(np.float32(config.near_zero))
    return {"pos": e > tau, "neg": e < -tau, "near_zero": -near_zero <= e <= near_zero, "all": True}[config.region]


def reference_weight(e: float, config: EvidenceConfig) -> float:
    if config.soft == "none":
        return 1.0
    return min(max(math.exp(e), 1 - config.soft_eps), 1 + config.soft_eps)


def assert_matches_loops(record: EvidenceRecord, config: EvidenceConfig) -> None:
    scored = record.scored
    for t in range(len(scored.teacher_logprobs)):
        e = np.float32(scored.teacher_context_logprobs[t]) - np.float32(scored.teacher_logprobs[t])
        assert record.evidence[t] == e
        assert record.mask[t] == reference_kept(float(e), config)
        assert record.weight[t] == pytest.approx(reference_weight(float(e), config), rel=1e-6)


@relaxed
@given(
    pairs,
    st.sampled_from(sorted(REGIONS)),
    st.sampled_from(["none", "rlsd"]),
    st.floats(-3, 3),
    st.floats(0, 3),
    st.floats(0.01, 0.99),
)
def test_judge_equals_the_loops(
    tokens: list[tuple[float, float]], region: str, soft: str, tau: float, near_zero: float, eps: float
) -> None:
    config = EvidenceConfig(region=region, soft=soft, tau=tau, near_zero=near_zero, soft_eps=eps)
    record = judge(scored_sample([c for c, _ in tokens], [p for _, p in tokens]), config)
    assert record.evidence.dtype == np.float32
    assert record.weight.dtype == np.float32
    assert record.mask.dtype == np.bool_
    assert record.evidence.shape == record.weight.shape == record.mask.shape == (len(tokens),)
    assert record.reward is None
    assert_matches_loops(record, config)


def test_every_table_entry_is_covered_by_a_reference() -> None:
    assert set(EVIDENCE_KINDS) == {"teacher_contrast", "teacher_student", "contrastive"}
    assert set(REGIONS) == {"pos", "neg", "near_zero", "all"}
    assert set(TAU_KINDS) == {"value", "quantile"}
    assert set(SOFT_WEIGHTS) == {"none", "rlsd", "rlsd_verifier"}


def test_first_and_last_token_keep_their_own_evidence() -> None:
    record = judge(scored_sample([-1.0, -5.0, -5.0, -2.0], [-1.5, -5.0, -4.0, -2.25]), EvidenceConfig())
    assert record.evidence.tolist() == [0.5, 0.0, -1.0, 0.25]
    assert record.mask.tolist() == [True, False, False, True]


@pytest.mark.parametrize(("teacher_context", "kept"), [(-0.5, True), (-1.0, False), (-1.5, False)])
def test_one_token_response(teacher_context: float, kept: bool) -> None:
    record = judge(scored_sample([teacher_context], [-1.0]), EvidenceConfig())
    assert record.mask.tolist() == [kept]
    assert record.weight.tolist() == [1.0]


@relaxed
@given(st.lists(logprobs, min_size=1, max_size=30))
def test_empty_context_leaves_no_evidence(teacher: list[float]) -> None:
    record = judge(scored_sample(teacher, teacher), EvidenceConfig(region="pos", soft="rlsd"))
    assert record.evidence.tolist() == [0.0] * len(teacher)
    assert not record.mask.any()
    assert record.weight.tolist() == [1.0] * len(teacher)


@relaxed
@given(pairs)
def test_infinite_tau(tokens: list[tuple[float, float]]) -> None:
    evidence = judge(scored_sample([c for c, _ in tokens], [p for _, p in tokens]), EvidenceConfig()).evidence
    for region in ("pos", "neg"):
        assert remask(evidence, EvidenceConfig(region=region, tau=-math.inf)).all()
        assert not remask(evidence, EvidenceConfig(region=region, tau=math.inf)).any()


@relaxed
@given(st.lists(nats, min_size=1, max_size=30))
def test_pos_and_neg_split_everything_but_zero(values: list[float]) -> None:
    evidence = np.array(values, np.float32)
    pos, neg = remask(evidence, EvidenceConfig(region="pos")), remask(evidence, EvidenceConfig(region="neg"))
    assert not (pos & neg).any()
    assert ((pos | neg) == (evidence != 0)).all()


@relaxed
@given(pairs, st.floats(min_value=-1, max_value=-1e-6))
def test_a_threshold_just_below_zero_keeps_rows_without_a_context_whole(
    tokens: list[tuple[float, float]], tau: float
) -> None:
    """And of the other rows, beyond what 0 keeps, only tokens with less evidence against them than that."""
    config = EvidenceConfig(region="pos", tau=tau)
    plain = [without for _, without in tokens]
    assert judge(scored_sample(plain, plain), config).mask.all()
    record = judge(scored_sample([with_r for with_r, _ in tokens], plain), config)
    more = record.mask & ~remask(record.evidence, EvidenceConfig(region="pos"))
    assert (more == ((record.evidence > np.float32(tau)) & (record.evidence <= 0))).all()


def test_region_edges() -> None:
    evidence = np.array([0.1, -0.1, 0.5, -0.5, 0.0], np.float32)
    above = np.nextafter(np.float32(0.1), np.float32(1))
    assert remask(evidence, EvidenceConfig(region="near_zero")).tolist() == [True, True, False, False, True]
    assert not remask(np.array([above, -above]), EvidenceConfig(region="near_zero")).any()
    assert not remask(evidence, EvidenceConfig(region="pos", tau=0.5)).any()
    assert not remask(evidence, EvidenceConfig(region="neg", tau=0.5)).any()


@relaxed
@given(st.lists(nats, min_size=1, max_size=30), st.floats(0.01, 0.99))
def test_rlsd_weight_is_clipped_without_overflow(values: list[float], eps: float) -> None:
    config = EvidenceConfig(soft="rlsd", soft_eps=eps)
    with np.errstate(over="raise"):
        weight = reweigh(np.array(values, np.float32), np.full(len(values), np.nan), config, step=0)
    for e, w in zip(values, weight, strict=True):
        assert w == pytest.approx(reference_weight(e, config), rel=1e-6)


@pytest.mark.parametrize("name", ["sampler", "teacher_context", "teacher"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 2])
def test_a_log_prob_that_is_not_finite_is_refused(name: str, bad: float, position: int) -> None:
    streams = {key: [-1.0, -2.0, -3.0] for key in ("sampler", "teacher_context", "teacher")}
    streams[name][position] = bad
    with pytest.raises(ValueError, match=rf"^rollout step3/row7: {name}_logprobs: found .* at token {position}, "):
        judge(scored_sample(**streams), EvidenceConfig())


@pytest.mark.parametrize("name", log_probs(scored_step([1])[0]))
def test_of_a_step_the_rollout_stream_and_token_are_named_that_are_not_finite(name: str) -> None:
    """Of a step with every stream, all finite but for one number of the last rollout."""
    scored = scored_step([3, 1, 4])
    assert are_finite(scored) and not any(map(not_finite, scored))
    log_probs(scored[-1])[name][3] = math.nan
    assert not are_finite(scored) and [not_finite(one) for one in scored[:2]] == ["", ""]
    said = rf"^rollout r2: {name}: found nan at token 3, expected a finite log-prob$"
    for kind in EVIDENCE_KINDS:
        with pytest.raises(ValueError, match=said):
            judge_all(scored, [None] * 3, EvidenceConfig(kind=kind), step=0)


@pytest.mark.parametrize("name", ["sampler", "teacher_context", "teacher"])
@pytest.mark.parametrize("length", [1, 2, 4])
def test_a_stream_of_another_length_is_refused(name: str, length: int) -> None:
    streams = {key: [-1.0, -2.0, -3.0] for key in ("sampler", "teacher_context", "teacher")}
    streams[name] = [-1.0] * length
    with pytest.raises(ValueError, match=rf"^rollout step3/row7: {name}_logprobs: found shape \({length},\), expected"):
        judge(scored_sample(**streams, response=3), EvidenceConfig())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"region": "x"}, r"^evidence\.region: found 'x', expected one of all, near_zero, neg, pos$"),
        (
            {"kind": "student"},
            r"^evidence\.kind: found 'student', expected one of contrastive, teacher_contrast, teacher_student$",
        ),
        ({"soft": ""}, r"^evidence\.soft: found '', expected one of none, rlsd, rlsd_verifier$"),
        ({"tau_kind": "rank"}, r"^evidence\.tau_kind: found 'rank', expected one of quantile, value$"),
        (
            {"tau_kind": "quantile", "tau": 1.5},
            r"^evidence\.tau: found 1\.5, expected 0 to 1 where evidence\.tau_kind is 'quantile'$",
        ),
        ({"tau_kind": "quantile", "tau": -math.inf}, r"^evidence\.tau: found -inf, expected 0 to 1 where"),
        ({"soft_mix": 1.1}, r"^evidence\.soft_mix: found 1\.1, expected a number, 0 to 1$"),
        ({"soft_mix": math.nan}, r"^evidence\.soft_mix: found nan, expected"),
        ({"soft_mix_decay_steps": -1}, r"^evidence\.soft_mix_decay_steps: found -1, expected a whole number >= 0$"),
        ({"soft_mix_decay_steps": 1.0}, r"^evidence\.soft_mix_decay_steps: found 1\.0, expected a whole number"),
        ({"num_wrong_contexts": True}, r"^evidence\.num_wrong_contexts: found True, expected a whole number >= 0$"),
        (
            {"num_wrong_contexts": 0, "kind": "contrastive"},
            r"^evidence\.num_wrong_contexts: found 0, expected at least 1 where evidence\.kind is 'contrastive'$",
        ),
        ({"tau": math.nan}, r"^evidence\.tau: found nan, expected a number"),
        ({"tau": "0"}, r"^evidence\.tau: found '0', expected a number"),
        ({"near_zero": -0.1}, r"^evidence\.near_zero: found -0\.1, expected a number >= 0$"),
        ({"near_zero": math.nan}, r"^evidence\.near_zero: found nan, expected a number >= 0$"),
        ({"soft_eps": 0.0}, r"^evidence\.soft_eps: found 0\.0, expected a number between 0 and 1$"),
        ({"soft_eps": 1}, r"^evidence\.soft_eps: found 1, expected a number between 0 and 1$"),
        ({"soft_eps": True}, r"^evidence\.soft_eps: found True, expected"),
    ],
)
def test_a_bad_config_names_its_key(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvidenceConfig(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize("tau", [0.25, -math.inf, math.inf])
def test_config_survives_json(tau: float) -> None:
    config = EvidenceConfig(region="neg", tau=tau, soft="rlsd", soft_eps=0.3, soft_mix=0.5, soft_mix_decay_steps=9)
    assert EvidenceConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"taus": 1}', r"^evidence\.taus: found 1, expected one of the keys kind, near_zero, num_wrong"),
        ('{"region": "x"}', r"^evidence\.region: found 'x'"),
        ("[]", r"^evidence\.mask_rule: found \[\], expected a JSON object$"),
        ("{", "Expecting"),
    ],
)
def test_a_bad_rule_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvidenceConfig.from_json(text)


# Quantiles: thresholds that look at the whole step


def kept_by(scored: list[ScoredSample], config: EvidenceConfig) -> list[list[bool]]:
    return [record.mask.tolist() for record in judge_all(scored, [None] * len(scored), config, step=0)]


def evidence_of(scored: list[ScoredSample]) -> list[list[float]]:
    """Float64; log-probs of `scored_step` differ without rounding."""
    return [
        [float(c) - float(p) for c, p in zip(one.teacher_context_logprobs, one.teacher_logprobs, strict=True)]
        for one in scored
    ]


@pytest.mark.parametrize("sixteenths", range(17))
def test_a_quantile_is_that_of_all_tokens_of_the_step(sixteenths: int) -> None:
    scored, tau = scored_step((7, 1, 30, 11)), sixteenths / 16
    evidence = evidence_of(scored)
    everything = np.array([e for row in evidence for e in row])
    above, below = (float(np.float32(np.quantile(everything, q))) for q in (tau, 1 - tau))
    pos = kept_by(scored, EvidenceConfig(region="pos", tau=tau, tau_kind="quantile"))
    neg = kept_by(scored, EvidenceConfig(region="neg", tau=tau, tau_kind="quantile"))
    assert pos == [[e > above for e in row] for row in evidence]
    assert neg == [[e < below for e in row] for row in evidence]
    assert 0 <= sum(map(sum, pos)) <= (1 - tau) * everything.size


def test_the_ends_of_a_quantile() -> None:
    evidence = np.array([-1.0, 0.5, 2.0, 2.0], np.float32)
    for region, kept in (("pos", [False, True, True, True]), ("neg", [True, True, False, False])):
        assert remask(evidence, EvidenceConfig(region=region, tau=0.0, tau_kind="quantile")).tolist() == kept
        assert not remask(evidence, EvidenceConfig(region=region, tau=1.0, tau_kind="quantile")).any()
    assert remask(evidence[:0], EvidenceConfig(tau=0.5, tau_kind="quantile")).shape == (0,)


@relaxed
@given(st.lists(nats, min_size=1, max_size=40), st.floats(0, 1))
def test_pos_and_neg_quantiles_mirror_each_other(values: list[float], tau: float) -> None:
    evidence = np.array(values, np.float32)
    pos = remask(evidence, EvidenceConfig(region="pos", tau=tau, tau_kind="quantile"))
    neg = remask(-evidence, EvidenceConfig(region="neg", tau=tau, tau_kind="quantile"))
    assert pos.tolist() == neg.tolist() == (evidence > np.float32(np.quantile(np.float64(values), tau))).tolist()


# Soft weights from a verifier


def reference_rlsd(e: float, advantage: float, eps: float, mix: float) -> float:
    sign = (advantage > 0) - (advantage < 0)
    return (1 - mix) + mix * min(max(math.exp(sign * e), 1 - eps), 1 + eps)


@pytest.mark.parametrize(("mix", "decay", "step", "left"), [(1.0, 0, 9, 1.0), (0.5, 0, 9, 0.5), (0.5, 8, 6, 0.125)])
def test_rlsd_verifier_equals_the_loop(mix: float, decay: int, step: int, left: float) -> None:
    """Two rollouts a group: the better one has A > 0, the worse one A < 0, two equal ones A = 0."""
    scored, rewards = scored_step((5, 9, 1, 14, 3, 3)), [1.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    config = EvidenceConfig(soft="rlsd_verifier", soft_eps=0.3, soft_mix=mix, soft_mix_decay_steps=decay)
    records = judge_all(scored, rewards, config, step)
    assert [record.reward for record in records] == rewards
    for record, evidence, advantage in zip(records, evidence_of(scored), (1, -1, -1, 1, 0, 0), strict=True):
        expected = [reference_rlsd(e, advantage, 0.3, left) for e in evidence]
        assert record.weight.dtype == np.float32
        assert record.weight.tolist() == pytest.approx(expected, rel=1e-6)
        assert record.mask.tolist() == [e > 0 for e in evidence]


def test_the_sign_of_the_advantage_decides_the_direction() -> None:
    scored = scored_step((40, 40))
    better, worse = judge_all(scored, [1.0, 0.0], EvidenceConfig(soft="rlsd_verifier"), step=0)
    assert ((better.weight > 1) == (better.evidence > 0)).all()
    assert ((worse.weight > 1) == (worse.evidence < 0)).all()


@relaxed
@given(st.sampled_from(["none", "rlsd"]), st.floats(0, 1), st.integers(0, 40), st.integers(0, 40))
def test_a_mix_decays_linearly_to_no_soft_weight_at_all(soft: str, mix: float, decay: int, step: int) -> None:
    config = EvidenceConfig(soft=soft, soft_mix=mix, soft_mix_decay_steps=decay)
    left = mix if decay == 0 else mix * (decay - step) / decay if step < decay else 0.0
    evidence = np.array([-3.0, -0.125, 0.0, 0.125, 3.0], np.float32)
    weight = reweigh(evidence, np.full(5, np.nan), config, step)
    soft_weights = [1.0] * 5 if soft == "none" else [0.8, math.exp(-0.125), 1.0, math.exp(0.125), 1.2]
    assert weight.tolist() == pytest.approx([(1 - left) + left * w for w in soft_weights], rel=1e-6)
    if soft == "none" or left == 0:
        assert weight.tolist() == [1.0] * 5


def test_a_rollout_by_itself_is_judged_as_of_step_0() -> None:
    """Its weight is soft in full: at step 1 of two it would be half-way between 1 and 1.2."""
    record = judge(scored_sample([-1.0], [-1.5]), EvidenceConfig(soft="rlsd", soft_mix_decay_steps=2))
    assert record.weight.tolist() == pytest.approx([1.2])


def test_a_verifier_that_says_nothing_is_refused() -> None:
    message = r"^evidence\.soft: found 'rlsd_verifier', expected a reward for every rollout, from a task's verifier$"
    for rewards in ([None] * 2, [1.0, None]):
        with pytest.raises(ValueError, match=message):
            judge_all(scored_step((3, 4)), rewards, EvidenceConfig(soft="rlsd_verifier"), step=0)


# A whole step


def test_a_step_is_judged_as_its_rollouts_are_where_no_rule_looks_beyond_one() -> None:
    scored = scored_step((6, 1, 20, 3))
    config = EvidenceConfig(region="neg", tau=0.25, soft="rlsd")
    for together, one in zip(judge_all(scored, [None] * 4, config, step=7), scored, strict=True):
        alone = judge(one, config)
        assert together.scored is one
        for name in ("evidence", "weight", "mask"):
            assert getattr(together, name).tobytes() == getattr(alone, name).tobytes()
    assert judge_all([], [], config, step=0) == []


@pytest.mark.parametrize("kind", sorted(EVIDENCE_KINDS))
@pytest.mark.parametrize("tau_kind", sorted(TAU_KINDS))
def test_no_python_runs_for_a_token(kind: str, tau_kind: str) -> None:
    """Judging 64 times as many tokens makes the same calls."""

    def calls(length: int) -> int:
        scored = scored_step([length] * 6)
        config = EvidenceConfig(kind=kind, tau=0.5, tau_kind=tau_kind, soft="rlsd_verifier", num_wrong_contexts=2)
        made = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal made
            made += 1

        sys.setprofile(count)
        try:
            judge_all(scored, [0.0, 1.0] * 3, config, step=0)
        finally:
            sys.setprofile(None)
        return made

    calls(8)  # what numpy imports at its first use
    assert calls(512) <= calls(8) + 50
