"""Which weights a run ends with (`export.choose`): the last step's, the mean of several, or those of the best probe.
And whether it ends before its last step (`probe.patience`)."""

from collections.abc import Mapping, Sequence

from cluster.config import Recipe
from cluster.fleet.services import LearnerService
from cluster.run.record import ProbeRecord
from evidence.rates import RATES


class Choice:
    """Keeps what the run may end with.

    probes: those of the run so far by their step, each of its step's own weights. main: the name of the task's main
    rate, which an older run's probes have among their rates; empty: the first of each.
    """

    def __init__(
        self, recipe: Recipe, learner: LearnerService, probes: Mapping[int, ProbeRecord], main: str = ""
    ) -> None:
        self._main = main
        self._run, self._choose, self._learner, self._probes = recipe.run, recipe.export.choose, learner, dict(probes)
        self._config, self._schedule = recipe.probe, recipe.learner.lr_schedule
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
        self._probes[record.step] = record
        if self.is_best and self._share(record) >= self._best:
            self._best = self._share(record)
            await self._learner.keep()

    async def resume(self, version: int) -> None:
        """The learner has the weights of `version`, and what its checkpoint kept: of the probes before, the best."""
        earlier = [self._share(record) for step, record in self._probes.items() if 0 < step < version]
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

    def is_level(self, version: int) -> bool:
        """Whether the run ends with `version` for want of a rise, before its last step."""
        return version < self._run.steps and 0 < self._config.patience <= self._level(version)[0]

    def _level(self, version: int) -> tuple[int, float]:
        shares = [self._share(record) for step, record in sorted(self._probes.items()) if 0 < step <= version]
        return level_for(shares, self._config.min_delta)

    def why(self, version: int) -> str:
        """Why the run ends there, for a person."""
        level, best = self._level(version)
        name = RATES[self._rate(self._probes[version])].label
        more = f" by more than {self._config.min_delta:g}" if self._config.min_delta else ""
        falls = f"; learner.lr was to fall until step {self._run.steps}" if self._schedule != "constant" else ""
        return (
            f"the run ends after step {version} of {self._run.steps}: in {level} probes {name} has not risen above "
            f"{best:.2f}{more} (probe.patience){falls}"
        )

    def _rate(self, record: ProbeRecord) -> str:
        return self._main if self._main in record.rates else next(iter(record.rates))

    def _share(self, record: ProbeRecord) -> float:
        """The task's main rate."""
        return record.rates[self._rate(record)].share

    async def put(self) -> bool:
        """Gives the learner the weights to end with; whether they may be others than it has."""
        if self._choose == "last":
            return False
        await self._learner.put_kept()
        return True


def level_for(shares: Sequence[float], min_delta: float) -> tuple[int, float]:
    """How many of the last shares have not risen, and what above: the rule of early stopping with a patience. One has
    risen that is higher than the best before by more than `min_delta`; only such a one is the best from then on."""
    best, level = -1.0 - min_delta, 0
    for share in shares:
        best, level = (share, 0) if share > best + min_delta else (best, level + 1)
    return level, best
