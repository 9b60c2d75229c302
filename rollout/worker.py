"""One step of the rollout service: sample, score, judge, write."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from evidence.records import EvidenceRecord, RolloutRequest, Sample, ShardInfo
from evidence.rule import EvidenceConfig, judge
from rollout.config import RolloutConfig, SamplingConfig
from rollout.guidance import guided_flags
from rollout.render import Renderer
from rollout.score import Scorer, score_twice
from rollout.tasks.base import TaskPrompt


class Sampler(Protocol):
    """Responses from the current student, in the order of `requests`."""

    async def sample(self, requests: Sequence[RolloutRequest], sampling: SamplingConfig, seed: int) -> list[Sample]: ...


@dataclass(frozen=True)
class StageTime:
    """One stage's own wall time and the tokens that it worked on."""

    seconds: float
    tokens: int


@dataclass(frozen=True)
class StepRollouts:
    """What the rollout service hands over for one step."""

    step: int
    shard: ShardInfo
    refused: int  # prompts that do not fit the window
    version_min: int
    version_max: int
    stages: dict[str, StageTime]


class RolloutWorker:
    """Draws each step's prompts in a seeded order and turns them into a shard of judged rollouts."""

    def __init__(
        self,
        prompts: Sequence[TaskPrompt],
        renderer: Renderer,
        config: RolloutConfig,
        evidence: EvidenceConfig,
        window: int,
        seed: int,
        sampler: Sampler,
        scorer: Scorer,
        write: Callable[[Sequence[EvidenceRecord], int], ShardInfo],
    ) -> None:
        self.prompts, self.renderer, self.config, self.evidence = prompts, renderer, config, evidence
        self.window, self.seed = window, seed
        self.sampler, self.scorer, self.write = sampler, scorer, write

    async def produce(self, step: int, teacher_version: int = 0) -> StepRollouts:
        requests, refused = self.requests(step)
        clock = Stopwatch()
        sampling = SamplingConfig(self.config.temperature, self.config.max_response_tokens)
        samples = await self.sampler.sample(requests, sampling, seed=step_seed(self.seed, step))
        sampled = clock.stage(sum(len(sample.response_ids) for sample in samples))
        scored = await score_twice(self.scorer, samples, teacher_version)
        scoring = clock.stage(sum(_scored_tokens(sample) for sample in samples))
        records = [judge(one, self.evidence) for one in scored]
        shard = self.write(records, step)
        written = clock.stage(shard.tokens)
        return StepRollouts(
            step=step,
            shard=shard,
            refused=refused,
            version_min=min(sample.policy_version_min for sample in samples),
            version_max=max(sample.policy_version_max for sample in samples),
            stages={"sample": sampled, "score": scoring, "write": written},
        )

    def requests(self, step: int) -> tuple[list[RolloutRequest], int]:
        """The step's requests and how many prompts were refused since they do not fit: nothing is ever cut.

        Raises:
            ValueError: more than `max_refused_fraction` of the prompts, or all of them, were refused.
        """
        requests: list[RolloutRequest] = []
        refusals: list[str] = []
        for slot, prompt in enumerate(self._draw(step)):
            made = self._group(prompt, f"{step:06d}-{slot:03d}", step, slot)
            longest = max(len(made[0].prompt_ids), len(made[0].context_prompt_ids))
            if longest + self.config.max_response_tokens > self.window:
                refusals.append(f"{prompt.prompt_id} has {longest} prompt tokens")
            else:
                requests.extend(made)
        if not requests or len(refusals) > self.config.max_refused_fraction * self.config.prompts_per_step:
            raise ValueError(
                f"rollout.max_refused_fraction: step {step}: found {len(refusals)} of {self.config.prompts_per_step} "
                f"prompts refused ({refusals[0]}; with {self.config.max_response_tokens} response tokens the window of "
                f"{self.window} is exceeded), expected at most {self.config.max_refused_fraction:.0%}: shorten the "
                "context or raise student.window and teacher.window"
            )
        return requests, len(refusals)

    def _draw(self, step: int) -> list[TaskPrompt]:
        """Epoch after epoch, each in its own seeded order; a pure function of seed and step, so a resume continues."""
        total = len(self.prompts)
        first = step * self.config.prompts_per_step
        places = range(first, first + self.config.prompts_per_step)
        order = {
            epoch: np.random.default_rng([self.seed, epoch]).permutation(total)
            for epoch in {p // total for p in places}
        }
        return [self.prompts[order[place // total][place % total]] for place in places]

    def _group(self, prompt: TaskPrompt, group: str, step: int, slot: int) -> list[RolloutRequest]:
        x = self.renderer.prompt_ids(prompt.question)
        x_with_r = self.renderer.context_prompt_ids(prompt.question, prompt.context)
        rng = np.random.default_rng([self.seed, step, slot])
        flags = guided_flags(self.config.samples_per_prompt, self.config.guided_fraction, self.config.guided_split, rng)
        return [
            RolloutRequest(
                rollout_id=f"{group}-{index:03d}",
                prompt_id=prompt.prompt_id,
                group_id=group,
                guided=guided,
                context_position=self.config.context_position,
                prompt_ids=x,
                context_prompt_ids=x_with_r,
            )
            for index, guided in enumerate(flags)
        ]


class Stopwatch:
    """Splits one span of wall time into stages that follow each other."""

    def __init__(self) -> None:
        self._mark = time.perf_counter()

    def stage(self, tokens: int) -> StageTime:
        """The time since the last call, for `tokens` tokens of work."""
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        return StageTime(seconds, tokens)


def step_seed(seed: int, step: int) -> int:
    """The engine's seed of a step, far from its neighbours since vLLM adds the sample's index to it."""
    return int(np.random.default_rng([seed, step]).integers(2**31))


def _scored_tokens(sample: Sample) -> int:
    request = sample.request
    return len(request.prompt_ids) + len(request.context_prompt_ids) + 2 * len(sample.response_ids)
