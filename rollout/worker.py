"""One step of the rollout service: sample, score, judge, write."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from evidence.advantage import reward_mean, zero_variance_groups
from evidence.records import EvidenceRecord, Ids, RolloutRequest, Sample, ShardInfo
from evidence.rule import EvidenceConfig, judge_all
from rollout.config import RolloutConfig, SamplingConfig
from rollout.contrast import num_wrong_contexts, pick_wrong_contexts
from rollout.guidance import guided_flags
from rollout.render import Renderer
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
    """Draws each step's prompts in a seeded order and turns them into a shard of judged rollouts.

    reward: the task's verifier, of a prompt and a decoded response. student_scorer: the student's engines, needed by
    `teacher_student` evidence only.
    """

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
        reward: Callable[[TaskPrompt, str], float | None] = lambda prompt, response: None,
        student_scorer: Scorer | None = None,
    ) -> None:
        self.prompts, self.renderer, self.config, self.evidence = prompts, renderer, config, evidence
        self.window, self.seed = window, seed
        self.sampler, self.scorer, self.write = sampler, scorer, write
        self.reward = reward
        self.student_scorer = student_scorer if evidence.kind == "teacher_student" else None
        self._by_id = {prompt.prompt_id: prompt for prompt in prompts}
        assert len(self._by_id) == len(prompts), "a prompt_id twice"

    async def produce(self, step: int, student_version: int = 0, teacher_version: int = 0) -> StepRollouts:
        """Samples, scores, judges and writes one step.

        student_version: what the student's engines hold; it stamps the samples only where the teacher draws them,
        since the student's engines say themselves which version drew each. teacher_version: what scores them.
        """
        requests, refused = self.requests(step)
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
        samples = await self.sampler.sample(requests, sampling, seed=step_seed(self.seed, step))
        if self.config.sampler == "student":
            return samples
        return [
            replace(sample, policy_version_min=student_version, policy_version_max=student_version)
            for sample in samples
        ]

    def _reward(self, sample: Sample) -> float | None:
        return self.reward(self._by_id[sample.request.prompt_id], self.renderer.decode(sample.response_ids))

    def requests(self, step: int) -> tuple[list[RolloutRequest], int]:
        """The step's requests and how many prompts were refused since they do not fit: nothing is ever cut.

        Raises:
            ValueError: more than `max_refused_fraction` of the prompts, or all of them, were refused.
        """
        requests: list[RolloutRequest] = []
        refusals: list[str] = []
        for slot, prompt in enumerate(self._draw(step)):
            made = self._group(prompt, f"{step:06d}-{slot:03d}", step, slot)
            longest = max(len(ids) for ids in _prompts(made[0]))
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
        # A generator of its own: who is guided and what is contrasted do not move each other.
        wrong_rng = np.random.default_rng([self.seed, step, slot, 1])
        wrong = pick_wrong_contexts(prompt, num_wrong_contexts(self.evidence), wrong_rng)
        x_with_wrong = tuple(self.renderer.context_prompt_ids(prompt.question, context) for context in wrong)
        return [
            RolloutRequest(
                rollout_id=f"{group}-{index:03d}",
                prompt_id=prompt.prompt_id,
                group_id=group,
                guided=guided,
                context_position=self.config.context_position,
                prompt_ids=x,
                context_prompt_ids=x_with_r,
                wrong_context_prompt_ids=x_with_wrong,
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


def _prompts(request: RolloutRequest) -> tuple[Ids, ...]:
    return (request.prompt_ids, request.context_prompt_ids, *request.wrong_context_prompt_ids)
