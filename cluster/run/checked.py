"""What of a line of a run's records is a number: one that is none is named, before anything is made of it."""

from collections.abc import Mapping
from typing import Any

from evidence.lines import MOST, is_amount
from rollout.probe import Rate


def rates_of(name: str, counts: Mapping[str, Any]) -> dict[str, Rate]:
    """ValueError where there is none, or counts that are none."""
    for rate, pair in counts.items():
        k, n = pair
        if not (type(k) is type(n) is int and 0 <= k <= n):
            raise ValueError(f"{name}.{rate}: found {pair!r}, expected [k, n], k of n answers")
    if not counts:
        raise ValueError(f"{name}: found none, expected a rate")
    return {rate: Rate(*pair) for rate, pair in counts.items()}


def require_whole(name: str, value: Any) -> None:
    """TypeError names what is no whole number."""
    if type(value) is not int:
        raise TypeError(f"{name}: found {value!r}, expected a whole number")


def require_numbers(values: Mapping[str, Any], none: bool = True) -> None:
    """TypeError names one that is none. none: whether it may be None, which is what an older line does not say."""
    for name, value in values.items():
        if type(value) not in (int, float) and not (none and value is None):
            raise TypeError(f"{name}: found {value!r}, expected a number")


def require_finite(values: Mapping[str, Any], none: bool = True) -> None:
    """The same of times: what is shown of a run is made of their sums."""
    require_numbers(values, none)
    for name, value in values.items():
        if value is not None and not is_amount(value):
            raise ValueError(f"{name}: found {value!r}, expected a finite number, at most {MOST:.0e} in size")


def require_some(values: Mapping[str, Any]) -> None:
    """ValueError names a count of 0, or a list of nothing: neither has a mean or a greatest."""
    for name, value in values.items():
        if not value:
            raise ValueError(f"{name}: found {value!r}, expected at least one")
