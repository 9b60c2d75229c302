"""Sums that add up over rows, micro-batches and ranks."""

from dataclasses import astuple, dataclass
from typing import Self


@dataclass(frozen=True)
class Sums:
    """Of which every field is a number, so that `+` (or an all-reduce of `astuple`) is exact for any split."""

    def __add__(self, other: Self) -> Self:
        return type(self)(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))
