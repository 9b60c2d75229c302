"""What an engine says of a fixed text, beside what it should say: the proof that no digest gives."""

from dataclasses import dataclass

import numpy as np

from evidence.records import Floats, Ids


@dataclass(frozen=True, eq=False)
class CanaryText:
    """A fixed text, and the log-probs of its response that an engine is to give, float32 [T]: the learner's own under
    the weights in question, or a frozen teacher's first ones."""

    prompt_ids: Ids
    response_ids: Ids
    expected: Floats

    def difference(self, found: Floats) -> float:
        """The mean |difference| in nats a token."""
        return float(np.abs(found - self.expected).mean())

    def require(self, what: str, name: str, whose: str, found: Floats, bound: float) -> None:
        """RuntimeError names the engine when the difference is more than `bound`."""
        difference = self.difference(found)
        if not difference <= bound:
            raise RuntimeError(f"{what}: {self.line(name, whose, difference, bound)}")

    @staticmethod
    def line(name: str, whose: str, difference: float, bound: float) -> str:
        return (
            f"{name} differs from {whose} by {difference:.3f} nats a token on average, expected at most {bound:.3g}: "
            f"its weights are not {whose}'s"
        )
