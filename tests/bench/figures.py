"""What a benchmark says: figures, each with its target where it has one."""

import json
import operator
from collections.abc import Iterable
from dataclasses import asdict, dataclass

MARK = "FIGURE "
COMPARISONS = {">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True)
class Figure:
    """One number. target: such as ">= 0.95"; empty where the number is only reported."""

    name: str
    value: float
    target: str = ""
    note: str = ""

    @property
    def verdict(self) -> str:
        """met, missed, or nothing without a target."""
        if not self.target:
            return ""
        comparison, bound = self.target.split()
        return "met" if COMPARISONS[comparison](self.value, float(bound)) else "missed"

    def say(self) -> None:
        """Prints it for a reader, and for `python -m tests.bench`, which makes the table."""
        print(" ".join(filter(None, (f"{self.name}: {self.value:.4g}", self.target, self.verdict, self.note))))
        print(MARK + json.dumps(asdict(self)), flush=True)


def figures_in(lines: Iterable[str]) -> list[Figure]:
    """The figures that a benchmark's output holds."""
    return [Figure(**json.loads(line.removeprefix(MARK))) for line in lines if line.startswith(MARK)]
