"""Runs pooled into arms, and arms into the groups that share a task and a probe."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

from cluster.config import Recipe
from cluster.report.arms import BASE, MATRIX, Arm, arm_of, axis_of
from cluster.report.numbers import Number, pooled_mean, pooled_rate
from cluster.report.runs import Run
from cluster.resolved import ADAPTER_KEYS

# Keys of the engines, [learner] and [rollout] that lay work out over a machine and leave what is learned alone.
_LAYOUT = frozenset({
    "deadline_s", "start_deadline_s", "step_deadline_s", "num_ranks", "zero_stage", "micro_batch_tokens",
    "head_chunk_tokens", "gradient_checkpointing", "max_refused_fraction", "num_engines", "tensor_parallel_size",
    "max_num_seqs", "max_num_batched_tokens", "kv_cache_gib", "gpu_memory_utilization", "enforce_eager", "cpu_threads",
})  # fmt: skip
STOPS = ("patience", "min_delta")  # keys of [probe] that decide when a run ends, and nothing of a probe


@dataclass(frozen=True)
class Pool:
    """The runs of one arm, which differ in their seed only: counts add up. Without runs every figure is None."""

    arm: Arm
    runs: tuple[Run, ...]

    @property
    def finished(self) -> bool:
        """Whether at least one seed came to its end."""
        return any(run.finished for run in self.runs)

    @property
    def status(self) -> str:
        """finished, not run, or what is not finished."""
        return "; ".join(sorted({run.status for run in self.runs})) or "not run"

    @property
    def seeds(self) -> str:
        """run.seed of each."""
        return ", ".join(str(run.seed) for run in self.runs)

    @property
    def rates(self) -> tuple[str, ...]:
        """The names of its probes' rates, the main one first."""
        probes = (probe for run in self.runs for probe in run.probes.values())
        return tuple(dict.fromkeys(name for probe in probes for name in probe.rates))

    def probe_steps(self) -> list[int]:
        """Steps with a probe in any seed."""
        return sorted({step for run in self.runs for step in run.probes})

    def rate(self, name: str, step: int) -> Number | None:
        """A probe's rate over the seeds that have it at this step."""
        return pooled_rate(part for run in self.runs if (part := run.rate(name, step)))

    def final(self, name: str) -> Number | None:
        """The rate at each seed's last probe; of an unfinished arm at its last one."""
        if self.finished:
            return pooled_rate(part for run in self.runs if run.finished and (part := run.rate(name, max(run.probes))))
        steps = self.probe_steps()
        return self.rate(name, steps[-1]) if steps else None

    def best(self, name: str) -> Number | None:
        """The highest rate after step 0, the earliest of equals: biased upward, as every maximum of noisy figures."""
        found = [rate for step in self.probe_steps() if step > 0 and (rate := self.rate(name, step))]
        return max(found, key=lambda rate: rate.value, default=None)

    def train_steps(self) -> list[int]:
        """Steps with diagnostics in any seed."""
        return sorted({step for run in self.runs for step in run.steps})

    def diagnostic(self, name: str, split: str = "all", step: int | None = None) -> Number | None:
        """A step's diagnostic (default: the last step's), weighted over the seeds by what it is a mean of."""
        steps = self.train_steps()
        if not steps:
            return None
        chosen = steps[-1] if step is None else step
        return pooled_mean(part for run in self.runs if (part := run.diagnostic(name, split, chosen)))


@dataclass(frozen=True)
class Group:
    """All runs of one task, by arm in the matrix's order."""

    task: str
    axis: str
    pools: tuple[Pool, ...]

    @property
    def runs(self) -> list[Run]:
        """Of all arms."""
        return [run for pool in self.pools for run in pool.runs]

    @property
    def rates(self) -> tuple[str, ...]:
        """The names of its task's rates, the main one first."""
        return tuple(dict.fromkeys(name for pool in self.pools for name in pool.rates))

    def pool(self, code: str) -> Pool:
        """The runs of an arm of the matrix."""
        return next(pool for pool in self.rows() if pool.arm.code == code)

    def rows(self) -> list[Pool]:
        """Every published arm of this axis, run or not, then the other arms."""
        ran = {pool.arm: pool for pool in self.pools}
        published = [arm for arm in MATRIX if arm.setting.axis == self.axis]
        others = [pool for pool in self.pools if pool.arm not in published]
        return [ran.get(arm, Pool(arm, ())) for arm in published] + others

    @property
    def base(self) -> Pool:
        """The base model (N0): the probes at step 0 of all runs, the same draws counted once."""
        return Pool(BASE, tuple(replace(run, probes={0: run.probes[0]}, steps={}) for run in self.distinct_bases()))

    def distinct_bases(self) -> list[Run]:
        """Runs whose step-0 answers are draws of their own. Runs that sample the base model with the same seed give
        mostly the same texts; adding them up would claim a precision that is not there."""
        kept: list[Run] = []
        for run in self.runs:
            if 0 in run.probes and not any(_repeats(run, other) for other in kept):
                kept.append(run)
        return kept


def _repeats(run: Run, other: Run) -> bool:
    pairs = list(zip(run.base_answers, other.base_answers, strict=False))
    return sum(a == b for a, b in pairs) * 2 > max(len(pairs), 1)


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Runs by task and arm, both in a fixed order.

    Raises:
        ValueError: two runs of a task with different probes or models, or two of an arm that differ in more than
            their seed, or have the same one; names both runs and the key.
    """
    tasks = sorted({run.recipe.task.name for run in runs}, key=lambda task: (task != "identity", task))
    return [_group([run for run in runs if run.recipe.task.name == task], task) for task in tasks]


def _group(runs: list[Run], task: str) -> Group:
    ordered = sorted(runs, key=lambda run: (run.seed, run.name))
    for one, other in combinations(ordered, 2):
        _check_same_probe(one, other)
    arms = {run.name: arm_of(run.recipe) for run in ordered}
    order = {arm: index for index, arm in enumerate(MATRIX)}
    found = sorted(set(arms.values()), key=lambda arm: (order.get(arm, len(order)), arm.label))
    pools = tuple(_pool(arm, [run for run in ordered if arms[run.name] == arm]) for arm in found)
    return Group(task, axis_of(runs[0].recipe), _number_others(pools))


def _pool(arm: Arm, runs: list[Run]) -> Pool:
    for one, other in combinations(runs, 2):
        if one.seed == other.seed:
            raise ValueError(
                f"{one.name} and {other.name}: run.seed: found {one.seed} in both runs of {arm.code}, expected "
                "another seed for each"
            )
        _check_equal(one, other, _learning(one.recipe), _learning(other.recipe), f"seeds of one arm, {arm.code}")
    return Pool(arm, tuple(runs))


def _number_others(pools: tuple[Pool, ...]) -> tuple[Pool, ...]:
    """Codes for the arms that the matrix does not have: X1, X2, ... of identity, XM1, ... of math."""
    others = [pool.arm for pool in pools if pool.arm.code == "other"]
    codes = {arm: f"X{'M' if arm.setting.axis == 'math' else ''}{index}" for index, arm in enumerate(others, start=1)}
    return tuple(replace(pool, arm=replace(pool.arm, code=codes.get(pool.arm, pool.arm.code))) for pool in pools)


def _check_same_probe(one: Run, other: Run) -> None:
    what = "runs of one task to share model, task and probe"
    _check_equal(one, other, _probing(one), _probing(other), what)


def _check_equal(one: Run, other: Run, ours: Mapping[str, Any], theirs: Mapping[str, Any], expected: str) -> None:
    """What only one of them has, such as answers to compare, is not compared."""
    for key, value in ours.items():
        if key in theirs and theirs[key] != value:
            raise ValueError(
                f"{one.name} and {other.name}: {key}: found {value!r} and {theirs[key]!r}, expected {expected}"
            )


def _probing(run: Run) -> dict[str, Any]:
    """What decides a probe's figures beside the weights."""
    keys: dict[str, Any] = {"model.path": run.recipe.model.path}
    keys |= {f"task.{key}": value for key, value in asdict(run.recipe.task).items()}
    keys |= {f"probe.{key}": value for key, value in asdict(run.recipe.probe).items() if key not in STOPS}
    answers = {f"answers to {name}": rate.n for name, rate in run.probes[min(run.probes)].rates.items()}
    return keys | answers | _questions(run)


def _questions(run: Run) -> dict[str, Any]:
    asked = sorted({answer.question for answer in run.base_answers})
    if not asked:
        return {}
    return {"probe questions": len(asked)} | {f"probe question {i}": text for i, text in enumerate(asked, start=1)}


def _learning(recipe: Recipe) -> dict[str, Any]:
    """What decides the weights beside the seed."""
    keys: dict[str, Any] = {"run.steps": recipe.run.steps, "run.max_policy_lag": recipe.run.max_policy_lag}
    if recipe.run.max_policy_lag:
        keys["run.group_order"] = recipe.run.group_order
        keys["weights.in_flight"] = recipe.weights.in_flight
    unread = _LAYOUT if recipe.learner.lora_rank else _LAYOUT | ADAPTER_KEYS
    keys |= {f"probe.{key}": getattr(recipe.probe, key) for key in STOPS}
    for table in ("rollout", "evidence", "student", "teacher", "learner"):
        values = asdict(getattr(recipe, table))
        keys |= {f"{table}.{key}": value for key, value in values.items() if key not in unread}
    return keys
