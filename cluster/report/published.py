"""The published figures, read from published.toml, and the expectations that they lead to."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Claim:
    """A bound on a rate of some arms: at `best` or at `final`, at most or at least."""

    text: str
    rate: str
    arms: tuple[str, ...]
    at: str
    most: float | None = None
    least: float | None = None

    @property
    def bound(self) -> str:
        """The expectation in a few characters."""
        return f"≤ {self.most:.2f}" if self.most is not None else f"≥ {self.least:.2f}"

    def met_by(self, value: float) -> bool:
        """Whether a rate is inside the bound."""
        return (self.most is None or value <= self.most) and (self.least is None or value >= self.least)


@dataclass(frozen=True)
class Published:
    """The file's tables. `paper`, `model` and `scale` are for captions."""

    paper: str
    model: str
    scale: str
    statements: Mapping[str, str]
    claims: tuple[Claim, ...]
    tables: Mapping[str, Any]

    def value(self, table: str, arm: str, column: str) -> float | None:
        """One published figure; None where it is not transcribed."""
        found = self.tables[table]
        row = found["rows"].get(arm)
        return None if row is None else float(row[found["columns"].index(column)])

    def gain(self, table: str, arm: str, column: str) -> float | None:
        """A published figure minus the base model's; None where one is not transcribed, and for the base itself."""
        value, base = self.value(table, arm, column), self.value(table, "N0", column)
        return None if value is None or base is None or arm == "N0" else value - base

    def item(self, table: str) -> str:
        """What the published item shows, for captions."""
        return f"{self.paper}, {self.model}: {self.tables[table]['item']}"


@cache
def load_published() -> Published:
    """The shipped figures."""
    read = tomllib.loads(files("cluster.report").joinpath("published.toml").read_text(encoding="utf-8"))
    claims = tuple(Claim(**{**claim, "arms": tuple(claim["arms"])}) for claim in read.pop("claims"))
    texts = {key: read.pop(key) for key in ("paper", "model", "scale", "statements")}
    return Published(**texts, claims=claims, tables=read)
