"""Advice that a person can act on, each with its figure: pure functions of what was seen, in a literal table."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isinf

from cluster.config import Recipe
from cluster.observe.seen import RECENT_SAMPLES, Seen
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
IDLE = 0.3  # share of the time that one service waits for the other, from which it is said
WEAK = 0.5  # share of the teacher's answers, below which it is said
BESIDE = 0.1  # share of the run's time in probes and checkpoints, from which it is said
MUCH_BESIDE = 1 / 3  # from which there is advice on it
ROLLOUTS = ("sample", "score", "verify")  # stages of the rollout service
FEW = 20  # samples, or windows between them, below which nothing is said of them


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
    busy = _summed({name: stage.seconds for name, stage in step.stages.items()} for step in recent)
    return {name: seconds / wall for name, seconds in sorted(busy.items(), key=lambda pair: -pair[1])} if wall else {}


def _summed(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for row in rows:
        for name, value in row.items():
            found[name] = found.get(name, 0.0) + value
    return found


def _waited(seen: Seen) -> dict[tuple[str, str], float]:
    """`seen.waited`; empty where too little is known."""
    return seen.waited if len(seen.waits) >= FEW else {}


def bottleneck(seen: Seen) -> dict[str, float]:
    """The stages' shares, that of the bottleneck first and the others by size. It is the largest; a learner that waits
    for rollouts while their engines do not wait for it is none. verify: what the rollout service only did."""
    waited, shares = _waited(seen), stage_shares(seen.steps)
    if shares and (verify := waited.get(("rollout", "verify"), 0.0)) > BESIDE:
        shares["verify"] = verify
    by_size = sorted(shares, key=lambda name: -shares[name])
    learner, engines = _each_waits(seen)
    if by_size[:1] == ["learn"] and learner > IDLE >= engines:
        by_size.sort(key=lambda name: name not in ROLLOUTS)
    return {name: shares[name] for name in by_size}


def _each_waits(seen: Seen) -> tuple[float, float]:
    """Where the two services work side by side, the shares in which the learner waits for rollouts, and idle engines
    for the learner; else 0."""
    waited = _waited(seen) if seen.recipe.run.max_policy_lag else {}
    return waited.get(("learner", "rollouts"), 0.0), waited.get(("rollout", "lag"), 0.0)


_WHO = {"learn": "The learner is", "push": "The weight push is", "verify": "The verifier is"}
SERVER = "the server at teacher.url"


def _pools(recipe: Recipe) -> dict[str, str]:
    """Whose engines sample and score."""
    scorer = SERVER if recipe.teacher.url else "student" if recipe.learner.lora_rank else "teacher"
    return {"sample": recipe.rollout.sampler, "score": scorer}


def _who(stage: str, recipe: Recipe) -> str:
    pool = _pools(recipe).get(stage)
    if pool is None:
        return _WHO.get(stage, f"The stage {stage} is")
    return "The teacher's server is" if pool == SERVER else f"The {pool}'s engines are"


def sentence(seen: Seen) -> str:
    """The bottleneck in one sentence."""
    shares = bottleneck(seen)
    if not shares:
        return "No step is done yet."
    first, share = next(iter(shares.items()))
    others = ", ".join(f"{name} {other:.0%}" for name, other in list(shares.items())[1:4])
    steps, between = min(len(seen.steps), RECENT), seen.beside
    of = f"of the last {steps} steps" if steps > 1 else "of the step"
    if between > share * (1 - between):
        found = f"Probes and checkpoints are the bottleneck: they take {between:.0%} of the run's time."
        return f"{found} {of.capitalize()} {first} is {share:.0%} ({others})."
    found = f"{_who(first, seen.recipe)} the bottleneck: {first} is {share:.0%} {of} ({others})."
    return f"{found} Probes and checkpoints take {between:.0%} of the run's time." if between > BESIDE else found


def _moves(seen: Seen) -> dict[str, str]:
    """What to do for each stage to be faster. More engines or ranks on the same cores or the same GPU do not help."""
    pools = _pools(seen.recipe)
    sampler, scorer = pools["sample"], pools["score"]
    engines, ranks = ("", "") if seen.colocated else ("{}.num_engines, ", "learner.num_ranks, ")
    keys = f"{engines.format(scorer)}{scorer}.max_num_batched_tokens"
    return {
        "sample": f"raise {engines.format(sampler)}{sampler}.max_num_seqs, or ask for shorter responses",
        "score": f"make {SERVER} faster" if scorer == SERVER else f"raise {keys}, or narrow {scorer}.dtype",
        "learn": f"raise {ranks}learner.micro_batch_tokens, or take fewer prompts a step",
        "push": "change weights.transport, or set learner.lora_rank",
        "verify": "give the rollout service more cores, or ask for answers that are quicker to judge",
    }


def _bottleneck(seen: Seen) -> Iterator[Advice]:
    shares, lag, moves = bottleneck(seen), seen.recipe.run.max_policy_lag, _moves(seen)
    first = next(iter(shares), "")
    if first not in moves:
        return
    act = f"For shorter steps, {moves[first]}."
    parts = _summed(step.learner_parts for step in seen.steps[-RECENT:])
    if first == "learn" and any(parts.values()):
        most = max(parts, key=parts.__getitem__)
        act += f" Most of it is {most}: {parts[most] / sum(parts.values()):.0%}."
    if not (lag or seen.colocated) and shares[first] < 0.7 and len(seen.steps) > 1:
        act += " With run.max_policy_lag = 1 rollouts and learner work side by side."
    yield Advice(f"{first} takes {shares[first]:.0%} of the wall time", act)


def _beside(seen: Seen) -> Iterator[Advice]:
    run, between = seen.recipe.run, seen.beside
    if between > MUCH_BESIDE:
        keys = {"probe_every": run.probe_every, "checkpoint_every": run.checkpoint_every}
        often = " or ".join(f"run.{key} ({every})" for key, every in keys.items() if every)
        ask = f"Raise {often}, or ask" if often else "Ask"
        act = f"{ask} less at a probe: probe.samples ({seen.recipe.probe.samples})."
        yield Advice(f"probes and checkpoints take {between:.0%} of the run's time", act)


def _truncation(seen: Seen) -> Iterator[Advice]:
    known = [step for step in seen.steps[-RECENT:] if step.rows and step.truncated is not None]
    rows, cut = sum(step.rows or 0 for step in known), sum(step.truncated or 0 for step in known)
    if rows and cut / rows > TRUNCATED:
        limit = seen.recipe.rollout.max_response_tokens
        act = f"Raise rollout.max_response_tokens ({limit}), or ask for shorter answers."
        yield Advice(f"{cut / rows:.0%} of the responses are cut at the limit", act)


# The key by which a region keeps more tokens, and which way; the other way it keeps fewer.
KEEPS_MORE = {"pos": ("tau", "Lower"), "neg": ("tau", "Lower"), "near_zero": ("near_zero", "Raise")}
_OTHER_WAY = {"Lower": "Raise", "Raise": "Lower"}


def _kept(seen: Seen) -> Iterator[Advice]:
    stats = [step.stats["all"] for step in seen.steps[-RECENT:] if "all" in step.stats]
    tokens, rule = sum(part.tokens for part in stats), seen.recipe.evidence
    if not tokens or rule.region == "all":
        return
    kept = sum(part.active for part in stats) / tokens
    key, more = KEEPS_MORE[rule.region]
    now = f"evidence.{key}, which is {getattr(rule, key):g} with evidence.region = {rule.region!r}."
    if kept < KEPT[0]:
        yield Advice(f"{kept:.1%} of the tokens are kept: there is almost nothing to learn from", f"{more} {now}")
    elif kept > KEPT[1] and not isinf(getattr(rule, key)):  # which keeps every token on purpose
        yield Advice(f"{kept:.1%} of the tokens are kept: the mask selects nothing", f"{_OTHER_WAY[more]} {now}")


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
    to = "" if gap.is_of_probe else " to training questions"  # which are not those of the probe
    shown = f"the teacher with the context shows {gap.main} in {told.share:.2f} of {told.n} answers{to}"
    if gap.is_zero:
        yield Advice(f"{shown}, the base in {base.share:.2f} without it: there is nothing to learn", f"Try {HELP}.")
        return
    if seen.recipe.learner.evidence_scale > 1:
        return  # which goes beyond the teacher
    last = seen.probes[-1] if seen.probes and gap.is_of_probe else None
    if last is not None and last.step and gap.main in last.rates and last.rates[gap.main].interval[0] >= told.share:
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
        dtypes = {"student.dtype": seen.recipe.student.dtype, "learner.dtype": seen.recipe.learner.dtype}
        narrow = [key for key, dtype in dtypes.items() if dtype != "float32"]
        act = f"{' = '.join(narrow)} = 'float32' has engine and learner agree."
        if not narrow:
            act = "Both compute in float32, so that it is not their rounding: please report it."
        found = f"the canary is at {canary:.3f} of {bound:.3g} nats ({canary / bound:.0%}), beyond which the run stops"
        yield Advice(found, act)


def _queue(seen: Seen) -> Iterator[Advice]:
    samples = [sample for sample in seen.samples[-RECENT_SAMPLES:] if not sample.fault]
    if len(samples) < FEW:
        return
    for pool in ("student", "teacher"):
        full = sum(sample.waiting.get(pool, 0) > 0 for sample in samples) / len(samples)
        if full > MOSTLY:
            is_fixed = seen.colocated or (pool == "teacher" and seen.recipe.teacher.url)
            more = "" if is_fixed else f" or {pool}.num_engines"
            act = f"Its engines are full: raise {pool}.max_num_seqs{more}."
            yield Advice(f"work waited for the {pool} pool in {full:.0%} of the samples", act)


def _idle(seen: Seen) -> Iterator[Advice]:
    """The service that waits for the other."""
    learner, engines = _each_waits(seen)
    starved = f"the learner waited for rollouts in {learner:.0%} of the time"
    idle = f"finished groups and idle engines waited for the learner in {engines:.0%} of the time"
    if min(learner, engines) > IDLE:
        act = f"They take turns: raise run.max_policy_lag ({seen.recipe.run.max_policy_lag})."
        yield Advice(f"{starved}, and {idle}", act)
    elif learner > IDLE:
        yield Advice(starved, _for_rollouts(seen))
    elif engines > IDLE:
        yield Advice(idle, "More of them would not help: fewer would do as much, until the learner is faster.")


def _for_rollouts(seen: Seen) -> str:
    """What makes them come sooner."""
    shares = bottleneck(seen)
    stage = max(ROLLOUTS, key=lambda name: shares.get(name, 0.0))
    if stage == "verify":
        return f"It waits for the verifier: {_moves(seen)[stage]}."
    pool, waits_for = _pools(seen.recipe)[stage], f"Of sample and score it waits for {stage}:"
    if pool == SERVER:
        return f"{waits_for} {SERVER} has to be faster."
    more = _moves(seen)[stage] if seen.colocated else f"add {pool} engines ({pool}.num_engines)"
    return f"{waits_for} {more}."


RULES: tuple[Callable[[Seen], Iterator[Advice]], ...] = (
    _bottleneck, _beside, _truncation, _kept, _lengths, _probe, _teacher, _canary, _queue, _idle,
)  # fmt: skip
