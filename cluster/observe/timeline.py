"""Which calls of the two services the driver waits for, as spans of its timeline."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

from cluster.weights.parts import LANE, PARTS
from evidence.telemetry import Activity
from learner.report import RANKS
from rollout.stages import SERVICE

# (service, method): (lane, what it does). Calls that take no time are not here.
CALLS = {
    ("rollout", "start"): ("driver", "start engines"),
    ("rollout", "take"): ("driver", "wait for rollouts"),
    ("rollout", "texts"): ("driver", "probe"),
    ("rollout", "pause_scoring"): ("driver", "pause scoring"),
    ("rollout", "sleep"): ("driver", "sleep"),
    ("rollout", "wake_up"): ("driver", "wake"),
    ("rollout", "prove_weights"): ("driver", "check"),
    ("rollout", "canary"): ("driver", "canary"),
    ("learner", "start"): ("learner", "start"),
    ("learner", "load"): ("learner", "load"),
    ("learner", "step"): ("learner", "learn"),
    ("learner", "push"): ("learner", "push"),
    ("learner", "score"): ("learner", "canary"),
    ("learner", "save"): ("learner", "save"),
    ("learner", "export"): ("learner", "export"),
}
WHOLE_PUSH = "learner", "push"
PUSH = {WHOLE_PUSH: "push", ("driver", "check"): "check", ("learner", "canary"): "canary",
        ("driver", "canary"): "canary"}  # fmt: skip
PUSH_PARTS = PUSH | {(LANE, part): part for part in PARTS}  # older runs have the first alone
NO_ENGINES = ("driver", "learner", RANKS, LANE, SERVICE)


def in_order(lanes: Iterable[str]) -> list[str]:
    """Lanes as they are shown, engines last."""

    def place(lane: str) -> tuple[int, str, int]:
        kind, number = _kind(lane)
        if kind in NO_ENGINES:
            return NO_ENGINES.index(kind), "", number
        name, _, last = lane.rpartition(" ")
        return len(NO_ENGINES), *((name, int(last)) if last.isdecimal() else (lane, 0))

    return sorted(lanes, key=place)


def is_engine(lane: str) -> bool:
    """Whether it is an engine's."""
    return _kind(lane)[0] not in NO_ENGINES


def _kind(lane: str) -> tuple[str, int]:
    """Ranks are of one kind, by their number."""
    kind, _, number = lane.rpartition(" ")
    return (RANKS, int(number)) if kind == RANKS and number.isdigit() else (lane, 0)


def watching(activity: Activity, service: str) -> Callable[[str], AbstractContextManager[None]]:
    """Around a call of a method of `service`, by the method's name."""

    def watch(method: str) -> AbstractContextManager[None]:
        found = CALLS.get((service, method))
        return nullcontext() if found is None else activity.piece(*found)

    return watch
