"""The stages of the rollout service: sample, score, judge, write."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Protocol

from evidence.advantage import Rewards, RewardSums, reward_sums
from evidence.records import EvidenceRecord, RolloutRequest, Sample, ScoredSample, ShardInfo
from evidence.rule import EvidenceConfig, judge_all
from evidence.schema import reads
from evidence.streams import are_finite, not_finite
from evidence.telemetry import Activity
from rollout.config import RolloutConfig, SamplingConfig
from rollout.requests import GroupRequests, StepRequests
from rollout.score import Scorer, score_all
from rollout.stages import SERVICE, VERIFY, WRITE, Meter, StageTime, Stopwatch
from rollout.tasks.base import TaskPrompt
from rollout.tasks.boxed_pool import Verdicts

VERIFYING = 8  # answers at once, in threads beside the loop
Verifier = Callable[[], float | None]  # of one response: blocks for as long as it takes


class Sampler(Protocol):
    """Responses from the student's or the teacher's engines, in the order of `requests`. begun: see
    `rollout.stream.Roller`."""

    async def sample(
        self,
        requests: Sequence[RolloutRequest],
        sampling: SamplingConfig,
        seed: int,
        *,
        begun: Callable[[], None] = lambda: None,
    ) -> list[Sample]: ...


@dataclass(frozen=True)
class Group:
    """One prompt's rollouts, scored; rewards are None without a verifier. nonfinite: rollouts that were left out."""

    requests: GroupRequests
    scored: tuple[ScoredSample, ...]
    rewards: Rewards
    nonfinite: int = 0

    @cached_property
    def version_min(self) -> int:
        return min(scored.sample.policy_version_min for scored in self.scored)

    @cached_property
    def version_max(self) -> int:
        return max(scored.sample.policy_version_max for scored in self.scored)


@dataclass(frozen=True)
class Taken:
    """Whole groups for one step, in the order in which they began."""

    groups: list[Group]
    refused: int  # prompts that do not fit the window
    dropped: int  # rollouts beyond the staleness bound, sampled again


@dataclass(frozen=True)
class StepRollouts:
    """What the rollout service hands over for one step."""

    step: int
    shard: ShardInfo
    refused: int  # prompts that do not fit the window
    dropped: int  # rollouts beyond the staleness bound, sampled again
    version_min: int
    version_max: int
    stages: dict[str, StageTime]
    busy_s: float  # in which any of the stages was at work: they overlap
    rewards: RewardSums | None  # None without a verifier
    truncated: int = 0  # responses that the limit on their tokens ended
    verdicts: Verdicts = field(default_factory=Verdicts)  # of the verifier's processes, since the shard before
    nonfinite: int = 0  # rollouts with a log-prob that is not finite, left out


class RolloutWorker:
    """Turns groups of requests into a shard of judged rollouts.

    reward: the task's verifier, see `rewarder`. verdicts: what its processes have said so far. student_scorer: the
    student's engines, needed by `teacher_student` evidence only. skips: whether a rollout with a log-prob that is not
    finite is left out; otherwise it is an error. activity: of the service. verifies: whether the task has what can be
    verified; else nobody is asked, and no response is decoded for it.
    """

    def __init__(
        self,
        config: RolloutConfig,
        evidence: EvidenceConfig,
        sampler: Sampler,
        scorer: Scorer,
        write: Callable[[Sequence[EvidenceRecord], int], Awaitable[ShardInfo]],
        reward: Callable[[Sample], Verifier] = lambda sample: lambda: None,
        student_scorer: Scorer | None = None,
        verdicts: Callable[[], Verdicts] = Verdicts,
        skips: bool = False,
        activity: Activity | None = None,
        verifies: bool = True,
    ) -> None:
        self.config, self.evidence = config, evidence
        self.sampler, self.scorer, self._write, self.reward = sampler, scorer, write, reward
        self.student_scorer = student_scorer if reads(evidence.kind, "student_logprobs") else None
        self._skips, self._activity, self._verifies = skips, activity or Activity(), verifies
        self._sampling, self._scoring, self._any = Meter(), Meter(), Meter()
        self._beside = ThreadPoolExecutor(VERIFYING, "verifying")
        self._verdicts, self._told = verdicts, verdicts()

    async def sample(
        self, group: GroupRequests, student_version: int, begun: Callable[[], None] = lambda: None
    ) -> list[Sample]:
        """The group's responses.

        student_version: what the student's engines hold; it stamps the samples only where the teacher draws them,
        since the student's engines say themselves which version drew each. begun: see `rollout.stream.Roller`.
        """
        sampling = SamplingConfig(self.config.temperature, self.config.max_response_tokens, end_ids=group.end_ids)
        by_student = self.config.sampler == "student"
        if not by_student:
            begun()  # the stamp is of now
        with self._any.piece(), self._sampling.piece():
            told = begun if by_student else lambda: None
            samples = await self.sampler.sample(group.rows, sampling, group.seed, begun=told)
        self._sampling.count(sum(len(sample.response_ids) for sample in samples))
        if by_student:
            return samples
        return [
            replace(sample, policy_version_min=student_version, policy_version_max=student_version)
            for sample in samples
        ]

    async def verify(self, samples: Sequence[Sample]) -> Rewards:
        """The responses' rewards, None where the task has nothing to verify. The loop goes on meanwhile."""
        if not self._verifies:
            return (None,) * len(samples)
        loop = asyncio.get_running_loop()
        verifiers = [self.reward(sample) for sample in samples]
        with self._any.piece(), self._activity.piece(SERVICE, VERIFY):
            return tuple(await asyncio.gather(*(loop.run_in_executor(self._beside, ask) for ask in verifiers)))

    async def score(
        self, group: GroupRequests, samples: Sequence[Sample], rewards: Rewards, teacher_version: int
    ) -> Group:
        """The group with every view that its evidence is made of."""
        by_student = self.config.sampler == "student"
        with self._any.piece(), self._scoring.piece():
            scored, tokens = await score_all(self.scorer, samples, teacher_version, self.student_scorer, by_student)
        self._scoring.count(tokens)
        pairs = list(zip(scored, rewards, strict=True))
        kept = pairs if are_finite(scored) else [pair for pair in pairs if self._is_finite(pair[0])]
        if not kept:
            raise RuntimeError(f"scoring: found no rollout of group {group.name} with finite log-probs, expected some")
        finite, theirs = zip(*kept, strict=True)
        return Group(group, finite, theirs, nonfinite=len(scored) - len(kept))

    def _is_finite(self, scored: ScoredSample) -> bool:
        """RuntimeError names a rollout that is not, where none is left out."""
        found = not_finite(scored)
        if not found:
            return True
        what = f"scoring: rollout {scored.sample.request.rollout_id}: {found}, expected finite log-probs"
        if not self._skips:
            raise RuntimeError(what)
        print(f"{what}: it is left out", flush=True)
        return False

    async def write(self, taken: Taken, step: int) -> StepRollouts:
        """Judges the groups of one step together, since a threshold may be the step's own, and writes their shard."""
        scored = [one for group in taken.groups for one in group.scored]
        rewards = [reward for group in taken.groups for reward in group.rewards]
        clock = Stopwatch()
        with self._any.piece(), self._activity.piece(SERVICE, WRITE):
            shard = await self._write(judge_all(scored, rewards, self.evidence, step), step)
        self._told, before = self._verdicts(), self._told
        stages = {"sample": self._sampling.take(), "score": self._scoring.take(), "write": clock.stage(shard.tokens)}
        return StepRollouts(
            step=step,
            shard=shard,
            refused=taken.refused,
            dropped=taken.dropped,
            version_min=min(group.version_min for group in taken.groups),
            version_max=max(group.version_max for group in taken.groups),
            stages=stages,
            busy_s=self._any.take().seconds,
            rewards=reward_sums(rewards, [one.sample.request.group_id for one in scored]),
            truncated=sum(one.sample.finish_reason == "length" for one in scored),
            verdicts=self._told - before,
            nonfinite=sum(group.nonfinite for group in taken.groups),
        )


def rewarder(requests: StepRequests, reward: Callable[[TaskPrompt, str], float | None]) -> Callable[[Sample], Verifier]:
    """The task's verifier, of a prompt and a response's answer, for a sample of `requests`. The answer is read by who
    asks: a tokenizer is no thing for two threads."""
    prompts = {prompt.prompt_id: prompt for prompt in requests.prompts}
    assert len(prompts) == len(requests.prompts), "a prompt_id twice"
    return lambda sample: partial(
        reward, prompts[sample.request.prompt_id], requests.renderer.answer_of_ids(sample.response_ids)
    )
