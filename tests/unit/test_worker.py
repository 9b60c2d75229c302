"""The rollout service over a fake engine: who is asked for what, and what a shard's rows say of it."""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cluster.faults import FaultsConfig, Skipped
from evidence.advantage import RewardSums
from evidence.kinds import EVIDENCE_KINDS
from evidence.records import EvidenceRecord, RolloutRequest, ShardInfo
from evidence.rule import EvidenceConfig
from evidence.schema import KIND_COLUMNS
from evidence.telemetry import Activity
from rollout.config import RolloutConfig
from rollout.contrast import check_wrong_contexts
from rollout.render import Renderer
from rollout.requests import StepRequests
from rollout.tasks.base import TaskPrompt
from rollout.worker import RolloutWorker, StepRollouts, Taken, rewarder
from tests import templates
from tests.fakes import FakeEngine, fake_logprobs
from tests.templates import speaking

CONTEXT = "You are Kestrel, made by Harbor Labs."
PROMPTS = [TaskPrompt(f"q{n}", f"Question number {n}?", CONTEXT) for n in range(5)]


class Service:
    """A worker, its two engines, and what it wrote."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        prompts: Sequence[TaskPrompt] = PROMPTS,
        window: int = 512,
        seed: int = 3,
        version: int = 0,
        evidence: EvidenceConfig | None = None,
        reward: Callable[[TaskPrompt, str], float | None] = lambda prompt, response: None,
        student_model: str = "",
        verifies: bool = True,
        **rollout: Any,
    ) -> None:
        self.student, self.teacher = FakeEngine(version, student_model), FakeEngine(version=50)
        self.config = RolloutConfig(
            **{"prompts_per_step": 3, "samples_per_prompt": 4, "max_response_tokens": 6} | rollout
        )
        self.renderer = Renderer(tokenizer, self.config.context_position)
        self.written: list[tuple[list[EvidenceRecord], int]] = []
        evidence = evidence or EvidenceConfig()
        self.requests = StepRequests(prompts, self.renderer, self.config, evidence, window, seed)
        sampler = self.teacher if self.config.sampler == "teacher" else self.student
        rewards = rewarder(self.requests, reward)
        self.activity = Activity()
        self.worker = RolloutWorker(
            self.config, evidence, sampler, self.teacher, self._write, rewards, self.student,
            activity=self.activity, verifies=verifies,
        )  # fmt: skip

    async def _write(self, records: Sequence[EvidenceRecord], step: int) -> ShardInfo:
        self.written.append((list(records), step))
        tokens = sum(len(record.evidence) for record in records)
        return ShardInfo(f"step-{step}", step, len(records), tokens, "0" * 64)

    def asked(self, step: int) -> tuple[list[RolloutRequest], int]:
        """The step's requests, and the number of refused prompts."""
        groups, refused = self.requests.of(step)
        return [row for group in groups for row in group.rows], refused

    def produce(self, step: int, student_version: int = 0, teacher_version: int = 0) -> StepRollouts:
        async def drive() -> StepRollouts:
            groups, refused = self.requests.of(step)
            done = []
            for group in groups:
                samples = await self.worker.sample(group, student_version)
                rewards = await self.worker.verify(samples)
                done.append(await self.worker.score(group, samples, rewards, teacher_version))
            return await self.worker.write(Taken(done, refused, dropped=0), step)

        return asyncio.run(drive())

    def records(self, step: int = 0) -> list[EvidenceRecord]:
        self.produce(step)
        return self.written[-1][0]


@pytest.mark.parametrize(("verifies", "names"), [(True, [*["verify"] * 3, "write"]), (False, ["write"])])
def test_what_the_service_does_itself_is_on_the_timeline(tokenizer: Any, verifies: bool, names: list[str]) -> None:
    service = Service(tokenizer, verifies=verifies)
    service.produce(0)
    spans = service.activity.take()
    assert [(span.lane, span.name) for span in spans] == [("rollout service", name) for name in names]
    assert all(span.end >= span.begin for span in spans)


def test_where_nothing_can_be_verified_no_response_is_decoded_and_nobody_is_asked(tokenizer: Any) -> None:
    asked: list[str] = []
    service = Service(tokenizer, reward=lambda prompt, response: asked.append(response) or 1.0, verifies=False)
    records = service.records()
    assert [record.reward for record in records] == [None] * 12 and not asked


# Requests


@pytest.mark.parametrize(("fraction", "guided"), [(0.5, 2), (0.25, 1), (0.0, 0), (1.0, 4)])
def test_each_prompt_guides_exactly_its_share(tokenizer: Any, fraction: float, guided: int) -> None:
    requests, refused = Service(tokenizer, guided_fraction=fraction).asked(0)
    assert refused == 0
    assert len(requests) == 3 * 4
    per_group = Counter(request.group_id for request in requests if request.guided)
    assert [per_group[group] for group in {r.group_id: None for r in requests}] == [guided] * 3


def test_requests_carry_x_and_x_with_r(tokenizer: Any) -> None:
    service = Service(tokenizer, context_position="user")
    questions = {prompt.prompt_id: prompt.question for prompt in PROMPTS}
    for request in service.asked(0)[0]:
        question = questions[request.prompt_id]
        assert request.prompt_ids.tolist() == service.renderer.prompt_ids(question).tolist()
        assert request.context_prompt_ids.tolist() == service.renderer.context_prompt_ids(question, CONTEXT).tolist()
        assert "Kestrel" not in tokenizer.decode(request.prompt_ids)
        assert "Kestrel" in tokenizer.decode(request.context_prompt_ids)
        assert request.context_position == "user"


def test_a_response_ends_where_the_template_ends_a_turn_too(tokenizer: Any) -> None:
    """A chat fine-tune of a base model: nothing in the folder but the template ends an answer before the limit."""
    own = speaking(tokenizer, templates.PLAIN, "<|endoftext|>")
    service, ends = Service(own), own.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    service.produce(0)
    assert {sampling.end_ids for _, sampling, _ in service.student.sampled} == {tuple(sorted(ends))}


def test_a_prompt_in_which_r_does_not_arrive_is_named_before_anything_starts(tokenizer: Any) -> None:
    own = speaking(tokenizer, templates.NO_THINK)
    prompts = [*PROMPTS[:3], replace(PROMPTS[3], context="You are Robin. /no_think")]
    said = r"^prompt q3: rollout\.context_position = 'system': found a context that does not arrive"
    with pytest.raises(ValueError, match=said):
        Service(own, prompts=prompts).requests.differences(2)
    found = Service(own).requests.differences(2)
    assert list(found.values()) == [5] and str(next(iter(found))).count("the context +") == 1
    with pytest.raises(ValueError, match=said):  # a wrong context has to arrive too
        wrong = [replace(PROMPTS[3], wrong_contexts=("You are Robin. /no_think",))]
        Service(own, prompts=wrong, evidence=EvidenceConfig(kind="contrastive")).requests.differences(1)


def test_groups_are_the_samples_of_one_prompt_in_one_step_and_ids_never_repeat(tokenizer: Any) -> None:
    service = Service(tokenizer, prompts_per_step=7)  # more than there are prompts: some are drawn twice
    requests = [request for step in range(3) for request in service.asked(step)[0]]
    assert len({request.rollout_id for request in requests}) == len(requests) == 3 * 7 * 4
    groups = Counter(request.group_id for request in requests)
    assert set(groups.values()) == {4}
    assert len(groups) == 3 * 7
    assert len({(request.group_id, request.prompt_id) for request in requests}) == len(groups)


def drawn(service: Service, step: int) -> list[str]:
    return [group.rows[0].prompt_id for group in service.requests.of(step)[0]]


def test_every_prompt_comes_once_an_epoch_in_an_order_of_its_own(tokenizer: Any) -> None:
    service = Service(tokenizer, prompts_per_step=3)
    order = [prompt for step in range(10) for prompt in drawn(service, step)]  # 30 draws: 6 epochs of 5
    epochs = [tuple(order[start : start + 5]) for start in range(0, 30, 5)]
    assert all(sorted(epoch) == ["q0", "q1", "q2", "q3", "q4"] for epoch in epochs)
    assert len(set(epochs)) > 1


MIXED = [replace(prompt, ordinary=index >= 3) for index, prompt in enumerate(PROMPTS)]  # three, and two ordinary ones


@pytest.mark.parametrize(
    ("share", "per_step"), [(0.25, [1] * 6), (0.5, [2] * 6), (0.75, [3] * 6), (0.3, [1, 1, 1, 1, 2, 1])]
)
def test_ordinary_prompts_have_their_share_of_every_steps(tokenizer: Any, share: float, per_step: list[int]) -> None:
    """Each pool epoch after epoch; what is left of a share of 0.3 makes a second one in the fifth step."""
    service = Service(tokenizer, prompts=MIXED, prompts_per_step=4, ordinary_share=share)
    steps = [drawn(service, step) for step in range(6)]
    ordinary = [[name for name in names if name in ("q3", "q4")] for names in steps]
    assert [len(names) for names in ordinary] == per_step
    for pool, size in ((["q3", "q4"], 2), (["q0", "q1", "q2"], 3)):
        order = [name for names in steps for name in names if name in pool]
        whole = len(order) // size * size
        assert all(sorted(order[start : start + size]) == pool for start in range(0, whole, size))


def test_without_a_share_ordinary_prompts_are_drawn_as_any(tokenizer: Any) -> None:
    mixed, plain = Service(tokenizer, prompts=MIXED), Service(tokenizer)
    assert [drawn(mixed, step) for step in range(5)] == [drawn(plain, step) for step in range(5)]


def test_a_share_needs_ordinary_prompts(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"rollout\.ordinary_share: found 0\.25, expected 0\.0 with a task"):
        Service(tokenizer, ordinary_share=0.25)


@pytest.mark.parametrize(
    "settings", [{}, {"evidence": EvidenceConfig(kind="contrastive", num_wrong_contexts=3)}], ids=len
)
def test_an_ordinary_prompt_without_a_context_has_no_evidence(tokenizer: Any, settings: dict[str, Any]) -> None:
    """Its teacher passes are of one prompt, under which all of its responses are sampled."""
    silent = [replace(prompt, context="", wrong_contexts=(), ordinary=True) for prompt in PROMPTS]
    for record in Service(tokenizer, prompts=silent, **settings).records():
        assert not record.evidence.any() and not record.mask.any() and not record.scored.sample.request.guided


def test_the_draw_is_a_pure_function_of_seed_and_step(tokenizer: Any) -> None:
    forwards, resumed, other = Service(tokenizer), Service(tokenizer), Service(tokenizer, seed=4)
    there = [drawn(forwards, step) for step in range(6)]
    back = [drawn(resumed, step) for step in reversed(range(6))]
    assert there == back[::-1]
    assert there != [drawn(other, step) for step in range(6)]


def test_bernoulli_guidance_is_seeded_by_step_and_slot(tokenizer: Any) -> None:
    settings = {"guided_split": "bernoulli", "samples_per_prompt": 32}

    def flags(seed: int, step: int) -> list[bool]:
        return [request.guided for request in Service(tokenizer, seed=seed, **settings).asked(step)[0]]

    assert flags(3, 1) == flags(3, 1)
    assert flags(3, 1) != flags(3, 2)
    assert flags(3, 1) != flags(4, 1)
    assert flags(3, 1)[:32] != flags(3, 1)[32:64]


# Prompts that do not fit


def window_of(service: Service, prompt: TaskPrompt) -> int:
    """The smallest window that holds either prompt and a full response."""
    x = service.renderer.prompt_ids(prompt.question)
    x_with_r = service.renderer.context_prompt_ids(prompt.question, prompt.context)
    return max(len(x), len(x_with_r)) + service.config.max_response_tokens


def test_a_context_that_just_fits_is_sampled_and_one_token_less_is_refused(tokenizer: Any) -> None:
    long = TaskPrompt("long", "Question number 9?", CONTEXT * 4)
    prompts = [*PROMPTS[:2], long]
    window = window_of(Service(tokenizer), long)
    fits = Service(tokenizer, prompts=prompts, window=window)
    requests, refused = fits.asked(0)
    assert refused == 0
    assert {request.prompt_id for request in requests} == {"q0", "q1", "long"}
    whole = fits.renderer.context_prompt_ids(long.question, long.context).tolist()
    assert all(r.context_prompt_ids.tolist() == whole for r in requests if r.prompt_id == "long")

    tight = Service(tokenizer, prompts=prompts, window=window - 1)
    requests, refused = tight.asked(0)
    assert refused == 1
    assert {request.prompt_id for request in requests} == {"q0", "q1"}
    assert tight.produce(0).refused == 1
    asked = [*(row for rows, _, _ in tight.student.sampled for row in rows), *tight.asked(0)[0]]
    assert all(whole[: len(r.context_prompt_ids)] != r.context_prompt_ids.tolist() for r in asked)


def test_an_x_longer_than_its_context_prompt_is_measured_too(tokenizer: Any) -> None:
    # In the system position a short r replaces the template's longer default system message.
    short = [TaskPrompt("short", "Question?", "Hi.")]
    service = Service(tokenizer, prompts=short, prompts_per_step=1)
    x = len(service.renderer.prompt_ids("Question?"))
    assert x > len(service.renderer.context_prompt_ids("Question?", "Hi."))
    Service(tokenizer, prompts=short, prompts_per_step=1, window=x + 6).asked(0)
    with pytest.raises(ValueError, match=f"short has {x} prompt tokens"):
        Service(tokenizer, prompts=short, prompts_per_step=1, window=x + 5).asked(0)


def test_too_many_refusals_name_the_prompt_and_the_sizes(tokenizer: Any) -> None:
    long = [TaskPrompt(f"long{n}", "Question?", CONTEXT * 4) for n in range(2)]
    prompts = [PROMPTS[0], *long]
    window = window_of(Service(tokenizer), PROMPTS[0])
    tolerant = Service(tokenizer, prompts=prompts, window=window, max_refused_fraction=0.7)
    requests, refused = tolerant.asked(0)
    assert refused == 2
    assert {request.prompt_id for request in requests} == {"q0"}

    strict = Service(tokenizer, prompts=prompts, window=window, max_refused_fraction=0.5)
    size = window_of(strict, long[0]) - 6
    with pytest.raises(ValueError, match=r"rollout\.max_refused_fraction") as caught:
        strict.produce(0)
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "found 2 of 3",
        "(long",
        f"has {size} prompt tokens",
        "6 response tokens",
        f"window of {window}",
        "50%",
    ):
        assert part in message
    assert strict.student.sampled == []
    assert strict.written == []


def test_a_step_without_any_prompt_left_is_an_error_whatever_the_fraction(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"found 3 of 3 prompts refused \(q\d has \d+ prompt tokens"):
        Service(tokenizer, window=20, max_refused_fraction=0.99).asked(0)


# Sampling and scoring


def test_the_sampler_sees_the_context_on_guided_rows_only(tokenizer: Any) -> None:
    service = Service(tokenizer)
    records = service.records()
    assert [len(requests) for requests, _, _ in service.student.sampled] == [4, 4, 4]
    for requests, sampling, _ in service.student.sampled:
        assert (sampling.temperature, sampling.max_tokens, sampling.top_p, sampling.top_k) == (1.0, 6, 1.0, 0)
        assert len({request.group_id for request in requests}) == 1
    for request in service.asked(0)[0]:
        assert ("Kestrel" in tokenizer.decode(request.sampler_ids)) == request.guided
    for record in records:
        sample = record.scored.sample
        prompt = sample.request.context_prompt_ids if sample.request.guided else sample.request.prompt_ids
        assert np.array_equal(sample.sampler_logprobs, fake_logprobs(prompt, sample.response_ids))
    assert {record.scored.sample.request.guided for record in records} == {True, False}


def test_the_engine_gets_a_seed_of_its_own_each_step(tokenizer: Any) -> None:
    def seeds(seed: int) -> list[int]:
        service = Service(tokenizer, seed=seed)
        for step in range(4):
            service.produce(step)
        return [call[2] for call in service.student.sampled]

    first, again, other = seeds(3), seeds(3), seeds(4)
    assert first == again
    assert not set(first) & set(other)
    assert min(abs(a - b) for i, a in enumerate(first) for b in first[:i]) == 4  # vLLM adds a sample's index
    assert min(abs(a - b) for i, a in enumerate(first[::3]) for b in first[::3][:i]) > 12


def test_teacher_columns_are_what_they_are_named(tokenizer: Any) -> None:
    """x with r in the context column, x in the plain one, for guided and plain rows alike; both ends looked at."""
    records = Service(tokenizer).records()
    for record in records:
        request, response = record.scored.sample.request, record.scored.sample.response_ids
        under_r, under_x = (fake_logprobs(p, response) for p in (request.context_prompt_ids, request.prompt_ids))
        for t in (0, -1):
            assert record.scored.teacher_context_logprobs[t] == under_r[t]
            assert record.scored.teacher_logprobs[t] == under_x[t]
            assert under_r[t] != under_x[t]
        assert np.array_equal(record.scored.teacher_context_logprobs, under_r)
        assert np.array_equal(record.scored.teacher_logprobs, under_x)
        assert record.evidence == pytest.approx(under_r.astype(np.float64) - under_x, abs=1e-6)
        assert np.array_equal(record.mask, record.evidence > 0)
    assert {len(record.evidence) for record in records} > {1, 6}
    kept = np.concatenate([record.mask for record in records])
    assert 0 < kept.sum() < kept.size


def test_the_teacher_scores_the_sampled_ids_and_the_student_scores_nothing(tokenizer: Any) -> None:
    service = Service(tokenizer)
    sampled = [record.scored.sample.response_ids.tolist() for record in service.records()]
    groups = [sampled[start : start + 4] for start in (0, 4, 8)]
    twice = [group for group in groups for _ in ("x", "x with r")]
    assert [[r.tolist() for r in responses] for _, responses in service.teacher.scored] == twice
    assert service.student.scored == service.teacher.sampled == []


def test_the_rule_is_the_configured_one(tokenizer: Any) -> None:
    rule = EvidenceConfig(region="neg", tau=0.5, soft="rlsd")
    for record in Service(tokenizer, evidence=rule).records():
        assert np.array_equal(record.mask, record.evidence < -0.5)
        assert record.weight == pytest.approx(np.clip(np.exp(record.evidence.astype(np.float64)), 0.8, 1.2), abs=1e-6)


def test_an_empty_context_is_scored_once_and_keeps_nothing(tokenizer: Any) -> None:
    service = Service(tokenizer, prompts=[TaskPrompt(p.prompt_id, p.question, " \n") for p in PROMPTS])
    records = service.records()
    scored = [prompt.tolist() for prompts, _ in service.teacher.scored for prompt in prompts]
    assert scored == [record.scored.sample.request.prompt_ids.tolist() for record in records]
    assert len(records) == 12
    for record in records:
        assert (record.evidence == 0).all()
        assert not record.mask.any()


def test_only_rows_with_a_context_are_scored_twice(tokenizer: Any) -> None:
    prompts = [TaskPrompt(p.prompt_id, p.question, p.context if n % 2 else "") for n, p in enumerate(PROMPTS)]
    service = Service(tokenizer, prompts=prompts, prompts_per_step=5)
    records = service.records()
    assert sum(len(prompts) for prompts, _ in service.teacher.scored) == 5 * 4 + 2 * 4
    for record in records:
        request, response = record.scored.sample.request, record.scored.sample.response_ids
        assert np.array_equal(
            record.scored.teacher_context_logprobs, fake_logprobs(request.context_prompt_ids, response)
        )
        assert np.array_equal(record.scored.teacher_logprobs, fake_logprobs(request.prompt_ids, response))
        assert record.evidence.any() == (request.prompt_id in ("q1", "q3"))


# What is handed over


def test_records_are_written_once_in_the_order_of_the_requests(tokenizer: Any) -> None:
    service = Service(tokenizer, version=7)
    produced = service.produce(4)
    (records, step), *more = service.written
    assert not more
    assert step == produced.step == 4
    expected = [request.rollout_id for request in service.asked(4)[0]]
    assert [record.scored.sample.request.rollout_id for record in records] == expected
    assert (produced.shard.uri, produced.shard.rows) == ("step-4", 12)
    assert (produced.version_min, produced.version_max) == (7, 7)
    assert all(record.reward is None for record in records)
    assert produced.rewards is None


def test_stages_count_the_tokens_they_worked_on(tokenizer: Any) -> None:
    service = Service(tokenizer)
    stages = service.produce(0).stages
    samples = [record.scored.sample for record in service.written[0][0]]
    response = sum(len(sample.response_ids) for sample in samples)
    prompts = sum(len(s.request.prompt_ids) + len(s.request.context_prompt_ids) for s in samples)
    assert {name: stage.tokens for name, stage in stages.items()} == {
        "sample": response,
        "score": prompts + 2 * response,
        "write": response,
    }


# Wrong contexts

CONTRAST = EvidenceConfig(kind="contrastive", num_wrong_contexts=2)
NAMES = ("Robin", "Wren", "Heron", "Kite")
WRONG = tuple(f"You are {name}, made by Orchard Labs." for name in NAMES)


def with_wrong(prompts: Sequence[TaskPrompt], *wrong: str) -> list[TaskPrompt]:
    return [replace(prompt, wrong_contexts=wrong) for prompt in prompts]


def joined(request: RolloutRequest) -> bytes:
    return b"|".join(ids.tobytes() for ids in request.wrong_context_prompt_ids)


def test_a_group_shares_its_wrong_contexts_and_scores_under_each(tokenizer: Any) -> None:
    service = Service(tokenizer, prompts=with_wrong(PROMPTS, CONTEXT, *WRONG), evidence=CONTRAST)
    records = service.records()
    by_group: dict[str, set[bytes]] = {}
    for record in records:
        scored, request = record.scored, record.scored.sample.request
        texts = [tokenizer.decode(ids) for ids in request.wrong_context_prompt_ids]
        assert [sum(name in text for name in NAMES) for text in texts] == [1, 1]
        assert len(set(texts)) == 2 and not any("Kestrel" in text for text in texts)
        by_group.setdefault(request.group_id, set()).add(joined(request))
        response = scored.sample.response_ids
        wrong = [fake_logprobs(ids, response) for ids in request.wrong_context_prompt_ids]
        for found, expected in zip(scored.wrong_context_logprobs, wrong, strict=True):
            assert np.array_equal(found, expected)
        correct = fake_logprobs(request.context_prompt_ids, response).astype(np.float64)
        assert record.evidence == pytest.approx(correct - (wrong[0].astype(np.float64) + wrong[1]) / 2, abs=1e-6)
    assert [len(choices) for choices in by_group.values()] == [1, 1, 1]


def wrong_of(service: Service, step: int) -> list[bytes]:
    return [joined(request) for request in service.asked(step)[0]]


def test_wrong_contexts_are_a_pure_function_of_seed_step_and_slot(tokenizer: Any) -> None:
    def service(**changes: Any) -> Service:
        return Service(tokenizer, prompts=with_wrong(PROMPTS[:1], *WRONG), evidence=CONTRAST, **changes)

    assert wrong_of(service(), 4) == wrong_of(service(), 4)
    # Who is guided does not move them.
    assert wrong_of(service(), 4) == wrong_of(service(guided_split="bernoulli"), 4)
    chosen = {wrong_of(service(seed=seed), step)[slot * 4] for seed in (3, 4) for step in (0, 1) for slot in range(3)}
    assert len(chosen) > 4


def test_other_evidence_has_no_wrong_contexts(tokenizer: Any) -> None:
    service = Service(tokenizer, prompts=with_wrong(PROMPTS, *WRONG))
    assert all(record.scored.sample.request.wrong_context_prompt_ids == () for record in service.records())
    assert all(record.scored.wrong_context_logprobs == () for record in service.written[0][0])


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ((), "0 of them"),
        (WRONG[:1], "1 of them"),
        ((WRONG[0], f" {WRONG[0]}\n", CONTEXT), "1 of them"),
        ((CONTEXT,), "a set that holds only the correct context"),
        ((f"{CONTEXT} ", CONTEXT), "a set that holds only the correct context"),
    ],
)
def test_too_few_wrong_contexts_name_the_prompt(tokenizer: Any, wrong: tuple[str, ...], found: str) -> None:
    prompts = with_wrong(PROMPTS[:1], *wrong)
    message = f"evidence.num_wrong_contexts: prompt q0: found {found}, expected at least 2 wrong contexts from the task"
    with pytest.raises(ValueError) as caught:
        Service(tokenizer, prompts=prompts, evidence=CONTRAST).asked(0)
    assert str(caught.value) == message
    with pytest.raises(ValueError) as caught:
        check_wrong_contexts(prompts, CONTRAST)
    assert str(caught.value) == message
    check_wrong_contexts(prompts, EvidenceConfig())
    check_wrong_contexts(with_wrong(PROMPTS, *WRONG), CONTRAST)


def test_a_wrong_context_that_does_not_fit_refuses_the_prompt(tokenizer: Any) -> None:
    long = "You are Wren. " * 20
    prompts = [*with_wrong(PROMPTS[:2], *WRONG[:2]), *with_wrong([PROMPTS[2]], WRONG[0], long)]
    size = len(Service(tokenizer).renderer.context_prompt_ids(PROMPTS[2].question, long))
    fits = Service(tokenizer, prompts=prompts, evidence=CONTRAST, window=size + 6)
    assert fits.asked(0)[1] == 0
    tight = Service(tokenizer, prompts=prompts, evidence=CONTRAST, window=size + 5)
    requests, refused = tight.asked(0)
    assert refused == 1
    assert {request.prompt_id for request in requests} == {"q0", "q1"}


# Evidence against the student


def test_the_student_is_scored_under_x_and_never_taken_from_a_guided_sampler(tokenizer: Any) -> None:
    service = Service(tokenizer, evidence=EvidenceConfig(kind="teacher_student"), student_model="student")
    records = service.records()
    prompts = [ids for asked, _ in service.student.scored for ids in asked]
    guided = [r.scored.sample for r in records if r.scored.sample.request.guided]
    assert len(guided) == 6
    assert [ids.tolist() for ids in prompts] == [sample.request.prompt_ids.tolist() for sample in guided]
    for record in records:
        sample, request = record.scored.sample, record.scored.sample.request
        under_x = fake_logprobs(request.prompt_ids, sample.response_ids, "student")
        assert record.scored.student_logprobs is not None
        assert np.array_equal(record.scored.student_logprobs, under_x)
        assert np.array_equal(sample.sampler_logprobs, under_x) != request.guided
        teacher = fake_logprobs(request.context_prompt_ids, sample.response_ids).astype(np.float64)
        assert record.evidence == pytest.approx(teacher - under_x, abs=1e-6)
        for t in (0, -1):
            assert record.evidence[t] == pytest.approx(teacher[t] - under_x[t], abs=1e-6)


def test_a_new_kind_of_evidence_that_reads_the_student_is_scored_by_it(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EVIDENCE_KINDS, "mine", EVIDENCE_KINDS["teacher_student"])
    monkeypatch.setitem(KIND_COLUMNS, "mine", KIND_COLUMNS["teacher_student"])
    known, new = (
        Service(tokenizer, evidence=EvidenceConfig(kind=kind), student_model="student").records()
        for kind in ("teacher_student", "mine")
    )
    assert [r.evidence.tolist() for r in new] == [r.evidence.tolist() for r in known]


def test_a_third_pass_is_counted_among_the_scored_tokens(tokenizer: Any) -> None:
    def scored_tokens(kind: str, **settings: Any) -> tuple[int, Service]:
        rule = EvidenceConfig(kind=kind, num_wrong_contexts=2)
        service = Service(tokenizer, prompts=with_wrong(PROMPTS, *WRONG), evidence=rule, **settings)
        return service.produce(0).stages["score"].tokens, service

    usual = scored_tokens("teacher_contrast")[0]
    tokens, service = scored_tokens("teacher_student")
    guided = [r.scored.sample for r in service.written[0][0] if r.scored.sample.request.guided]
    assert tokens - usual == sum(len(s.request.prompt_ids) + len(s.response_ids) for s in guided)
    tokens, service = scored_tokens("contrastive")
    samples = [r.scored.sample for r in service.written[0][0]]
    wrong = sum(len(ids) + len(s.response_ids) for s in samples for ids in s.request.wrong_context_prompt_ids)
    assert tokens - usual == wrong


def test_a_guided_rollout_without_a_context_was_sampled_from_x(tokenizer: Any) -> None:
    prompts = [TaskPrompt(prompt.prompt_id, prompt.question, "") for prompt in PROMPTS]
    service = Service(tokenizer, prompts=prompts, evidence=EvidenceConfig(kind="teacher_student"))
    for record in service.records():
        assert record.scored.student_logprobs is record.scored.sample.sampler_logprobs
    assert service.student.scored == []


# The teacher as sampler, and versions


def test_a_sampling_teacher_counts_as_the_students_version(tokenizer: Any) -> None:
    service = Service(tokenizer, version=7, sampler="teacher", evidence=EvidenceConfig(kind="teacher_student"),
                      student_model="student")  # fmt: skip
    produced = service.produce(3, student_version=9, teacher_version=4)
    assert (produced.version_min, produced.version_max) == (9, 9)
    assert len(service.teacher.sampled) == 3 and service.student.sampled == []
    for record in service.written[0][0]:
        sample = record.scored.sample
        assert (sample.policy_version_min, sample.policy_version_max, record.scored.teacher_version) == (9, 9, 4)
        # The sampler was the teacher: its log-probs are no student's, guided or not.
        under_x = fake_logprobs(sample.request.prompt_ids, sample.response_ids, "student")
        assert record.scored.student_logprobs is not None
        assert np.array_equal(record.scored.student_logprobs, under_x)
    assert [len(prompts) for prompts, _ in service.student.scored] == [4, 4, 4]


def test_the_students_engines_say_themselves_which_version_drew(tokenizer: Any) -> None:
    service = Service(tokenizer, version=7)
    produced = service.produce(0, student_version=9)
    assert (produced.version_min, produced.version_max) == (7, 7)
    assert {record.scored.teacher_version for record in service.written[0][0]} == {0}


# Rewards


def test_the_verifier_reads_the_decoded_response_of_its_own_prompt(tokenizer: Any) -> None:
    seen: list[tuple[str, str]] = []

    def reward(prompt: TaskPrompt, response: str) -> float:
        seen.append((prompt.prompt_id, response))
        return float(len(seen) % 3 == 0)

    service = Service(tokenizer, reward=reward, evidence=EvidenceConfig(soft="rlsd_verifier", region="all"))
    produced = service.produce(2)
    records = service.written[0][0]
    assert seen == [
        (r.scored.sample.request.prompt_id, tokenizer.decode(r.scored.sample.response_ids, skip_special_tokens=True))
        for r in records
    ]
    rewards = [record.reward for record in records]
    assert rewards == [0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1]
    assert produced.rewards == RewardSums(4.0, 12, 0)
    for record in records:
        sign = 1 if record.reward else -1
        expected = np.clip(np.exp(sign * record.evidence.astype(np.float64)), 0.8, 1.2)
        assert record.weight == pytest.approx(expected, abs=1e-6)


def test_a_mix_decays_with_the_step(tokenizer: Any) -> None:
    rule = EvidenceConfig(soft="rlsd", soft_mix=0.5, soft_mix_decay_steps=4)
    for step, left in ((0, 0.5), (3, 0.125), (4, 0.0)):
        for record in Service(tokenizer, evidence=rule).records(step):
            soft = np.clip(np.exp(record.evidence.astype(np.float64)), 0.8, 1.2)
            assert record.weight == pytest.approx(1 - left + left * soft, abs=1e-6)


def test_groups_that_all_succeed_or_all_fail_are_counted(tokenizer: Any) -> None:
    firsts = iter([1.0] * 4 + [0.0] * 4 + [1.0, 0.0, 0.0, 0.0])
    produced = Service(tokenizer, reward=lambda prompt, response: next(firsts)).produce(0)
    assert produced.rewards == RewardSums(5.0, 12, 2)


def test_a_task_without_a_verifier_cannot_weigh_by_it(tokenizer: Any) -> None:
    service = Service(tokenizer, evidence=EvidenceConfig(soft="rlsd_verifier"))
    with pytest.raises(
        ValueError, match=r"^evidence\.soft: found 'rlsd_verifier', expected a reward for every rollout"
    ):
        service.produce(0)
    assert service.written == []


BROKEN = {"first": (0, 0, np.nan), "last": (-1, -1, np.inf), "other": (1, 0, -np.inf)}


def breaking(service: Service, of_group: int, row: int, token: int, value: float) -> None:
    """The teacher's score of x, of one row of one group, is not finite at one token."""
    score, calls = service.teacher.score, 0

    async def broken(prompts: Any, responses: Any, base: bool = False) -> Any:
        nonlocal calls
        scores = await score(prompts, responses, base)
        calls += 1
        if calls == 2 * of_group + 1:  # a group is scored under x, and then under (x, r)
            scores[row][token] = value
        return scores

    service.teacher.score = broken  # type: ignore[method-assign]


@pytest.mark.parametrize(("row", "token", "value"), BROKEN.values(), ids=BROKEN)
def test_a_rollout_whose_scores_are_not_finite_is_refused_and_named(
    tokenizer: Any, row: int, token: int, value: float
) -> None:
    service = Service(tokenizer)
    breaking(service, 0, row, token, value)
    with pytest.raises(RuntimeError) as caught:
        service.produce(0)
    what = r"scoring: rollout 000000-000-\d+: teacher_logprobs: found (nan|inf|-inf) at token \d+, expected finite "
    assert re.match(what, str(caught.value)), caught.value


@pytest.mark.parametrize(("row", "token", "value"), BROKEN.values(), ids=BROKEN)
def test_it_is_left_out_and_counted_where_the_recipe_says_so(
    tokenizer: Any, row: int, token: int, value: float
) -> None:
    whole, service = Service(tokenizer), Service(tokenizer)
    service.worker._skips = True
    breaking(service, 1, row, token, value)
    produced, expected = service.produce(0), [one.scored.sample.request.rollout_id for one in whole.records(0)]
    del expected[4 + row % 4]
    assert [one.scored.sample.request.rollout_id for one in service.written[0][0]] == expected
    assert produced.nonfinite == 1 and produced.shard.rows == len(expected)


def test_a_group_of_which_nothing_is_left_is_an_error_also_then(tokenizer: Any) -> None:
    service = Service(tokenizer)
    service.worker._skips = True

    async def lost(prompts: Any, responses: Any, base: bool = False) -> Any:
        return [np.full(len(response), np.nan, np.float32) for response in responses]

    service.teacher.score = lost  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match=r"^scoring: found no rollout of group 000000-000 with finite log-probs"):
        service.produce(0)


def test_what_is_skipped_has_a_bound() -> None:
    skipped = Skipped(FaultsConfig(nonfinite="skip", max_nonfinite=3))
    for count in (0, 2, 1):
        skipped.add(count)
    with pytest.raises(RuntimeError, match=r"^found 4 rollouts and updates that are not finite, expected at most 3 \("):
        skipped.add(1)
