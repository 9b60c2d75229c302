"""The charts of the page, as a literal table: what each is of, and which values a record adds to it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.config import Recipe
from cluster.dashboard.columns import Values
from cluster.observe.timeline import PUSH_PARTS
from cluster.observe.waits import CAUSES, Window
from cluster.run.record import ProbeRecord, StepRecord
from cluster.weights.parts import PARTS
from evidence.diagnostics import SPLITS
from evidence.telemetry import Sample, Span

Read = Callable[..., Values]


@dataclass(frozen=True)
class Panel:
    """One chart. figures: the rows of `cluster.observe.figures.FIGURES` that it is made of, with blanks between them.
    read: of a record of `of` to the values that it adds by series."""

    section: str
    title: str
    unit: str
    of: str  # step, push, probe, sample or wait
    figures: str
    read: Read
    stacked: bool = False
    note: str = ""

    @property
    def shown(self) -> dict[str, Any]:
        """What the page has to know of it."""
        over = "time" if self.of in ("sample", "wait") else "step"
        return {"section": self.section, "title": self.title, "unit": self.unit, "x": over, "stacked": self.stacked,
                "note": self.note, "bands": self.of == "probe"}  # fmt: skip


def _rates(step: StepRecord, recipe: Recipe) -> Values:
    return {name: step.stages[name].tokens_per_s for name in ("sample", "score", "learn") if name in step.stages}


def _stages(step: StepRecord, recipe: Recipe) -> Values:
    return {name: stage.seconds for name, stage in step.stages.items()}


def _split(name: str) -> Read:
    def read(step: StepRecord, recipe: Recipe) -> Values:
        return {split: found.value for split in SPLITS if (found := step.mean(name, split)) is not None}

    return read


def _mean(name: str, label: str) -> Read:
    def read(step: StepRecord, recipe: Recipe) -> Values:
        return {label: found.value if (found := step.mean(name)) else None}

    return read


def _lag(step: StepRecord, recipe: Recipe) -> Values:
    newest, oldest = step.policy_version_max, step.policy_version_min
    return {} if newest is None or oldest is None else {"oldest": step.step - oldest, "newest": step.step - newest}


def _truncated(step: StepRecord, recipe: Recipe) -> Values:
    return {"cut": None if step.truncated is None or not step.rows else step.truncated / step.rows}


def _mismatch(step: StepRecord, recipe: Recipe) -> Values:
    return {"|engine - learner|": None if step.mismatch is None else step.mismatch.means()["mismatch_abs"]}


def _push(step: StepRecord, spans: Sequence[Span]) -> Values:
    """spans: of the step's time; they have the checks and a teacher's push too. The record has the parts where the
    timeline is gone."""
    timed: dict[str, float] = {}
    for span in spans:
        if part := PUSH_PARTS.get((span.lane, span.name)):
            timed[part] = timed.get(part, 0.0) + span.end - span.begin
    seconds = dict(step.push_parts or {}) | timed
    if seconds.keys() & PARTS.keys():  # of which the whole is made
        seconds.pop("push", None)
    return seconds


def _waits(service: str) -> Read:
    def read(window: Window) -> Values:
        seconds = window.end - window.begin
        return {cause: window.seconds.get((service, cause), 0.0) / seconds for cause in CAUSES[service]}

    return read


def _probe(probe: ProbeRecord) -> Values:
    values: dict[str, float] = {}
    for name, rate in probe.rates.items():
        low, high = rate.interval
        values |= {name: rate.share, f"{name} low": low, f"{name} high": high}
    return values


def _engines(key: str) -> Read:
    def read(sample: Sample, before: Sample | None) -> Values:
        return {name: engine.stats.get(key) for name, engine in sample.engines.items()}

    return read


def _growth(sample: Sample, before: Sample | None, key: str) -> Mapping[str, float]:
    """What an engine's own sum grew by; nothing for one that was not there before, or began again."""
    if before is None:
        return {}
    grown = {
        name: engine.stats[key] - before.engines[name].stats[key]
        for name, engine in sample.engines.items()
        if key in engine.stats and name in before.engines and key in before.engines[name].stats
    }
    return {name: value for name, value in grown.items() if value >= 0}


def _generated(sample: Sample, before: Sample | None) -> Values:
    seconds = sample.time - before.time if before else 0.0
    return {n: v / seconds for n, v in _growth(sample, before, "generated_tokens").items()} if seconds > 0 else {}


def _prefix(sample: Sample, before: Sample | None) -> Values:
    cached = _growth(sample, before, "cached_tokens")
    return {n: cached.get(n, 0.0) / v for n, v in _growth(sample, before, "prompt_tokens").items() if v > 0}


def _outstanding(sample: Sample, before: Sample | None) -> Values:
    return {name: engine.outstanding_tokens for name, engine in sample.engines.items()}


PANELS = (
    Panel("Throughput", "Tokens a second while at work", "tok/s", "step", "stage_tokens stage_seconds", _rates,
          note="a stage's tokens over its time"),
    Panel("Throughput", "A step's time by stage", "s", "step", "stage_seconds", _stages, stacked=True),
    Panel("Throughput", "The learner's step by part", "s", "step", "learner_part_seconds",
          lambda step, _: step.learner_parts, stacked=True,
          note="a mean over its ranks"),
    Panel("Throughput", "Model FLOP utilisation", "share", "step", "learner_mfu_ratio",
          lambda step, _: {"mfu": step.metrics.get("mfu")},
          note="of the GPU's dense bfloat16 peak, where that is known"),
    Panel("Throughput", "Step time", "s", "step", "step_seconds", lambda step, _: {"wall": step.wall_s}),
    Panel("Throughput", "What the rollout service waited for", "share", "wait", "wait_seconds_total",
          _waits("rollout"), stacked=True,
          note="over a step's time; verify: answers; write: their shard; lag: the learner, without which the staleness "
               "bound lets nothing begin; start: engines"),
    Panel("Throughput", "What the learner waited for", "share", "wait", "wait_seconds_total",
          _waits("learner"), stacked=True,
          note="over a step's time"),
    Panel("Throughput", "Groups by state", "groups", "sample", "groups", lambda sample, _: sample.groups, stacked=True),
    Panel("Engines", "Requests in the batch", "requests", "sample", "engine_running_requests",
          _engines("running_requests"),
          note="a scorer is at 0 between iterations"),
    Panel("Engines", "KV cache in use", "share", "sample", "engine_kv_cache_usage_ratio", _engines("kv_cache_usage")),
    Panel("Engines", "Outstanding tokens", "tokens", "sample", "engine_outstanding_tokens",
          _outstanding, note="given out and not answered"),
    Panel("Engines", "Tokens sampled a second", "tok/s", "sample", "engine_generated_tokens_total", _generated),
    Panel("Engines", "Prompt tokens from the prefix cache", "share", "sample",
          "engine_cached_tokens_total engine_prompt_tokens_total", _prefix),
    Panel("Engines", "Work that waits for an engine", "pieces", "sample", "pool_waiting",
          lambda sample, _: sample.waiting),
    Panel("Staleness", "Versions that rollouts were behind", "steps", "step", "policy_lag_steps", _lag),
    Panel("Staleness", "Rollouts that are not trained", "rollouts", "step", "rollouts_total prompts_refused_total",
          lambda step, _: {"dropped": step.dropped, "skipped": step.skipped_rows, "refused prompts": step.refused,
                           "not finite": step.nonfinite_rollouts}),
    Panel("Staleness", "Version that the engines hold", "steps", "sample", "policy_version",
          lambda sample, _: {"held": sample.version}),
    Panel("Weights", "A push by part", "s", "push", "lane_busy_seconds_total", _push, stacked=True,
          note="parts take turns tensor by tensor; load: engines that take the rest and put it in place"),
    Panel("Weights", "Canary", "nats", "step", "canary_nats canary_tolerance_nats",
          lambda step, recipe: {
              "canary": step.canary, "tolerance": step.canary_bound or recipe.weights.canary_tolerance,
          },
          note="largest mean |engine - learner| on a fixed text; the run stops at the tolerance"),
    Panel("Weights", "Engine and learner on what was sampled", "nats", "step", "mismatch_nats", _mismatch),
    Panel("Weights", "Peak memory of the learner", "GiB", "step", "learner_memory_bytes",
          lambda step, _: {kind: max(ranks) / 2**30 for kind, ranks in (step.peak_bytes or {}).items()},
          note="of the rank that has held most; host: its process, since its start; device: its GPU, in the step"),
    Panel("Learning", "Probe without context", "share", "probe", "probe_ratio",
          _probe, note="bands: 95% Wilson intervals"),
    Panel("Learning", "Kept tokens", "share", "step", "kept_ratio", _split("kept")),
    Panel("Learning", "Evidence", "nats/token", "step", "evidence_nats", _split("mean_evidence")),
    Panel("Learning", "k1", "nats/token", "step", "k1_nats", _mean("k1", "k1"), note="student minus teacher"),
    Panel("Learning", "KL penalty to the reference", "nats/token", "step", "learner_reference_kl_nats",
          lambda step, _: {"KL": step.metrics.get("anchor_kl")}),
    Panel("Learning", "Loss", "nats", "step", "learner_loss", lambda step, _: {"loss": step.loss}),
    Panel("Learning", "Gradient norm", "", "step", "learner_grad_norm",
          lambda step, _: {"norm": step.grad_norm}, note="before clipping"),
    Panel("Learning", "Learning rate", "", "step", "learner_learning_rate",
          lambda step, _: {"lr": step.metrics.get("lr")}),
    Panel("Learning", "Updates left out", "updates", "step", "learner_nonfinite_updates_total",
          lambda step, _: {"not finite": step.nonfinite_updates}, note="the gradient is not finite"),
    Panel("Learning", "Agreement", "share", "step", "agreement_ratio", _mean("agreement", "agreement")),
    Panel("Learning", "Reward", "", "step", "reward_mean", lambda step, _: {"reward": step.reward_mean}),
    Panel("Learning", "Response length", "tokens", "step", "response_tokens_total responses_total",
          _split("mean_response_length")),
    Panel("Learning", "Responses cut at the limit", "share", "step", "responses_total", _truncated),
)  # fmt: skip


def charts() -> dict[str, list[str]]:
    """The titles of the charts by the figure that they are made of."""
    found: dict[str, list[str]] = {}
    for panel in PANELS:
        for name in panel.figures.split():
            found.setdefault(name, []).append(panel.title)
    return found
