"""What a push of weights says of itself. Apart from what makes it, so that its reader needs no vLLM to unpack it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from evidence.telemetry import Span

LANE = "push"  # of the timeline
# Parts of a push, which take turns tensor by tensor: the learner's rank 0 times them.
PARTS = {
    "pause": "engines that end or put aside what they do, and prepare",
    "gather": "tensors put together from the learner's ranks",
    "digest": "their digest",
    "send": "tensors given to the transport",
    "load": "engines that take what is still on its way, and put it in place",
}


@dataclass(frozen=True)
class Sent:
    """What one rank says of a push. seconds: by part, keys of `PARTS`. num_bytes: given to the transport. whole: why a
    push of what changed had to be one of whole weights."""

    digest: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    num_bytes: int = 0
    whole: str = ""

    def spans(self, begin: float) -> Iterator[Span]:
        """The parts from `begin` on, a Unix time, each as a whole after the one before it: a span a tensor would be
        more than a timeline can hold."""
        for part in (part for part in PARTS if part in self.seconds):
            end = begin + self.seconds[part]
            yield Span(LANE, part, begin, end)
            begin = end
