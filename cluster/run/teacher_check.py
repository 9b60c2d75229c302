"""A frozen teacher is to stay what it was: what it said of a fixed text at the run's first start is kept in the run's
folder, and compared at each start, after each wake-up and between steps."""

import json
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import numpy as np

from cluster.config import Recipe
from cluster.fleet.canary import CanaryText
from cluster.fleet.services import LearnerService, RolloutService
from cluster.run.rundir import RunDir
from evidence.files import write_whole
from evidence.lines import from_json
from evidence.patience import retried_beside
from evidence.records import Floats, Ids

# Nats a token, on average. Weights that were lost are several off; the learner may compute in another precision.
TOLERANCE, BESIDE_LEARNER = 0.1, 0.5
Attend = Callable[[Coroutine[Any, Any, Floats]], Awaitable[Floats]]


class TeacherCheck:
    """Of the frozen teacher of one run, if it has one.

    prompt_ids, text_ids: the text that it scores.
    """

    def __init__(self, recipe: Recipe, run_dir: RunDir, prompt_ids: Ids, text_ids: Ids) -> None:
        self._recipe, self._path, self._text = recipe, run_dir.teacher, (prompt_ids, text_ids)
        self._reference: CanaryText | None = None

    def is_due(self, version: int) -> bool:
        """Whether it is checked before the step from `version`."""
        every = self._recipe.faults.teacher_check_every
        return bool(every) and version % every == 0

    async def run(
        self, rollout: RolloutService, learner: LearnerService, version: int, attend: Attend = lambda work: work
    ) -> None:
        """RuntimeError names the engine that scores otherwise than the teacher did at first, and was replaced in vain.

        version: that the learner holds; at 0 it is the base, which is the teacher too unless that is another model.
        attend: gives weights to who is replaced meanwhile, since a student's engine may be the teacher.
        """
        if self._recipe.teacher.follows:
            return
        if self._reference is None:
            kept = await retried_beside(self._recipe.faults.store_s, self._path, self._kept)
            self._reference = kept or await self._first(rollout, learner, version, attend)
        await rollout.prove_teacher(self._reference, TOLERANCE)

    def _kept(self) -> CanaryText | None:
        """ValueError when the file is not that of this text."""
        if not self._path.exists():
            return None
        try:
            kept = from_json(self._path.read_text(encoding="utf-8"))
            scores = np.array(kept["logprobs"], np.float32)
            if kept["text_ids"] != self._text[1].tolist() or len(scores) != len(self._text[1]):
                raise ValueError("of another text")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self._path}: found no score of the frozen teacher ({error}), expected that of the run's first start"
            ) from error
        return CanaryText(*self._text, scores)

    async def _first(
        self, rollout: RolloutService, learner: LearnerService, version: int, attend: Attend
    ) -> CanaryText:
        found = await attend(rollout.teacher_scores(*self._text))
        if self._recipe.teacher.is_base and version == 0:
            what = "first score of the frozen teacher"
            expected = CanaryText(*self._text, await learner.score(f"{what}: learner", *self._text))
            expected.require(what, "its engine", "the learner", found, BESIDE_LEARNER)
        kept = {"text_ids": self._text[1].tolist(), "logprobs": [float(score) for score in found]}
        write = partial(write_whole, self._path, json.dumps(kept) + "\n")
        await retried_beside(self._recipe.faults.store_s, self._path, write)
        return CanaryText(*self._text, found)
