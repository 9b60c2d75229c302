"""Advice that a person can act on, each with its figure: pure functions of what was seen, in a literal table."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cluster.observe.seen import Seen
from cluster.run.figures import HELP
from cluster.run.record import StepRecord

RECENT = 20  # steps that a figure is of
TRUNCATED = 0.2  # share of responses cut at the limit, from which it is said
KEPT = (0.02, 0.98)
HELD = ("capability",)  # rates that training is to leave where they were
FIRST = 5  # steps at either end, whose lengths are compared
COLLAPSED = 0.5  # of the first steps' mean length
CANARY = 0.8  # of its bound
MOSTLY = 0.9  # of the samples
WEAK = 0.5  # share of the teacher's answers, below which it is said
FEW = 20  # samples, below which nothing is said of them


@dataclass(frozen=True)
class Advice:
    """What was found, with its figure, and what to do about it."""

    found: str
    act: str

    def __str__(self) -> str:
        return f"{self.found}. {self.act}"


def advice(seen: Seen) -> list[Advice]:
    """All that there is to say of a run; nothing before its first step."""
    return [one for rule in RULES for one in rule(seen)] if seen.steps else []


def stage_shares(steps: Sequence[StepRecord]) -> dict[str, float]:
    """The share of the recent steps' wall time in which each stage was at work, the largest first."""
    recent = [step for step in steps[-RECENT:] if step.wall_s]
    wall = sum(step.wall_s or 0.0 for step in recent)
    busy: dict[str, float] = {}
    for step in recent:
        for name, stage in step.stages.items():
            busy[name] = busy.get(name, 0.0) + stage.seconds
    return {name: seconds / wall for name, seconds in sorted(busy.items(), key=lambda pair: -pair[1])} if wall else {}


WHO = {
    "sample": "The student's engines are", "score": "The teacher's engines are", "learn": "The learner is",
    "push": "The weight push is",
}  # fmt: skip


def sentence(seen: Seen) -> str:
    """The bottleneck in one sentence."""
    shares = stage_shares(seen.steps)
    if not shares:
        return "No step is done yet."
    first, share = next(iter(shares.items()))
    others = ", ".join(f"{name} {other:.0%}" for name, other in list(shares.items())[1:4])
    steps = min(len(seen.steps), RECENT)
    of = f"of the last {steps} steps" if steps > 1 else "of the step"
    return f"{WHO.get(first, f'The stage {first} is')} the bottleneck: {first} is {share:.0%} {of} ({others})."


_MOVES = {
    "sample": "More or faster sampling: student.num_engines, student.max_num_seqs, or shorter responses",
    "score": "More or faster scoring: teacher.num_engines, teacher.max_num_batched_tokens, or teacher.dtype",
    "learn": "A faster learner: learner.num_ranks, learner.micro_batch_tokens, or fewer prompts a step",
    "push": "A faster push: weights.transport, or learner.lora_rank",
}


def _bottleneck(seen: Seen) -> Iterator[Advice]:
    shares, lag = stage_shares(seen.steps), seen.recipe.run.max_policy_lag
    first = next(iter(shares), "")
    if first not in _MOVES:
        return
    act = f"{_MOVES[first]} moves the whole step."
    parts = seen.steps[-1].learner_parts
    if first == "learn" and parts:
        most = max(parts, key=parts.__getitem__)
        act += f" Most of it is {most}: {parts[most]:.1f} of {sum(parts.values()):.1f} s."
    if not lag and shares[first] < 0.7 and len(seen.steps) > 1:
        act += " With run.max_policy_lag = 1 rollouts and learner work side by side."
    yield Advice(f"{first} takes {shares[first]:.0%} of the wall time", act)


def _truncation(seen: Seen) -> Iterator[Advice]:
    known = [step for step in seen.steps[-RECENT:] if step.rows and step.truncated is not None]
    rows, cut = sum(step.rows or 0 for step in known), sum(step.truncated or 0 for step in known)
    if rows and cut / rows > TRUNCATED:
        limit = seen.recipe.rollout.max_response_tokens
        act = f"Raise rollout.max_response_tokens ({limit}), or ask for shorter answers."
        yield Advice(f"{cut / rows:.0%} of the responses are cut at the limit", act)


def _kept(seen: Seen) -> Iterator[Advice]:
    stats = [step.stats["all"] for step in seen.steps[-RECENT:] if "all" in step.stats]
    tokens = sum(part.tokens for part in stats)
    if not tokens or seen.recipe.evidence.region == "all":
        return
    kept, rule = sum(part.active for part in stats) / tokens, seen.recipe.evidence
    now = f"evidence.tau = {rule.tau:g} with region {rule.region}"
    if kept < KEPT[0]:
        yield Advice(f"{kept:.1%} of the tokens are kept: there is almost nothing to learn from", f"Lower it: {now}.")
    elif kept > KEPT[1]:
        yield Advice(f"{kept:.1%} of the tokens are kept: the mask selects nothing", f"Raise it: {now}.")


def _lengths(seen: Seen) -> Iterator[Advice]:
    if len(seen.steps) < 2 * FIRST:
        return
    first, last = _mean_length(seen.steps[:FIRST]), _mean_length(seen.steps[-FIRST:])
    if last < COLLAPSED * first:
        act = "Read a late step with `edge-opd view`; a larger learner.beta_kl or a smaller learner.lr holds it back."
        yield Advice(f"responses fell from {first:.0f} to {last:.0f} tokens", act)


def _mean_length(steps: Sequence[StepRecord]) -> float:
    stats = [step.stats["all"] for step in steps if "all" in step.stats]
    rows = sum(part.rows for part in stats)
    return sum(part.tokens for part in stats) / rows if rows else 0.0


def _probe(seen: Seen) -> Iterator[Advice]:
    if not seen.probes:
        return
    last = seen.probes[-1]
    for name in dict.fromkeys((next(iter(last.rates)), *(name for name in HELD if name in last.rates))):
        best = max((probe for probe in seen.probes if name in probe.rates), key=lambda probe: probe.rates[name].share)
        if last.rates[name].interval[1] < best.rates[name].interval[0]:
            found = f"{name} fell from {best.rates[name].share:.2f} at step {best.step} to {last.rates[name].share:.2f}"
            act = "Stop earlier, or lower learner.lr."
            yield Advice(f"{found} at step {last.step}, beyond their 95% intervals", act)


def _teacher(seen: Seen) -> Iterator[Advice]:
    """What there is to learn, and whether it is learned."""
    gap = seen.gap
    if gap is None:
        return
    told, base = gap.teacher[gap.main], gap.base[gap.main]
    shown = f"the teacher with the context shows {gap.main} in {told.share:.2f} of {told.n} answers"
    if gap.is_zero:
        yield Advice(f"{shown}, the base in {base.share:.2f} without it: there is nothing to learn", f"Try {HELP}.")
        return
    if seen.recipe.learner.evidence_scale > 1:
        return  # which goes beyond the teacher
    last = seen.probes[-1] if seen.probes else None
    if last is not None and last.step and gap.main in last.rates and last.rates[gap.main].share >= told.share:
        found = f"{gap.main} is {last.rates[gap.main].share:.2f} at step {last.step}, and {shown}"
        yield Advice(
            f"{found}: the teacher has no more of it to give",
            f"Stop here, raise learner.evidence_scale, or try {HELP}.",
        )
    elif told.share < WEAK:
        yield Advice(f"{shown}, the base in {base.share:.2f}: that is all there is to learn", f"For more try {HELP}.")


def _canary(seen: Seen) -> Iterator[Advice]:
    canary = seen.steps[-1].canary
    bound = seen.steps[-1].canary_bound or seen.recipe.weights.canary_tolerance
    if canary is not None and canary > CANARY * bound:
        act = "The run stops beyond it: student.dtype = 'float32' has engine and learner agree."
        yield Advice(f"the canary is at {canary:.3f} of its bound of {bound:.3g} nats", act)


def _queue(seen: Seen) -> Iterator[Advice]:
    samples = [sample for sample in seen.samples[-200:] if not sample.fault]
    if len(samples) < FEW:
        return
    empty = sum(sample.groups.get("done", 0) == 0 for sample in samples) / len(samples)
    if seen.recipe.run.max_policy_lag and empty > MOSTLY:
        yield Advice(f"no group was ready in {empty:.0%} of the samples", "The learner waits: add student engines.")
    for pool in ("student", "teacher"):
        full = sum(sample.waiting.get(pool, 0) > 0 for sample in samples) / len(samples)
        if full > MOSTLY:
            act = f"Its engines are full: raise {pool}.max_num_seqs or {pool}.num_engines."
            yield Advice(f"work waited for the {pool} pool in {full:.0%} of the samples", act)


RULES: tuple[Callable[[Seen], Iterator[Advice]], ...] = (
    _bottleneck, _truncation, _kept, _lengths, _probe, _teacher, _canary, _queue,
)  # fmt: skip
