"""Memory of the GPUs, planned before anything starts on them; RUN/memory.jsonl has what was planned."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from cluster.config import Recipe
from cluster.fleet.placement import Plan
from cluster.models import resolve_model
from cluster.run.planned import EnginePlan, MemoryPlan
from cluster.sizing.budget import Budget, asked, plan_memory, with_shares
from cluster.sizing.cards import Card, driver_problem
from cluster.sizing.shape import shape_of

UNPLANNED = 0.3  # the share of a GPU that an engine takes where nobody can be asked what the card has


def with_planned_memory(
    recipe: Recipe,
    plan: Plan,
    model: str,
    cards: Sequence[Card],
    cuda: str | None,
    say: Callable[[str], None],
    claim: Callable[[Mapping[Card, float]], object] | None = None,
) -> tuple[Recipe, Plan]:
    """The recipe with a share of the GPU for each engine that shares one, on GPUs, and the plan with whether its
    engines sleep and may start at the same time; `say` gets a line for each budget.

    cuda: the version that torch was built with. claim: is told the bytes that the plan takes of which card, where
    other runs may use them.

    Raises:
        ValueError: a driver is too old, a card too small, or held by others.
    """
    if not cards:
        say(f"memory: found no card whose memory nvidia-smi tells: an engine on a shared GPU takes {UNPLANNED:g} of it")
        return _unplanned(recipe) if plan.colocated else recipe, plan
    for card in cards:
        if problem := driver_problem(card.driver, cuda):
            raise ValueError(problem)
    student = shape_of(model)
    teacher = shape_of(resolve_model(recipe.teacher.path, "teacher.path")) if recipe.teacher.path else student
    trained = _adapters_parameters(model, recipe) if recipe.learner.lora_rank else student.parameters
    budgets = plan_memory(recipe, plan, {"student": student, "teacher": teacher}, trained, cards)
    if claim is not None:
        claim(_claimed(plan, budgets, cards))
    for budget in budgets:
        say(budget.line())
    sleeps, told = any(one.engines_sleep for one in budgets), with_shares(recipe, budgets)
    in_turn = plan.starts_in_turn and any(getattr(told, pool).measures_its_cache for pool in budgets[0].engines)
    return told, replace(plan, engines_sleep=sleeps, starts_in_turn=in_turn)


def _claimed(plan: Plan, budgets: Sequence[Budget], cards: Sequence[Card]) -> dict[Card, float]:
    """Of the one that all share what is planned; of others all, since their engines take what is free. A Ray of the
    run's own hands out the first."""
    if plan.colocated:
        return {cards[0]: asked(budgets[0])}
    return {card: card.free for card in cards[: int(sum(bundle.gpus for bundle in plan.bundles))]}


def plan_in_use(recipe: Recipe, plan: Plan, said: Sequence[str]) -> MemoryPlan:
    """What a start of the run has, of a recipe with what was planned. said: the lines of the plan."""
    pools = {"student": recipe.student} | ({"teacher": recipe.teacher} if recipe.teacher_engines else {})
    on_cpu = plan.device == "cpu"
    engines = {
        pool: EnginePlan(0.0, config.cpu_cache_gib)
        if on_cpu
        else EnginePlan(config.gpu_memory_utilization, config.kv_cache_gib)
        for pool, config in pools.items()
    }
    shared = plan.engines_sleep, tuple(said), plan.colocated
    return MemoryPlan(time.time(), plan.device, recipe.learner.micro_batch, engines, *shared)


def _adapters_parameters(model: str, recipe: Recipe) -> int:
    from learner.adapter import trained_parameters  # takes seconds, for nothing where there is no adapter

    return trained_parameters(model, recipe.learner)


def _unplanned(recipe: Recipe) -> Recipe:
    shares = {pool: getattr(recipe, pool).gpu_memory_utilization or UNPLANNED for pool in ("student", "teacher")}
    return replace(
        recipe,
        student=replace(recipe.student, gpu_memory_utilization=shares["student"]),
        teacher=replace(recipe.teacher, gpu_memory_utilization=shares["teacher"]),
    )
