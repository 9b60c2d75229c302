"""The teacher's two views of a response, from one engine and one numerics."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from evidence.records import Floats, Ids, Sample, ScoredSample


class Scorer(Protocol):
    """log pi_T(y_t | prompt, y_<t) per response token: float32 [T] a row, rows in the order given."""

    async def score(self, prompts: Sequence[Ids], responses: Sequence[Ids]) -> list[Floats]: ...


async def score_twice(scorer: Scorer, samples: Sequence[Sample], teacher_version: int) -> list[ScoredSample]:
    """log pi_T(y|x,r) and log pi_T(y|x) of every sample (arXiv 2605.23493).

    A row whose r is empty is scored once: its evidence is then exactly 0, not the noise between two batches.
    """
    responses = [sample.response_ids for sample in samples]
    contrasted = [index for index, sample in enumerate(samples) if _has_context(sample)]
    plain, contextual = await asyncio.gather(
        scorer.score([sample.request.prompt_ids for sample in samples], responses),
        scorer.score(
            [samples[index].request.context_prompt_ids for index in contrasted], [responses[i] for i in contrasted]
        ),
    )
    with_context = dict(zip(contrasted, contextual, strict=True))
    return [
        ScoredSample(
            sample=sample,
            teacher_context_logprobs=with_context.get(index, plain[index]),
            teacher_logprobs=plain[index],
            teacher_version=teacher_version,
        )
        for index, sample in enumerate(samples)
    ]


def _has_context(sample: Sample) -> bool:
    return sample.request.context_prompt_ids.tobytes() != sample.request.prompt_ids.tobytes()
