"""What a step asks of the engines: prompts in a seeded order, rendered, each a group of guided and plain samples."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from evidence.records import Ids, RolloutRequest
from evidence.require import require
from evidence.rule import EvidenceConfig
from rollout.arrival import Difference
from rollout.config import RolloutConfig
from rollout.contrast import num_wrong_contexts, pick_wrong_contexts
from rollout.guidance import guided_flags
from rollout.render import Pair, Question, Renderer
from rollout.tasks.base import TaskPrompt
from rollout.template import Refusal

EVEN = 1e-9  # a share times a place that is a whole number but for rounding


@dataclass(frozen=True)
class GroupRequests:
    """The samples of one prompt, drawn by one engine with seeds that follow `seed`."""

    place: int  # among all groups of the run
    seed: int
    rows: tuple[RolloutRequest, ...]
    end_ids: tuple[int, ...]  # each of them ends a response

    @property
    def name(self) -> str:
        return self.rows[0].group_id

    def again(self) -> "GroupRequests":
        """The same requests for other samples."""
        return replace(self, seed=int(np.random.default_rng(self.seed).integers(2**31)))


class StepRequests:
    """The requests of each step, a pure function of the seed and the step."""

    def __init__(
        self,
        prompts: Sequence[TaskPrompt],
        renderer: Renderer,
        config: RolloutConfig,
        evidence: EvidenceConfig,
        window: int,
        seed: int,
        source: str = "",
    ) -> None:
        """source: the file of the prompts, for messages."""
        self.prompts, self.renderer, self.config, self.source = prompts, renderer, config, source
        self.num_wrong, self.window, self.seed = num_wrong_contexts(evidence), window, seed
        self._order = lru_cache(4)(self._shuffled)  # many steps draw from one epoch, and a shuffle costs its rows
        self._pools = [[prompt for prompt in prompts if prompt.is_ordinary == kind] for kind in (False, True)]
        expected = "0.0 with a task without ordinary questions, such as task.ordinary_questions = true adds"
        share = config.ordinary_share
        require(not share or all(self._pools), "rollout.ordinary_share", share, expected)

    def of(self, step: int) -> tuple[list[GroupRequests], int]:
        """The step's groups and how many prompts were refused since they do not fit: nothing is ever cut.

        Raises:
            ValueError: more than `max_refused_fraction` of the prompts, or all of them, were refused.
        """
        groups, refusals = [], []
        for slot, prompt in enumerate(self._draw(step)):
            group = self._group(prompt, step, slot)
            refusal = self._refusal(prompt, max(len(ids) for ids in _prompts(group.rows[0])))
            if refusal:
                refusals.append(refusal)
            else:
                groups.append(group)
        self._judge(step, refusals)
        return groups, len(refusals)

    def rendered_by(self, renderer: Renderer) -> "StepRequests":
        """The same by another renderer."""
        other = copy(self)
        other.renderer = renderer
        return other

    def check(self, steps: int, lengths_of: Callable[[Collection[Pair]], Mapping[Pair, int]]) -> dict[str, str]:
        """Why a prompt that the run draws is refused, by its prompt_id; lengths_of: each prompt's tokens.

        Raises:
            ValueError: what `of` would, at the first of the run's `steps` that has it; or the first prompt that the
                template refuses.
        """
        drawn = [
            [(prompt, self._pairs(prompt, step, slot)) for slot, prompt in enumerate(self._draw(step))]
            for step in range(steps)
        ]
        try:
            lengths = lengths_of({pair for slots in drawn for _, pairs in slots for pair in pairs})
        except Refusal:
            for prompt, pairs in (one for slots in drawn for one in slots):
                for pair in pairs:
                    self._difference(prompt.prompt_id, *pair)  # raises for the one at fault
            raise
        refused: dict[str, str] = {}
        for step, slots in enumerate(drawn):
            found = [
                (prompt.prompt_id, self._refusal(prompt, max(lengths[pair] for pair in pairs)))
                for prompt, pairs in slots
            ]
            refusals = [(name, reason) for name, reason in found if reason]
            self._judge(step, [reason for _, reason in refusals])
            refused |= dict(refusals)
        return refused

    def differences(self, steps: int) -> Counter[Difference]:
        """What tells (x, r) from x beside r, and in how many of the prompts that the run draws.

        Raises:
            ValueError: names a prompt of which a text, r or a wrong context does not arrive as it was written, or whose
                context changes what follows its question.
        """
        drawn = {
            (prompt.prompt_id, *pair): None
            for step in range(steps)
            for slot, prompt in enumerate(self._draw(step))
            for pair in _with_context(self._pairs(prompt, step, slot))
        }
        found = (self._difference(*one) for one in drawn)
        return Counter(one for one in found if one is not None)

    def _difference(self, prompt_id: str, question: Question, context: str) -> Difference | None:
        """`Renderer.difference`, whose faults name the prompt and its file."""
        try:
            return self.renderer.difference(question, context)
        except ValueError as error:
            source = f"{self.source}: " if self.source else ""
            raise ValueError(f"{source}prompt {prompt_id}: {error}") from error

    def _refusal(self, prompt: TaskPrompt, longest: int) -> str:
        """Why it is refused, or nothing."""
        fits = longest + self.config.max_response_tokens <= self.window
        return "" if fits else f"{prompt.prompt_id} has {longest} prompt tokens"

    def _judge(self, step: int, refusals: Sequence[str]) -> None:
        per_step, most = self.config.prompts_per_step, self.config.max_refused_fraction
        if refusals and (len(refusals) == per_step or len(refusals) > most * per_step):
            raise ValueError(
                f"rollout.max_refused_fraction: step {step}: found {len(refusals)} of {per_step} "
                f"prompts refused ({refusals[0]}; with {self.config.max_response_tokens} response tokens the window of "
                f"{self.window} is exceeded), expected at most {most:.0%}: shorten the "
                "context or raise student.window and teacher.window"
            )

    def _draw(self, step: int) -> list[TaskPrompt]:
        """A pure function of seed and step, so that a resume continues."""
        first = step * self.config.prompts_per_step
        places = range(first, first + self.config.prompts_per_step)
        share = self.config.ordinary_share
        if not share:
            return self._drawn(self.prompts, places)
        # The k-th slot of the run is ordinary where the share of those before it reaches the next whole number.
        before = [math.floor(share * place + EVEN) for place in (*places, places.stop)]
        taken = self._drawn(self._pools[0], range(first - before[0], places.stop - before[-1]))
        ordinary = self._drawn(self._pools[1], range(before[0], before[-1]), 0, 2)
        return [(ordinary if after > now else taken).pop(0) for now, after in pairwise(before)]

    def _drawn(self, prompts: Sequence[TaskPrompt], places: range, *stream: int) -> list[TaskPrompt]:
        """Of some prompts those at `places`: epoch after epoch, each in an order of its own."""
        total = len(prompts)
        return [prompts[self._order(total, place // total, *stream)[place % total]] for place in places]

    def _shuffled(self, total: int, epoch: int, *stream: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch, *stream]).permutation(total)

    def _pairs(self, prompt: TaskPrompt, step: int, slot: int) -> list[Pair]:
        """(question, context) of each prompt that the group is scored under: without one, with r, with wrong ones."""
        # A generator of its own: who is guided and what is contrasted do not move each other.
        wrong = (
            pick_wrong_contexts(prompt, self.num_wrong, np.random.default_rng([self.seed, step, slot, 1]))
            if self.num_wrong  # a generator costs more than all else here, and a long run has many slots
            else ()
        )
        return [(prompt.turns, context) for context in ("", self._wording(prompt, step, slot), *wrong)]

    def _wording(self, prompt: TaskPrompt, step: int, slot: int) -> str:
        """Of r the wording that the group has."""
        if not prompt.wordings:
            return prompt.context
        rng = np.random.default_rng([self.seed, step, slot, 3])
        return prompt.contexts[int(rng.integers(len(prompt.contexts)))]

    def _group(self, prompt: TaskPrompt, step: int, slot: int) -> GroupRequests:
        x, x_with_r, *x_with_wrong = (
            self.renderer.context_prompt_ids(*pair) for pair in self._pairs(prompt, step, slot)
        )
        name, count = f"{step:06d}-{slot:03d}", self.config.samples_per_prompt
        rng = np.random.default_rng([self.seed, step, slot])
        flags = guided_flags(count, self.config.guided_fraction, self.config.guided_split, rng)
        rows = tuple(
            RolloutRequest(
                rollout_id=f"{name}-{index:03d}",
                prompt_id=prompt.prompt_id,
                group_id=name,
                guided=guided and bool(prompt.context.strip()),
                context_position=self.config.context_position,
                prompt_ids=x,
                context_prompt_ids=x_with_r,
                wrong_context_prompt_ids=tuple(x_with_wrong),
            )
            for index, guided in enumerate(flags)
        )
        place = step * self.config.prompts_per_step + slot
        return GroupRequests(place, step_seed(self.seed, step) + slot * count, rows, self.renderer.eos_token_ids)


@lru_cache(1)  # every group of a step asks
def step_seed(seed: int, step: int) -> int:
    """The engine's seed of a step, far from its neighbours since vLLM adds the sample's index to it."""
    return int(np.random.default_rng([seed, step]).integers(2**31))


def _with_context(pairs: list[Pair]) -> list[Pair]:
    """Those that have one, or x alone where none has."""
    return [pair for pair in pairs if pair[1].strip()] or pairs[:1]


def _prompts(request: RolloutRequest) -> tuple[Ids, ...]:
    return (request.prompt_ids, request.context_prompt_ids, *request.wrong_context_prompt_ids)
