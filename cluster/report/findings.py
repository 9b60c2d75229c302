"""The few figures over the headline charts: arms pooled into what a reader asks first."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from cluster.report.arms import MATRIX
from cluster.report.groups import Group, Pool
from cluster.report.numbers import Number, difference, merge
from cluster.report.tables import region_rows
from evidence.rates import RATES

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
    if group.axis == "context":
        return [_levels(group, rate, RATES[rate].label) for rate in group.rates]
    return [_levels(group, "pass_at_1", "pass@1"), _changes(group)]


def _final(pools: Iterable[Pool], rate: str, wanted: Callable[[Pool], bool]) -> Number | None:
    """Over arms of the matrix only: what else was tried has rows of its own."""
    return merge(pool.final(rate) for pool in pools if wanted(pool) and pool.arm in MATRIX)


def _is_guided(pool: Pool) -> bool:
    return pool.arm.family in GUIDED


def _has_family(family: str, pool: Pool) -> bool:
    return pool.arm.family == family


_UNGUIDED = partial(_has_family, "unguided")


def _guidance(group: Group) -> list[Fact]:
    return [
        Fact("says its name, guided", "pos", _final(group.pools, "selfname", _is_guided)),
        Fact("says its name, unguided", "unguided", _final(group.pools, "selfname", _UNGUIDED)),
    ]


def _regions(group: Group) -> list[Fact]:
    rows = region_rows(group)
    named = {"positive": "pos", "negative": "neg", "near-zero": "near_zero"}
    return [
        Fact(f"says its name, {name}", family, _final(rows, "selfname", partial(_has_family, family)))
        for name, family in named.items()
    ]


def _cost(group: Group) -> list[Fact]:
    before = group.base.final("capability")
    guided, unguided = (_final(group.pools, "capability", wanted) for wanted in (_is_guided, _UNGUIDED))
    return [
        Fact("right answers before", "base", before),
        Fact("change, guided", "pos", difference(guided, before), signed=True),
        Fact("change, unguided", "unguided", difference(unguided, before), signed=True),
        Fact("the name in those answers, guided", "pos", _final(group.pools, "side_effect", _is_guided)),
    ]


def _levels(group: Group, rate: str, label: str) -> list[Fact]:
    base = Fact(f"{label} before", "base", group.base.final(rate))
    return [base, *(Fact(pool.arm.label, pool.arm.family, pool.final(rate)) for pool in group.pools)]


def _changes(group: Group) -> list[Fact]:
    before = group.base.final("pass_at_1")
    return [
        Fact(pool.arm.label, pool.arm.family, difference(pool.final("pass_at_1"), before), signed=True)
        for pool in group.pools
    ]
