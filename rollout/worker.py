"""One step of the rollout service: sample, score, judge, write."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from evidence.advantage import reward_mean, zero_variance_groups
from evidence.records import EvidenceRecord, RolloutRequest, Sample, ShardInfo
from evidence.rule import EvidenceConfig, judge_all
from rollout.config import SamplingConfig
from rollout.requests import StepRequests
from rollout.score import Scorer, score_all
from rollout.tasks.base import TaskPrompt


class Sampler(Protocol):
    """Responses from the student's or the teacher's engines, in the order of `requests`."""

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
    reward_mean: float | None  # None without a verifier
    zero_variance_groups: int  # groups whose rewards are all equal, so that their advantage is 0

    def reward_figures(self) -> dict[str, float]:
        """What the step's metrics say of its rewards: nothing without a verifier."""
        if self.reward_mean is None:
            return {}
        return {"reward_mean": self.reward_mean, "zero_variance_groups": self.zero_variance_groups}


class RolloutWorker:
    """Turns each step's requests into a shard of judged rollouts.

    reward: the task's verifier, of a prompt and a decoded response. student_scorer: the student's engines, needed by
    `teacher_student` evidence only.
    """

    def __init__(
        self,
        requests: StepRequests,
        evidence: EvidenceConfig,
        sampler: Sampler,
        scorer: Scorer,
        write: Callable[[Sequence[EvidenceRecord], int], ShardInfo],
        reward: Callable[[TaskPrompt, str], float | None] = lambda prompt, response: None,
        student_scorer: Scorer | None = None,
    ) -> None:
        self.requests, self.evidence, self.config = requests, evidence, requests.config
        self.sampler, self.scorer, self.write, self.reward = sampler, scorer, write, reward
        self.student_scorer = student_scorer if evidence.kind == "teacher_student" else None
        self._by_id = {prompt.prompt_id: prompt for prompt in requests.prompts}
        assert len(self._by_id) == len(requests.prompts), "a prompt_id twice"

    async def produce(self, step: int, student_version: int = 0, teacher_version: int = 0) -> StepRollouts:
        """Samples, scores, judges and writes one step.

        student_version: what the student's engines hold; it stamps the samples only where the teacher draws them,
        since the student's engines say themselves which version drew each. teacher_version: what scores them.
        """
        requests, refused = self.requests.of(step)
        clock = Stopwatch()
        samples = await self._sample(requests, step, student_version)
        sampled = clock.stage(sum(len(sample.response_ids) for sample in samples))
        by_student = self.config.sampler == "student"
        scored, tokens = await score_all(self.scorer, samples, teacher_version, self.student_scorer, by_student)
        scoring = clock.stage(tokens)
        rewards = [self._reward(sample) for sample in samples]
        shard = self.write(judge_all(scored, rewards, self.evidence, step), step)
        written = clock.stage(shard.tokens)
        return StepRollouts(
            step=step,
            shard=shard,
            refused=refused,
            version_min=min(sample.policy_version_min for sample in samples),
            version_max=max(sample.policy_version_max for sample in samples),
            stages={"sample": sampled, "score": scoring, "write": written},
            reward_mean=reward_mean(rewards),
            zero_variance_groups=zero_variance_groups(rewards, [request.group_id for request in requests]),
        )

    async def _sample(self, requests: Sequence[RolloutRequest], step: int, student_version: int) -> list[Sample]:
        sampling = SamplingConfig(self.config.temperature, self.config.max_response_tokens)
        samples = await self.sampler.sample(requests, sampling, seed=step_seed(self.requests.seed, step))
        if self.config.sampler == "student":
            return samples
        return [
            replace(sample, policy_version_min=student_version, policy_version_max=student_version)
            for sample in samples
        ]

    def _reward(self, sample: Sample) -> float | None:
        return self.reward(self._by_id[sample.request.prompt_id], self.requests.renderer.decode(sample.response_ids))


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
