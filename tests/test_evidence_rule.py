"""The rule against references written as plain loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evidence.records import EvidenceRecord, Floats, RolloutRequest, Sample, ScoredSample
from evidence.rule import EVIDENCE_KINDS, REGIONS, SOFT_WEIGHTS, EvidenceConfig, judge, remask, reweigh

logprobs = st.floats(min_value=-60, max_value=0, width=32)
nats = st.floats(min_value=-200, max_value=200, width=32)
pairs = st.lists(st.tuples(logprobs, logprobs), min_size=1, max_size=30)
relaxed = settings(deadline=None, max_examples=60)


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
    st.sampled_from(sorted(SOFT_WEIGHTS)),
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
    assert set(EVIDENCE_KINDS) == {"teacher_contrast"}
    assert set(REGIONS) == {"pos", "neg", "near_zero", "all"}
    assert set(SOFT_WEIGHTS) == {"none", "rlsd"}


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
        weight: Floats = reweigh(np.array(values, np.float32), config)
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
        ({"kind": "student"}, r"^evidence\.kind: found 'student', expected one of teacher_contrast$"),
        ({"soft": ""}, r"^evidence\.soft: found '', expected one of none, rlsd$"),
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
    config = EvidenceConfig(region="neg", tau=tau, soft="rlsd", soft_eps=0.3)
    assert EvidenceConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"taus": 1}', r"^evidence\.taus: found 1, expected one of the keys kind, near_zero"),
        ('{"region": "x"}', r"^evidence\.region: found 'x'"),
        ("[]", r"^evidence\.mask_rule: found \[\], expected a JSON object$"),
        ("{", "Expecting"),
    ],
)
def test_a_bad_rule_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvidenceConfig.from_json(text)
