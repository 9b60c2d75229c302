"""Which weights a run ends with (`export.choose`): the last step's, the mean of several, or those of the best probe."""

from collections.abc import Mapping

from cluster.config import Recipe
from cluster.fleet.services import LearnerService
from cluster.run.record import ProbeRecord


class Choice:
    """Keeps what the run may end with.

    probes: those of the run so far by their step, each of its step's own weights.
    """

    def __init__(self, recipe: Recipe, learner: LearnerService, probes: Mapping[int, ProbeRecord]) -> None:
        self._run, self._choose, self._learner, self._probes = recipe.run, recipe.export.choose, learner, probes
        self._best = -1.0  # the main rate of the probe whose weights are kept

    @property
    def is_best(self) -> bool:
        return self._choose == "best"

    def probes(self, version: int) -> bool:
        """Whether the weights of `version` have a probe of their own, before that of the weights to end with."""
        on_the_way = bool(self._run.probe_every) and version % self._run.probe_every == 0
        return self.is_best if version == self._run.steps else on_the_way

    async def see(self, record: ProbeRecord) -> None:
        """A probe of the weights as they are; of two that are equally good the later one is better."""
        if self.is_best and main_share(record) >= self._best:
            self._best = main_share(record)
            await self._learner.keep()

    async def resume(self, version: int) -> None:
        """The learner has the weights of `version`, and what its checkpoint kept: of the probes before, the best."""
        earlier = [main_share(record) for step, record in self._probes.items() if 0 < step < version]
        self._best = max(earlier, default=-1.0)
        await self.see_again(version)

    async def see_again(self, version: int) -> None:
        """The learner has the weights of `version` again; they may have had their probe. The base is no candidate."""
        if version and (record := self._own(version)) is not None:
            await self.see(record)

    def lacks(self, version: int) -> bool:
        """Whether these weights' own probe is missing: the run ended between the step and it."""
        return self.probes(version) and self._own(version) is None

    def _own(self, version: int) -> ProbeRecord | None:
        """At the last step an older line does not say whether it is of that step's weights or of those of the end."""
        found = self._probes.get(version)
        return None if found is None or (found.weights is None and version == self._run.steps) else found

    async def put(self) -> bool:
        """Gives the learner the weights to end with; whether they may be others than it has."""
        if self._choose == "last":
            return False
        await self._learner.put_kept()
        return True


def main_share(record: ProbeRecord) -> float:
    """The task's main rate."""
    return next(iter(record.rates.values())).share
