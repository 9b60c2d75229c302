"""The one table of what a run reports live: the exporter, the Grafana dashboard, the alert rules and docs/metrics.md
are made of it or checked against it.

Names follow Prometheus: base units, `_total` for counters and for nothing else, ratios from 0 to 1. Labels are bounded:
no rollout, group, prompt, digest or step is one. Each figure has the label `run` too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from learner.report import PARTS

PREFIX = "edge_opd_"
RAY_PREFIX = "ray_edge_opd_"  # as Ray's endpoint names them
COUNTER, GAUGE = "counter", "gauge"


@dataclass(frozen=True)
class Figure:
    """A row of the table. `unit` is empty for a count or a ratio."""

    kind: str
    unit: str
    labels: tuple[str, ...]
    meaning: str


_ENGINE = ("pool", "engine")

FIGURES: dict[str, Figure] = {
    "run_running": Figure(GAUGE, "", (), "1 while the run lasts, 0 after its end"),
    "run_stopped": Figure(GAUGE, "", (), "1 once the run was stopped as asked, before its last step; else 0"),
    "steps_planned": Figure(GAUGE, "", (), "steps of the recipe, or those of a run that ended level (probe.patience)"),
    "steps_done": Figure(GAUGE, "", (), "steps learned and pushed"),
    "step_seconds": Figure(GAUGE, "s", (), "wall time of the last step"),
    "last_step_timestamp_seconds": Figure(
        GAUGE, "s", (), "when the last step ended, or this process began after it, Unix time"
    ),
    "last_progress_timestamp_seconds": Figure(
        GAUGE, "s", (), "the same, or later: when a probe, a save or an export was last under way, Unix time"
    ),
    "eta_seconds": Figure(GAUGE, "s", (), "time left, at the mean pace of this process"),
    "stage_tokens": Figure(GAUGE, "", ("stage",), "tokens that a stage worked on in the last step"),
    "stage_seconds": Figure(GAUGE, "s", ("stage",), "time in which a stage was at work in the last step"),
    "stage_worked_tokens_total": Figure(COUNTER, "", ("stage",), "tokens that a stage worked on"),
    "stage_busy_seconds_total": Figure(COUNTER, "s", ("stage",), "time in which a stage was at work"),
    "lane_busy_seconds_total": Figure(COUNTER, "s", ("lane", "what"), "time in which a lane of the timeline did what"),
    "wait_seconds_total": Figure(
        COUNTER,
        "s",
        ("service", "what"),
        "time in which a service (rollout, learner) did nothing, by what it waited for: rollouts, weights, verify "
        "(answers), write (their shard), lag (the learner, without which the staleness bound lets nothing begin), "
        "start (of engines), probe, other",
    ),
    "groups": Figure(GAUGE, "", ("state",), "groups by what is done to them: sampling, verifying, scoring, done"),
    "oldest_group_seconds": Figure(GAUGE, "s", (), "age of the oldest group that is not done"),
    "rollouts_total": Figure(COUNTER, "", ("outcome",), "rollouts by outcome: trained, skipped, dropped, nonfinite"),
    "prompts_refused_total": Figure(COUNTER, "", (), "prompts that do not fit the window"),
    "policy_lag_steps": Figure(GAUGE, "", ("bound",), "versions that the last step's tokens were behind: min, max"),
    "responses_total": Figure(COUNTER, "", ("reason",), "responses by how they ended: stop, length"),
    "verdicts_total": Figure(
        COUNTER, "", ("outcome",), "answers put to the verifier's processes: judged, repeated, costly, lost"
    ),
    "response_tokens_total": Figure(COUNTER, "", (), "tokens of those responses"),
    "service_up": Figure(GAUGE, "", (), "1 when the rollout service answered the last question"),
    "policy_version": Figure(GAUGE, "", (), "version of the weights that the student's engines hold"),
    "pool_waiting": Figure(GAUGE, "", ("pool",), "pieces of work that no engine has room for"),
    "engine_up": Figure(GAUGE, "", _ENGINE, "1 when the engine answered the last question"),
    "engine_outstanding_tokens": Figure(GAUGE, "", _ENGINE, "tokens given to an engine and not answered"),
    "engine_running_requests": Figure(GAUGE, "", _ENGINE, "requests in an engine's batch"),
    "engine_waiting_requests": Figure(GAUGE, "", _ENGINE, "requests in an engine's own queue"),
    "engine_kv_cache_usage_ratio": Figure(GAUGE, "", _ENGINE, "share of an engine's KV blocks in use"),
    "engine_prompt_tokens_total": Figure(COUNTER, "", _ENGINE, "prompt tokens of an engine's requests"),
    "engine_cached_tokens_total": Figure(COUNTER, "", _ENGINE, "of them those that its prefix cache had"),
    "engine_generated_tokens_total": Figure(COUNTER, "", _ENGINE, "tokens that an engine sampled"),
    "engine_preemptions_total": Figure(COUNTER, "", _ENGINE, "requests put back for want of KV blocks"),
    "learner_loss": Figure(GAUGE, "nats", (), "loss of the last step"),
    "learner_reference_kl_nats": Figure(GAUGE, "nats", (), "KL penalty to the reference a token, before beta_kl"),
    "learner_part_seconds": Figure(
        GAUGE, "s", ("part",), "time of the last step's parts, a mean over ranks: " + ", ".join(PARTS)
    ),
    "learner_mfu_ratio": Figure(GAUGE, "", (), "share of the GPU's dense bfloat16 peak, where that is known"),
    "learner_memory_bytes": Figure(
        GAUGE, "bytes", ("rank", "kind"), "most memory of a rank: host (since its start), device (in the last step)"
    ),
    "learner_grad_norm": Figure(GAUGE, "", (), "gradient's global norm before clipping"),
    "learner_learning_rate": Figure(GAUGE, "", (), "learning rate of the last step"),
    "learner_nonfinite_updates_total": Figure(COUNTER, "", (), "updates left out: the gradient is not finite"),
    "kept_ratio": Figure(GAUGE, "", ("split",), "share of tokens that the mask keeps: all, guided, plain"),
    "evidence_nats": Figure(GAUGE, "nats", ("split",), "mean evidence a token: all, guided, plain"),
    "k1_nats": Figure(GAUGE, "nats", (), "mean student minus teacher log-prob a token"),
    "agreement_ratio": Figure(GAUGE, "", (), "share of the student's tokens where evidence and surprise agree"),
    "reward_mean": Figure(GAUGE, "", (), "mean reward of the last step's rollouts"),
    "mismatch_nats": Figure(GAUGE, "nats", (), "mean |engine - learner| a sampled token"),
    "canary_nats": Figure(GAUGE, "nats", (), "largest mean |engine - learner| a token of the last push's fixed text"),
    "canary_tolerance_nats": Figure(GAUGE, "nats", (), "the canary at which the run stops"),
    "probe_ratio": Figure(GAUGE, "", ("rate", "bound"), "rates of the last probe; bound: value, low, high"),
    "probe_first_ratio": Figure(GAUGE, "", ("rate", "bound"), "the same of the first probe"),
}


def table(charts: Mapping[str, Sequence[str]]) -> str:
    """The rows as Markdown. charts: of the page, by the figure that each is of."""
    lines = ["| name | kind | unit | labels | meaning | charts of the page |", "|---|---|---|---|---|---|"]
    for name, row in FIGURES.items():
        meaning, shown = row.meaning.replace("|", "\\|"), ", ".join(charts.get(name, ()))
        lines.append(f"| `{PREFIX}{name}` | {row.kind} | {row.unit} | {', '.join(row.labels)} | {meaning} | {shown} |")
    return "\n".join(lines) + "\n"
