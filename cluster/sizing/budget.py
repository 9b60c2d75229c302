"""What everyone on a GPU takes of its memory, decided before anything starts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.config import Recipe
from cluster.fleet.placement import Plan
from cluster.sizing.cards import Card, beside_others, held_by
from cluster.sizing.memory import (
    GIB,
    SPARE,
    EngineMemory,
    LearnerMemory,
    engine_memory,
    learner_memory,
    push_bytes,
    received_bytes,
)
from cluster.sizing.shape import ModelShape
from evidence.require import require
from learner.config import needed_models
from rollout.config import EngineConfig

# What to change where a part is what asks for most.
KEYS: Mapping[str, str] = {
    "weights": "a smaller model, learner.zero_stage = 3 or a larger tensor_parallel_size",
    "masters and moments": "more learner.num_ranks, learner.optimizer = 'adamw_16bit' or learner.lora_rank",
    "gradients": "learner.zero_stage = 2 with more learner.num_ranks, or learner.lora_rank",
    "frozen models": "an objective that compares no distributions",
    "activations": "learner.gradient_checkpointing = true, or fewer learner.micro_batch_tokens",
    "padding": "learner.dtype = 'bfloat16', for which attention pads no rows",
    "logits": "fewer learner.head_chunk_tokens",
    "buffers": "learner.zero_stage = 1",
    "push": "learner.lora_rank, whose pushes are small",
    "work": "fewer max_num_batched_tokens, or a smaller window",
    "graphs": "enforce_eager = true",
    "cache": "a smaller window or kv_cache_gib",
    "CUDA": "another card",
}


# Tokens of a micro-batch that are tried, where the recipe leaves it to the card. A small model's layers take about as
# long for few tokens as for many: 0.14 s for 750 and 0.20 s for 4,096 with 135 M parameters on an H200.
MICRO_BATCHES = (8192, 4096, 2048, 1024)


@dataclass(frozen=True)
class Budget:
    """Bytes of one card. engines: by pool, the bytes and the sequences that its cache holds. engines_sleep: while the
    learner works, since not all fits at once. largest: bytes of the largest card that may be the one."""

    card: Card
    learner: LearnerMemory | None
    engines: Mapping[str, tuple[EngineMemory, int]]
    engines_sleep: bool
    largest: int

    def share(self, pool: str) -> float:
        """Of an engine, as vLLM takes it: a share of the whole card, which has to be free when it starts. Beside a
        cache of a planned size it decides nothing else."""
        memory, sequences = self.engines[pool]
        return round(memory.bytes(sequences) / self.largest, 4)

    def cache_gib(self, pool: str) -> float:
        """Of an engine."""
        memory, sequences = self.engines[pool]
        return memory.cache_bytes(sequences) / GIB

    def line(self) -> str:
        """One line, for the start of a run."""
        parts = []
        if self.learner is not None:
            states = sum(self.learner.resident.values()) / GIB
            peak, tokens = self.learner.peak / GIB, self.learner.micro_batch
            padded = " that attention pads" if self.learner.working["padding"] else ""
            push = f", {(self.learner.idle + self.learner.push) / GIB:.1f} in a push" if self.learner.push else ""
            parts.append(f"learner {states:.1f} GiB, {peak:.1f} in a step of {tokens} tokens a batch{padded}{push}")
        for pool, (memory, sequences) in self.engines.items():
            sizes = f"for {sequences} of {memory.sequences} sequences"
            held = f"a cache {f'of {memory.cache / GIB:.1f} GiB' if memory.cache else sizes}"
            parts.append(f"{pool} engine {memory.bytes(sequences) / GIB:.1f} GiB with {held}")
        if self.engines_sleep:
            parts.append("engines sleep while the learner works")
        return f"memory of {self.card.name} ({self.card.total / GIB:.1f} GiB): {'; '.join(parts)}"


def plan_memory(
    recipe: Recipe, plan: Plan, shapes: Mapping[str, ModelShape], trained: int, cards: Sequence[Card]
) -> list[Budget]:
    """One budget for the card that all share, or one for each pool on cards of their own; the card with the least room
    counts, since any may be the one.
    Engines stay awake where all that is planned fits at once: to sleep and to wake takes time, and while others on the
    card take memory, vLLM's sleep fails. Then the learner's micro-batches are as large as fit.

    shapes: of each pool's model. trained: parameters that the learner trains.

    Raises:
        ValueError: a card is too small, or others hold it; names what was asked, what was found and what to change.
    """
    card, largest = min(cards, key=room_of), max(card.total for card in cards)
    pools = [pool for pool in ("student", "teacher") if plan.shares[pool]]
    engines = {pool: _engine(recipe, plan, pool, shapes[pool], card) for pool in pools}
    learners = _learners(recipe, plan, shapes["student"], trained)
    if plan.colocated:
        return [_planned(card, largest, learners, engines, plan.engines_sleep)]
    apart = [_planned(card, largest, [None], {pool: memory}) for pool, memory in engines.items()]
    return [_planned(card, largest, learners, {}), *apart]


def room_of(card: Card) -> float:
    """Bytes to plan with."""
    return min(card.total, card.free) - SPARE * card.total


def _learners(recipe: Recipe, plan: Plan, shape: ModelShape, trained: int) -> list[LearnerMemory]:
    """A rank with each size of a micro-batch that may be, the largest first."""
    config, teacher = recipe.learner, recipe.teacher
    frozen = sum(needed_models(config.compares_distributions, config.beta_kl, teacher.is_base))
    average = teacher.follows and teacher.kind == "ema"
    sizes = (config.micro_batch_tokens,) if config.micro_batch_tokens else MICRO_BATCHES
    push = max(push_bytes(shape, config, plan.transport, kind) for kind in {False, average})
    made = [replace(config, micro_batch_tokens=tokens) for tokens in sizes]
    return [learner_memory(shape, one, trained, recipe.window, frozen, push) for one in made]


def _engine(recipe: Recipe, plan: Plan, pool: str, shape: ModelShape, card: Card) -> EngineMemory:
    """An engine of `pool`; one that measures its cache takes the whole share that it was given.

    Raises:
        ValueError: the cache that the recipe gives it has no room for a sequence.
    """
    config: EngineConfig = getattr(recipe, pool)
    memory = engine_memory(shape, config, _received(recipe, plan, pool, shape))
    least = replace(memory, cache=0.0).cache_bytes(1)
    if config.kv_cache_gib:
        expected = f"at least {least * config.tensor_parallel_size / GIB:.3g}, for the {config.window} tokens of "
        require(memory.cache >= least, f"{pool}.kv_cache_gib", config.kv_cache_gib, f"{expected}{pool}.window")
    if config.measures_its_cache:
        left = config.gpu_memory_utilization * card.total - sum(memory.fixed.values())
        return replace(memory, cache=max(left, least))
    return memory


def _received(recipe: Recipe, plan: Plan, pool: str, shape: ModelShape) -> float:
    """Bytes of a push to an engine of `pool`."""
    if pool == "teacher" and not recipe.teacher.follows:
        return 0.0
    dtype = "float32" if pool == "teacher" and recipe.teacher.kind == "ema" else recipe.learner.dtype
    return received_bytes(shape, dtype, plan.transport, getattr(recipe, pool).tensor_parallel_size)


def with_shares(recipe: Recipe, budgets: Iterable[Budget]) -> Recipe:
    """The recipe with what is planned for its engines, where it does not say otherwise itself. An engine with cards of
    its own has vLLM's share of them, or as much as others leave."""
    changed: dict[str, Any] = {}
    for budget in budgets:
        for pool in budget.engines:
            config: EngineConfig = getattr(recipe, pool)
            if budget.learner is None:
                changed[pool] = beside_others(config, [budget.card])
            elif not config.gpu_memory_utilization:
                share, cache = budget.share(pool), budget.cache_gib(pool)
                changed[pool] = replace(config, gpu_memory_utilization=share, kv_cache_gib=cache)
        if budget.learner is not None:
            changed["learner"] = replace(recipe.learner, micro_batch_tokens=budget.learner.micro_batch)
    return replace(recipe, **changed)


def _planned(
    card: Card,
    largest: int,
    learners: Sequence[LearnerMemory | None],
    engines: Mapping[str, EngineMemory],
    may_sleep: bool = False,
) -> Budget:
    """The first that fits, in this order: whole caches, with engines awake, then asleep, and the largest of `learners`'
    micro-batches; else the largest caches that the smallest of them leaves, and the largest that leaves as much."""

    def budget_of(learner: LearnerMemory | None, sequences: int, sleep: bool) -> Budget:
        held = {pool: (memory, min(sequences, memory.sequences)) for pool, memory in engines.items()}
        return Budget(card, learner, held, sleep, largest)

    room = room_of(card)
    most = max((memory.sequences for memory in engines.values()), default=1)
    ways = (budget_of(learner, most, sleep) for sleep in dict.fromkeys((False, may_sleep)) for learner in learners)
    if found := next((budget for budget in ways if asked(budget) <= room), None):
        return found
    _require(budget_of(learners[-1], 1, may_sleep), (1 - SPARE) * card.total)
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        fits = asked(budget_of(learners[-1], middle, may_sleep)) <= room
        low, high = (middle, high) if fits else (low, middle - 1)
    ways = (budget_of(learner, low, may_sleep) for learner in learners)
    return next(budget for budget in ways if asked(budget) <= room)


def asked(budget: Budget) -> float:
    """Bytes at the worst moment: engines at work beside a learner that holds what a push took, or the other way round
    where they sleep, and all at once where they do not."""
    awake = sum(memory.bytes(sequences) for memory, sequences in budget.engines.values())
    stays = sum(memory.fixed["CUDA"] + memory.fixed["graphs"] for memory, _ in budget.engines.values())
    asleep = stays if budget.engines_sleep else awake
    learner = budget.learner
    beside = learner.idle + learner.push if learner else 0.0
    return max(awake + beside, asleep + (learner.peak if learner else 0.0))


def _require(least: Budget, room: float) -> None:
    card, needs = least.card, asked(least)
    if needs > room:
        raise ValueError(
            f"placement: asked {needs / GIB:.1f} GiB of a GPU ({_parts(least)}), found {room / GIB:.1f} GiB to plan "
            f"with on {card.name}; expected a larger card, or {KEYS[_largest(least)]}"
        )
    if needs > room_of(card):
        raise ValueError(
            f"placement: asked {needs / GIB:.1f} GiB of GPU {card.index}, found {card.free / GIB:.1f} of "
            f"{card.total / GIB:.1f} GiB free{held_by(card)}; expected a card of its own: end the other run, or "
            "choose a card with CUDA_VISIBLE_DEVICES"
        )


def _all_parts(budget: Budget) -> list[tuple[str, str, float]]:
    """(whose, what, bytes)."""
    learner = budget.learner
    of_learner = [*learner.resident.items(), *learner.working.items(), ("push", learner.push)] if learner else []
    found = [("learner", *part) for part in of_learner]
    for pool, (memory, sequences) in budget.engines.items():
        cache = ("cache", memory.cache_bytes(sequences))
        found += [(f"{pool} engine", *part) for part in [*memory.fixed.items(), cache]]
    return found


def _parts(budget: Budget) -> str:
    """The three largest."""
    largest = sorted(_all_parts(budget), key=lambda part: -part[2])[:3]
    return ", ".join(f"{whose}: {what} {size / GIB:.1f}" for whose, what, size in largest)


def _largest(budget: Budget) -> str:
    return max(_all_parts(budget), key=lambda part: part[2])[1]
