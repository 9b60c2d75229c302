"""What is done to the run of a seed, and when: a function of the seed alone."""

import random
import signal
from dataclasses import dataclass

ONE_HOST, PARALLEL, THREE_HOSTS = "one host", "tensor parallel", "three hosts"
RUNS = (ONE_HOST, PARALLEL, ONE_HOST, THREE_HOSTS)  # what the run of a seed is, in turn
ENGINES = ("student engine 0", "student engine 1", "teacher engine 0")
START, PROBE, GAP, STEPS = "start", "probe", "gap", "steps"
# From when on it is that moment: a file of the run's folder is there, at the start one of the run's processes.
BEGINS = {PROBE: "teacher.json", GAP: "probes.jsonl", STEPS: "metrics.jsonl"}
GAP_S = 25.0  # at most, from one fault to the next, whatever has become of the one before
LATEST_S = {START: 20.0, PROBE: 2.0, GAP: 2.0, STEPS: GAP_S}  # after the moment has begun
BEFORE = 0.5  # share of the runs whose first fault comes before step 1
SIGNALS = (signal.SIGKILL, signal.SIGSTOP)

Shot = tuple[str, signal.Signals]  # whom, and with what


@dataclass(frozen=True)
class Planned:
    """A fault to come: so long after the moment has begun, the first of `order` whose process is there."""

    moment: str
    after_s: float
    order: tuple[Shot, ...]


def kind_of(seed: int) -> str:
    """What the run of this seed is."""
    return RUNS[seed % len(RUNS)]


def shots(kind: str) -> list[Shot]:
    """Whoever a run of this kind has, with each signal. A driver that is stopped is nobody's to notice. A raylet is the
    second host's: with the driver's own all ends."""
    workers = [f"{name} worker" for name in ENGINES[:2]] if kind == PARALLEL else []
    parts = [f"{name} {part}" for part in ("process", "core") for name in ENGINES]
    names = [*ENGINES, *parts, *workers, "fork server", "learner", "rollout"]
    raylet = [("raylet", number) for number in SIGNALS] if kind == THREE_HOSTS else []
    return [(name, number) for name in names for number in SIGNALS] + [("driver", signal.SIGKILL), *raylet]


def schedule(seed: int, count: int) -> list[Planned]:
    """Of `count` faults the first may come before step 1."""
    draw, every = random.Random(seed), shots(kind_of(seed))
    first = draw.choice((START, PROBE, GAP)) if draw.random() < BEFORE else STEPS
    moments = [first, *[STEPS] * (count - 1)][:count]
    return [
        Planned(moment, draw.uniform(0.0, LATEST_S[moment]), tuple(draw.sample(every, len(every))))
        for moment in moments
    ]
