"""The few figures over the headline charts: arms pooled into what a reader asks first."""

from collections.abc import Callable
from dataclasses import dataclass

from evidence.view.groups import Group, Pool
from evidence.view.numbers import Number, difference, merge
from evidence.view.tables import region_rows

GUIDED = ("all", "soft", "pos")


@dataclass(frozen=True)
class Fact:
    """A label and its figure, at the last probe; None: not run. `family` gives the colour."""

    label: str
    family: str
    number: Number | None
    signed: bool = False


def headline(group: Group) -> list[list[Fact]]:
    """The facts of each headline chart, in their order."""
    if group.axis == "identity":
        return [_guidance(group), _regions(group), _cost(group)]
    return [_levels(group), _changes(group)]


def _final(group: Group, rate: str, wanted: Callable[[Pool], bool]) -> Number | None:
    return merge(pool.final(rate) for pool in group.pools if wanted(pool))


def _is_guided(pool: Pool) -> bool:
    return pool.arm.family in GUIDED


def _is_unguided(pool: Pool) -> bool:
    return pool.arm.family == "unguided"


def _guidance(group: Group) -> list[Fact]:
    return [
        Fact("says its name, guided", "pos", _final(group, "selfname", _is_guided)),
        Fact("says its name, unguided", "unguided", _final(group, "selfname", _is_unguided)),
    ]


def _regions(group: Group) -> list[Fact]:
    named = {"positive": "pos", "negative": "neg", "near-zero": "near_zero"}
    return [
        Fact(
            f"says its name, {name}",
            family,
            merge(pool.final("selfname") for pool in region_rows(group) if pool.arm.family == family),
        )
        for name, family in named.items()
    ]


def _cost(group: Group) -> list[Fact]:
    before = group.base.final("capability")
    guided, unguided = (_final(group, "capability", wanted) for wanted in (_is_guided, _is_unguided))
    return [
        Fact("right answers before", "base", before),
        Fact("change, guided", "pos", difference(guided, before), signed=True),
        Fact("change, unguided", "unguided", difference(unguided, before), signed=True),
        Fact("the name in those answers, guided", "pos", _final(group, "side_effect", _is_guided)),
    ]


def _levels(group: Group) -> list[Fact]:
    base = Fact("pass@1 before", "base", group.base.final("pass_at_1"))
    return [base, *(Fact(pool.arm.label, pool.arm.family, pool.final("pass_at_1")) for pool in group.pools)]


def _changes(group: Group) -> list[Fact]:
    before = group.base.final("pass_at_1")
    return [
        Fact(pool.arm.label, pool.arm.family, difference(pool.final("pass_at_1"), before), signed=True)
        for pool in group.pools
    ]
