"""What evidence is, against float64 loops over the log-probs that it is made of."""

from dataclasses import replace

import numpy as np
import pytest

from evidence.kinds import EVIDENCE_KINDS
from evidence.records import ScoredSample
from evidence.rule import EvidenceConfig, judge_all
from evidence.schema import KIND_COLUMNS, reads
from rollout.contrast import num_wrong_contexts
from tests.fakes import scored_step

LENGTHS = (5, 1, 12, 3)


def reference(kind: str, one: ScoredSample, t: int) -> float:
    """contrastive as the difference of two evidences: the code has the form in which log pi_T(y|x) cancels."""
    with_r, without = float(one.teacher_context_logprobs[t]), float(one.teacher_logprobs[t])
    if kind == "teacher_contrast":
        return with_r - without
    if kind == "teacher_student":
        assert one.student_logprobs is not None
        return with_r - float(one.student_logprobs[t])
    wrong = [float(logprobs[t]) - without for logprobs in one.wrong_context_logprobs]
    return (with_r - without) - sum(wrong) / len(wrong)


def evidence(kind: str, scored: list[ScoredSample]) -> list[np.ndarray]:
    config = EvidenceConfig(kind=kind, num_wrong_contexts=max(1, len(scored[0].wrong_context_logprobs)))
    return [record.evidence for record in judge_all(scored, [None] * len(scored), config, step=0)]


@pytest.mark.parametrize("kind", sorted(EVIDENCE_KINDS))
@pytest.mark.parametrize("num_wrong", [1, 2, 3])
def test_every_token_has_its_own_evidence(kind: str, num_wrong: int) -> None:
    scored = scored_step(LENGTHS, num_wrong=num_wrong)
    for found, one in zip(evidence(kind, scored), scored, strict=True):
        expected = [reference(kind, one, t) for t in range(len(found))]
        assert found.dtype == np.float32
        assert found.tolist() == pytest.approx(expected, abs=1e-6)
        for t in (0, -1):
            assert found[t] == pytest.approx(expected[t], abs=1e-6)
    assert len({e for row in evidence(kind, scored) for e in row.tolist()}) > 10


def test_kinds_tell_apart_what_they_read() -> None:
    scored = scored_step(LENGTHS)
    found = {kind: np.concatenate(evidence(kind, scored)).tobytes() for kind in EVIDENCE_KINDS}
    assert len(set(found.values())) == 3


def test_a_single_wrong_context_equal_to_the_plain_prompt_is_the_contrast() -> None:
    scored = [replace(one, wrong_context_logprobs=(one.teacher_logprobs,)) for one in scored_step(LENGTHS)]
    for found, expected in zip(evidence("contrastive", scored), evidence("teacher_contrast", scored), strict=True):
        assert found.tobytes() == expected.tobytes()


def test_wrong_contexts_equal_to_the_correct_one_leave_no_evidence() -> None:
    scored = [replace(one, wrong_context_logprobs=(one.teacher_context_logprobs,) * 3) for one in scored_step(LENGTHS)]
    assert all((row == 0).all() for row in evidence("contrastive", scored))


def test_at_step_0_a_student_equal_to_the_teacher_gives_the_contrast() -> None:
    """Invariant of a frozen teacher: A = e up to numerics."""
    scored = [replace(one, student_logprobs=one.teacher_logprobs) for one in scored_step(LENGTHS)]
    for found, expected in zip(evidence("teacher_student", scored), evidence("teacher_contrast", scored), strict=True):
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("kind", "change", "stream"),
    [
        ("teacher_student", {"student_logprobs": None}, "student_logprobs"),
        ("contrastive", {"wrong_context_logprobs": ()}, "wrong_context_logprobs"),
    ],
)
def test_a_stream_that_is_not_there_is_named(kind: str, change: dict[str, object], stream: str) -> None:
    one, *others = scored_step(LENGTHS)
    message = rf"^evidence\.kind: found '{kind}' and rollouts without {stream}, expected those of every rollout$"
    for scored in ([replace(one, **change), *others], [replace(any_one, **change) for any_one in (one, *others)]):
        with pytest.raises(ValueError, match=message):
            evidence(kind, scored)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student_logprobs": [0.0, np.nan]}, r"student_logprobs: found nan at token 1, expected a finite log-prob"),
        ({"student_logprobs": [0.0]}, r"student_logprobs: found shape \(1,\), expected \(2,\) as response_ids"),
        ({"wrong_context_logprobs": ([0.0, 0.0], [0.0, -np.inf])}, r"wrong_context_logprobs 1: found -inf at token 1"),
        ({"wrong_context_logprobs": ([0.0], [0.0, 0.0])}, r"wrong_context_logprobs 0: found shape \(1,\), expected"),
    ],
)
def test_an_unsound_stream_names_the_rollout(change: dict[str, list[float]], message: str) -> None:
    def array(values: object) -> object:
        return tuple(map(array, values)) if isinstance(values, tuple) else np.array(values, np.float32)

    one = replace(scored_step([2])[0], **{name: array(values) for name, values in change.items()})
    with pytest.raises(ValueError, match=rf"^rollout r0: {message}"):
        judge_all([one], [None], EvidenceConfig(), step=0)


def test_columns_are_those_of_a_kind_that_exists() -> None:
    assert KIND_COLUMNS.keys() <= EVIDENCE_KINDS.keys()


def test_a_new_kind_is_scored_for_the_columns_that_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EVIDENCE_KINDS, "mine", EVIDENCE_KINDS["contrastive"])
    rule = EvidenceConfig(kind="mine", num_wrong_contexts=2)
    assert num_wrong_contexts(rule) == 0 and not reads("mine", "wrong_context_logprobs")
    monkeypatch.setitem(KIND_COLUMNS, "mine", KIND_COLUMNS["contrastive"])
    assert num_wrong_contexts(rule) == 2
    monkeypatch.setitem(KIND_COLUMNS, "mine", KIND_COLUMNS["teacher_student"])
    assert num_wrong_contexts(rule) == 0 and reads("mine", "student_logprobs")
