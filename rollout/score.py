"""The views of a response that evidence is made of, each from one engine and one numerics."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Protocol

from evidence.records import Floats, Ids, Sample, ScoredSample


class Scorer(Protocol):
    """log pi(y_t | prompt, y_<t) per response token: float32 [T] a row, rows in the order given."""

    async def score(self, prompts: Sequence[Ids], responses: Sequence[Ids]) -> list[Floats]: ...


Pass = Sequence[tuple[Ids, Sample]]  # the prompts to score samples' responses under


async def score_all(
    teacher: Scorer,
    samples: Sequence[Sample],
    teacher_version: int = 0,
    student: Scorer | None = None,
    sampled_by_student: bool = True,
) -> tuple[list[ScoredSample], int]:
    """log pi_T(y|x), log pi_T(y|x,r), log pi_T(y|x,r_w) for each wrong context and, given a student, log pi_theta(y|x).

    A row whose r is empty is scored under x only: its contrasts are then exactly 0, not the noise between two batches.
    The student scores what it did not itself sample from x; there the sampler's log-prob is the one wanted. That of a
    guided rollout never is, since it was computed with r (arXiv 2605.23493).

    Returns:
        the scored samples, in order, and their prompt and response tokens, a shared prompt counted in each.
    """
    under_x = [(sample.request.prompt_ids, sample) for sample in samples]
    under_r = [(sample.request.context_prompt_ids, sample) for sample in samples if _has_context(sample)]
    with_r = [sample for _, sample in under_r]
    under_wrong = [(ids, sample) for sample in with_r for ids in sample.request.wrong_context_prompt_ids]
    unknown = [(ids, sample) for ids, sample in under_x if not (sampled_by_student and _was_sampled_from_x(sample))]
    passes = ((teacher, under_x), (teacher, under_r), (teacher, under_wrong), (student, unknown))
    wanted = [(scorer, work) for scorer, work in passes if scorer is not None]
    asked = iter(await asyncio.gather(*(_score(scorer, work) for scorer, work in wanted if work)))  # each is a task
    found = [next(asked) if work else {} for _, work in wanted]
    scored = [_gather(sample, teacher_version, *found) for sample in samples]
    return scored, sum(len(ids) + len(sample.response_ids) for _, work in wanted for ids, sample in work)


def _has_context(sample: Sample) -> bool:
    return sample.request.context_prompt_ids.tobytes() != sample.request.prompt_ids.tobytes()


def _was_sampled_from_x(sample: Sample) -> bool:
    return sample.request.sampler_ids.tobytes() == sample.request.prompt_ids.tobytes()


Scores = Mapping[str, list[Floats]]  # of one pass, by rollout_id


async def _score(scorer: Scorer, work: Pass) -> Scores:
    scores: defaultdict[str, list[Floats]] = defaultdict(list)
    rows = await scorer.score([ids for ids, _ in work], [sample.response_ids for _, sample in work])
    for (_, sample), logprobs in zip(work, rows, strict=True):
        scores[sample.request.rollout_id].append(logprobs)
    return scores


def _gather(
    sample: Sample, version: int, plain: Scores, contextual: Scores, wrong: Scores, student: Scores | None = None
) -> ScoredSample:
    rollout = sample.request.rollout_id
    return ScoredSample(
        sample=sample,
        teacher_context_logprobs=contextual.get(rollout, plain[rollout])[0],
        teacher_logprobs=plain[rollout][0],
        teacher_version=version,
        student_logprobs=None if student is None else student.get(rollout, [sample.sampler_logprobs])[0],
        wrong_context_logprobs=tuple(wrong.get(rollout, plain[rollout] * len(sample.request.wrong_context_prompt_ids))),
    )
