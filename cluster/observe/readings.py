"""What records say, as values of the figures of the table: for Ray's endpoint and for OpenMetrics alike.

A counter's value is what the record adds to it, but for an engine's own, which are sums since the engine's start.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from cluster.config import Recipe
from cluster.observe.figures import FIGURES
from cluster.observe.waits import Window
from cluster.run.record import END, ProbeRecord, StepRecord
from evidence.telemetry import EngineState, Sample, Span

Labels = Mapping[str, str]

# Of a sample's `stats`, and of the engine's other figures
_GAUGES = {
    "running_requests": "engine_running_requests",
    "waiting_requests": "engine_waiting_requests",
    "kv_cache_usage": "engine_kv_cache_usage_ratio",
}
# What is no step and may take longer than several: each call of it has a deadline, so that it is not waited for in vain
PROGRESS = {("driver", "probe"), ("learner", "save"), ("learner", "export")}
SUMS = {
    "prompt_tokens": "engine_prompt_tokens_total",
    "cached_tokens": "engine_cached_tokens_total",
    "generated_tokens": "engine_generated_tokens_total",
    "preemptions": "engine_preemptions_total",
}


@dataclass(frozen=True)
class Reading:
    """A figure's value; it has the labels of its row of the table."""

    name: str
    value: float
    labels: Labels

    def __post_init__(self) -> None:
        assert set(self.labels) == set(FIGURES[self.name].labels), self


def _reading(name: str, value: float | None, **labels: str) -> Iterator[Reading]:
    if value is not None:
        yield Reading(name, float(value), labels)


def of_recipe(recipe: Recipe) -> Iterator[Reading]:
    """What is known before the first step."""
    yield from _reading("steps_planned", recipe.run.steps)
    yield from _reading("steps_done", 0)
    yield from _reading("canary_tolerance_nats", recipe.weights.canary_tolerance)  # the first push has no other bound


def of_step(record: StepRecord, planned: int) -> Iterator[Reading]:
    """One step of `planned`."""
    yield from _reading("steps_done", record.step + 1)
    yield from _reading("step_seconds", record.wall_s)
    yield from _reading("last_step_timestamp_seconds", record.time)
    yield from _reading("last_progress_timestamp_seconds", record.time)
    yield from _reading("eta_seconds", record.left_s(planned))
    for name, stage in record.stages.items():
        yield from _reading("stage_tokens", stage.tokens, stage=name)
        yield from _reading("stage_seconds", stage.seconds, stage=name)
        yield from _reading("stage_worked_tokens_total", stage.tokens, stage=name)
        yield from _reading("stage_busy_seconds_total", stage.seconds, stage=name)
    yield from _rollouts(record)
    yield from _learning(record)


def _rollouts(record: StepRecord) -> Iterator[Reading]:
    rows, skipped, cut = record.rows, record.skipped_rows, record.truncated
    if rows is not None:
        yield from _reading("rollouts_total", rows - (skipped or 0), outcome="trained")
        if cut is not None:
            yield from _reading("responses_total", rows - cut, reason="stop")
            yield from _reading("responses_total", cut, reason="length")
    yield from _reading("rollouts_total", skipped, outcome="skipped")
    yield from _reading("rollouts_total", record.dropped, outcome="dropped")
    yield from _reading("rollouts_total", record.nonfinite_rollouts, outcome="nonfinite")
    for outcome, count in asdict(record.verdicts).items() if record.verdicts else ():
        yield from _reading("verdicts_total", count, outcome=outcome)
    yield from _reading("prompts_refused_total", record.refused)
    if record.policy_version_min is not None and record.policy_version_max is not None:
        yield from _reading("policy_lag_steps", record.step - record.policy_version_max, bound="min")
        yield from _reading("policy_lag_steps", record.step - record.policy_version_min, bound="max")
    if "all" in record.stats:
        yield from _reading("response_tokens_total", record.stats["all"].tokens)


def _learning(record: StepRecord) -> Iterator[Reading]:
    yield from _reading("learner_loss", record.loss)
    yield from _reading("learner_reference_kl_nats", record.metrics.get("anchor_kl"))
    for part, seconds in record.learner_parts.items():
        yield from _reading("learner_part_seconds", seconds, part=part)
    for kind, ranks in (record.peak_bytes or {}).items():
        for rank, most in enumerate(ranks):
            yield from _reading("learner_memory_bytes", most, rank=str(rank), kind=kind)
    yield from _reading("learner_mfu_ratio", record.metrics.get("mfu"))
    yield from _reading("learner_grad_norm", record.grad_norm)
    yield from _reading("learner_nonfinite_updates_total", record.nonfinite_updates)
    yield from _reading("learner_learning_rate", record.metrics.get("lr"))
    for split in record.stats:
        yield from _reading("kept_ratio", _mean(record, "kept", split), split=split)
        yield from _reading("evidence_nats", _mean(record, "mean_evidence", split), split=split)
    yield from _reading("k1_nats", _mean(record, "k1"))
    yield from _reading("agreement_ratio", _mean(record, "agreement"))
    yield from _reading("reward_mean", record.reward_mean)
    if record.mismatch is not None:
        yield from _reading("mismatch_nats", record.mismatch.means()["mismatch_abs"])
    yield from _reading("canary_nats", record.canary)
    yield from _reading("canary_tolerance_nats", record.canary_bound)


def _mean(record: StepRecord, name: str, split: str = "all") -> float | None:
    found = record.mean(name, split)
    return None if found is None else found.value


def of_probe(record: ProbeRecord, is_first: bool) -> Iterator[Reading]:
    """The rates of one probe, with their intervals; after the last one nothing is planned or left."""
    if record.weights == END:
        yield from _reading("steps_planned", record.step)
        yield from _reading("eta_seconds", 0.0)
    for rate, found in record.rates.items():
        low, high = found.interval
        for bound, value in (("value", found.share), ("low", low), ("high", high)):
            yield from _reading("probe_ratio", value, rate=rate, bound=bound)
            if is_first:
                yield from _reading("probe_first_ratio", value, rate=rate, bound=bound)


def of_sample(sample: Sample) -> Iterator[Reading]:
    """One sample; of a service that did not answer only that."""
    yield from _reading("service_up", not sample.fault)
    if sample.fault:
        return
    yield from _reading("policy_version", sample.version)
    yield from _reading("oldest_group_seconds", sample.oldest_group_s)
    for state, count in sample.groups.items():
        yield from _reading("groups", count, state=state)
    for pool, pieces in sample.waiting.items():
        yield from _reading("pool_waiting", pieces, pool=pool)
    for name, engine in sample.engines.items():
        yield from _engine(name, engine)


def _engine(name: str, engine: EngineState) -> Iterator[Reading]:
    labels = {"pool": engine.pool, "engine": name}
    yield from _reading("engine_up", engine.up, **labels)
    yield from _reading("engine_outstanding_tokens", engine.outstanding_tokens, **labels)
    for key, figure in (_GAUGES | SUMS).items():
        yield from _reading(figure, engine.stats.get(key), **labels)


def of_wait(window: Window) -> Iterator[Reading]:
    """What the services waited for between two samples."""
    for (service, what), seconds in window.seconds.items():
        yield from _reading("wait_seconds_total", seconds, service=service, what=what)


def of_span(span: Span) -> Iterator[Reading]:
    """A stretch of the timeline."""
    yield from _reading("lane_busy_seconds_total", span.end - span.begin, lane=span.lane, what=span.name)
    if (span.lane, span.name) in PROGRESS:
        yield from _reading("last_progress_timestamp_seconds", span.end)
