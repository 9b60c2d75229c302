"""The Grafana dashboard, from a literal table: rows of panels, each with its unit and its PromQL.

`R` are the runs that are picked, each a series of its own; `I` is Grafana's rate interval. What grows once a step is
shown by the gauge of the last step, or by what it grew by in an hour; `rate` is for what grows all the time, and so for
the lanes of the timeline, but for those of a push and of the learner's ranks. `max by (run)` keeps two drivers of one
run from ending a query.
"""

import re
from collections.abc import Iterator
from typing import Any

from cluster.observe.figures import FIGURES, RAY_PREFIX
from cluster.weights.parts import LANE
from learner.report import RANKS

Target = str
Row = tuple[str, tuple[tuple[str, str, tuple[Target, ...]], ...]]

# e_NAME is a figure of the table; {R} and {R,label="x"} the run; [I] the interval.
ROWS: tuple[Row, ...] = (
    ("Is it well?", (
        ("Running", "bool_yes_no", ("max by (run) (e_run_running{R})",)),
        ("Step", "", ("max by (run) (e_steps_done{R})", "max by (run) (e_steps_planned{R})")),
        ("Since the last step", "s", ("time() - max by (run) (e_last_step_timestamp_seconds{R})",)),
        ("Left", "s", ("max by (run) (e_eta_seconds{R})",)),
        ("Trained tokens a second", "short",
         ('max by (run) (e_stage_tokens{R,stage="learn"}) / max by (run) (e_step_seconds{R})',)),
        ("The rollout service answers", "bool_yes_no", ("max by (run) (e_service_up{R})",)),
        ("Engines that answer", "", ("sum by (run) (e_engine_up{R})", "count by (run) (e_engine_up{R})")),
        ("Canary of its tolerance", "percentunit",
         ("max by (run) (e_canary_nats{R}) / max by (run) (e_canary_tolerance_nats{R})",)),
    )),
    ("Throughput: which stage is the bottleneck", (
        ("Tokens a second while at work", "short",
         ('max by (run, stage) (e_stage_tokens{R,stage=~"sample|score|learn"}) '
          '/ max by (run, stage) (e_stage_seconds{R,stage=~"sample|score|learn"})',)),
        ("Tokens a second while at work, of the last hour", "short",
         ('sum by (run, stage) (increase(e_stage_worked_tokens_total{R,stage=~"sample|score|learn"}[1h])) '
          '/ (sum by (run, stage) (increase(e_stage_busy_seconds_total{R,stage=~"sample|score|learn"}[1h])) > 0)',)),
        ("Share of the last step at work", "percentunit",
         ("max by (run, stage) (e_stage_seconds{R}) / on (run) group_left max by (run) (e_step_seconds{R})",)),
        ("Tokens a second of wall time", "short",
         ('max by (run, stage) (e_stage_tokens{R,stage=~"sample|score|learn"}) '
          "/ on (run) group_left max by (run) (e_step_seconds{R})",)),
        ("Step time", "s", ("max by (run) (e_step_seconds{R})",)),
        ("The learner's step by part", "s", ("max by (run, part) (e_learner_part_seconds{R})",)),
        ("Model FLOP utilisation", "percentunit", ("max by (run) (e_learner_mfu_ratio{R})",)),
        ("Who works", "percentunit",
         (f'sum by (run, lane, what) (rate(e_lane_busy_seconds_total{{R,lane!~"{LANE}|{RANKS}.*",what!~"wait.*"}}'
          "[I]))",)),
        ("What the driver waits for", "percentunit",
         ('sum by (run, what) (rate(e_lane_busy_seconds_total{R,lane="driver"}[I]))',)),
        ("What each service waits for", "percentunit",
         ("sum by (run, service, what) (rate(e_wait_seconds_total{R}[I]))",)),
        ("Groups by state", "short", ("sum by (run, state) (e_groups{R})",)),
        ("Oldest group", "s", ("max by (run) (e_oldest_group_seconds{R})",)),
    )),
    ("Engines", (
        ("Outstanding tokens", "short", ("max by (run, pool, engine) (e_engine_outstanding_tokens{R})",)),
        ("Requests in the batch (a scorer is at 0 between iterations)", "short",
         ("max by (run, pool, engine) (e_engine_running_requests{R})",)),
        ("Work that waits", "short", ("sum by (run, pool) (e_pool_waiting{R})",
                                      "sum by (run, pool) (e_engine_waiting_requests{R})")),
        ("KV cache in use", "percentunit", ("max by (run, pool, engine) (e_engine_kv_cache_usage_ratio{R})",)),
        ("Prompt tokens from the prefix cache", "percentunit",
         ("(sum by (run, pool) (rate(e_engine_cached_tokens_total{R}[I])) "
          "or 0 * sum by (run, pool) (rate(e_engine_prompt_tokens_total{R}[I]))) "
          "/ sum by (run, pool) (rate(e_engine_prompt_tokens_total{R}[I]) > 0)",)),
        ("Preemptions a second", "short",
         ("sum by (run, pool, engine) (rate(e_engine_preemptions_total{R}[I])) "
          "or 0 * sum by (run, pool, engine) (e_engine_up{R})",)),
        ("Tokens sampled a second", "short",
         ("sum by (run, pool, engine) (rate(e_engine_generated_tokens_total{R}[I]))",)),
    )),
    ("Staleness and what is thrown away", (
        ("Versions that tokens were behind", "short", ("max by (run, bound) (e_policy_lag_steps{R})",)),
        ("Rollouts by outcome, an hour", "short", ("sum by (run, outcome) (increase(e_rollouts_total{R}[1h]))",)),
        ("Answers put to the verifier, an hour", "short",
         ("sum by (run, outcome) (increase(e_verdicts_total{R}[1h]))",)),
        ("Policy version of the engines", "short", ("max by (run) (e_policy_version{R})",
                                                    "max by (run) (e_steps_done{R})")),
    )),
    ("Weights", (
        ("A push by part, seconds an hour", "s",
         ('sum by (run, what) (increase(e_lane_busy_seconds_total{R,lane="push"}[1h])) '
          'or sum by (run, what) (increase(e_lane_busy_seconds_total{R,what=~"check|canary"}[1h])) '
          'or sum by (run, what) (increase(e_lane_busy_seconds_total{R,what="push"}[1h])) '
          'unless on (run) sum by (run) (increase(e_lane_busy_seconds_total{R,lane="push"}[1h]))',)),
        ("Canary", "short", ("max by (run) (e_canary_nats{R})", "max by (run) (e_canary_tolerance_nats{R})")),
        ("Peak memory of the learner", "bytes", ("max by (run, rank, kind) (e_learner_memory_bytes{R})",)),
        ("Engine and learner on what was sampled", "short", ("max by (run) (e_mismatch_nats{R})",)),
    )),
    ("Learning", (
        ("Probe without context", "percentunit", ('max by (run, rate) (e_probe_ratio{R,bound="value"})',)),
        ("Probe's intervals", "percentunit", ('max by (run, rate, bound) (e_probe_ratio{R,bound=~"low|high"})',)),
        ("Kept tokens", "percentunit", ("max by (run, split) (e_kept_ratio{R})",)),
        ("Evidence, nats a token", "short", ("max by (run, split) (e_evidence_nats{R})",)),
        ("k1, nats a token", "short", ("max by (run) (e_k1_nats{R})",)),
        ("KL penalty to the reference, nats a token", "short", ("max by (run) (e_learner_reference_kl_nats{R})",)),
        ("Loss", "short", ("max by (run) (e_learner_loss{R})",)),
        ("Gradient norm", "short", ("max by (run) (e_learner_grad_norm{R})",)),
        ("Learning rate", "short", ("max by (run) (e_learner_learning_rate{R})",)),
        ("Updates whose gradient is not finite, an hour", "short",
         ("sum by (run) (increase(e_learner_nonfinite_updates_total{R}[1h])) or 0 * max by (run) (e_steps_done{R})",)),
        ("Agreement", "percentunit", ("max by (run) (e_agreement_ratio{R})",)),
        ("Responses cut at the limit, of the last hour", "percentunit",
         ('(sum by (run) (increase(e_responses_total{R,reason="length"}[1h])) '
          "or 0 * sum by (run) (increase(e_responses_total{R}[1h]))) "
          "/ sum by (run) (increase(e_responses_total{R}[1h]))",)),
        ("Mean response of the last hour", "short",
         ("sum by (run) (increase(e_response_tokens_total{R}[1h])) "
          "/ sum by (run) (increase(e_responses_total{R}[1h]))",)),
    )),
    ("Nodes (Ray's own)", (
        ("GPU in use", "percent", ("sum by (instance, GpuIndex) (ray_node_gpus_utilization)",)),
        ("GPU memory", "mbytes", ("sum by (instance, GpuIndex) (ray_node_gram_used)",)),
        ("Host memory", "percentunit", ("ray_node_mem_used / ray_node_mem_total",)),
    )),
)  # fmt: skip
# What tells the queries of a panel apart whose series have the same labels
NAMES: dict[str, tuple[str, ...]] = {
    "Step": ("done", "planned"),
    "Engines that answer": ("answer", "all"),
    "Work that waits": ("for an engine", "in an engine"),
    "Policy version of the engines": ("engines", "learner"),
    "Canary": ("canary", "tolerance"),
}
SMALL_ROW = 0  # its panels are single figures
WIDTH, HEIGHT = 8, 7  # of a panel, of Grafana's 24 columns


def promql(target: Target, run: str = "$run", interval: str = "$__rate_interval") -> str:
    """A target as Prometheus takes it."""
    for name in re.findall(r"\be_(\w+)", target):
        assert name in FIGURES, name
    text = re.sub(r"\be_(\w+)", rf"{RAY_PREFIX}\1", target)
    return text.replace("{R", f'{{run=~"{run}"').replace("[I]", f"[{interval}]")


def legend(target: Target, name: str = "") -> str:
    """What Grafana calls a series: by the labels that the query keeps, after `name`."""
    kept = re.search(r"by \(([^)]*)\)", target)
    labels = kept[1].split(", ") if kept else ["instance"]  # a node's
    return " ".join([*([name] if name else []), *(f"{{{{{label}}}}}" for label in labels)])


def dashboard() -> dict[str, Any]:
    """The dashboard's JSON model, of Grafana's schema 39."""
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    query = {"name": "run", "label": "Run", "type": "query", "multi": True, "includeAll": True, "refresh": 2,
             "current": {"text": ["All"], "value": ["$__all"]},
             "datasource": _SOURCE, "definition": f"label_values({RAY_PREFIX}steps_planned, run)",
             "query": {"query": f"label_values({RAY_PREFIX}steps_planned, run)", "refId": "run"}}  # fmt: skip
    return {
        "uid": "edge-opd", "title": "EDGE-OPD", "tags": ["edge-opd"], "schemaVersion": 39, "version": 1,
        "editable": True, "timezone": "browser", "refresh": "10s", "time": {"from": "now-1h", "to": "now"},
        "graphTooltip": 1, "templating": {"list": [source, query]}, "annotations": {"list": []},
        "panels": list(_panels()),
    }  # fmt: skip


_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def _panels() -> Iterator[dict[str, Any]]:
    number, y = 0, 0
    for place, (title, panels) in enumerate(ROWS):
        number += 1
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "panels": [],
               "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}}  # fmt: skip
        y += 1
        wide, high = (24 // len(panels), 4) if place == SMALL_ROW else (WIDTH, HEIGHT)
        for index, (name, unit, targets) in enumerate(panels):
            number += 1
            across = index % (24 // wide)
            at = {"x": across * wide, "y": y + index // (24 // wide) * high, "w": wide, "h": high}
            kind = "stat" if place == SMALL_ROW else "timeseries"
            yield {"id": number, "type": kind, "title": name, "gridPos": at, "datasource": _SOURCE,
                   "fieldConfig": {"defaults": {"unit": unit or "none"}, "overrides": []},
                   "targets": list(_targets(targets, NAMES.get(name, ("",))))}  # fmt: skip
        y += -(-len(panels) // (24 // wide)) * high


def _targets(targets: tuple[Target, ...], names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for place, (target, name) in enumerate(zip(targets, names, strict=True)):
        yield {"refId": chr(ord("A") + place), "datasource": _SOURCE, "expr": promql(target),
               "legendFormat": legend(target, name)}  # fmt: skip
