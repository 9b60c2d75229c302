"""The alert rules, from a literal table. A run that is resumed has series of two processes for some minutes, so what is
compared is one value a run. No alert rests on a run's last word, which Ray may not export any more:
RunVanished compares the steps done with those planned, but for a run that was heard to be stopped as asked.
"""

from typing import Any

from cluster.observe.grafana import promql

# name: (expression, for, severity, what it says); e_ is a figure of the table
ALERTS: dict[str, tuple[str, str, str, str]] = {
    "RunStalled": (
        # How long a first step takes is not known: it has an hour. A probe, a save or an export may take longer.
        "time() - max by (run) (e_last_progress_timestamp_seconds) > clamp_min("
        "4 * max by (run) (e_step_seconds) or 3600 * max by (run) (e_run_running), 900) "
        "and max by (run) (e_run_running) == 1",
        "1m", "page", "{{ $labels.run }} has got no further for {{ $value | humanizeDuration }}",
    ),
    "RunVanished": (
        "max by (run) (last_over_time(e_steps_done[10m])) < max by (run) (last_over_time(e_steps_planned[10m])) "
        "unless on (run) e_steps_done unless on (run) max by (run) (last_over_time(e_run_stopped[10m])) == 1",
        "1m", "page", "{{ $labels.run }} is gone after {{ $value }} steps",
    ),
    "ServiceSilent": (
        "max by (run) (e_service_up) == 0", "2m", "page", "the rollout service of {{ $labels.run }} does not answer",
    ),
    "EngineSilent": (
        "e_engine_up == 0 unless on (run) max by (run) (e_service_up) == 0",
        "2m", "page", "{{ $labels.engine }} of {{ $labels.run }} does not answer",
    ),
    "NodeMemory": (
        "ray_node_mem_used / ray_node_mem_total > 0.93",
        "2m", "page", "{{ $labels.instance }} uses {{ $value | humanizePercentage }} of its memory; Ray kills at 95%",
    ),
    "CanaryNearTolerance": (
        "max by (run) (min_over_time(e_canary_nats[15m])) > 0.8 * max by (run) (e_canary_tolerance_nats)",
        "0m", "warn", "the canary of {{ $labels.run }} is at {{ $value }} nats",
    ),
    "RolloutsThrownAway": (
        'sum by (run) (increase(e_rollouts_total{outcome="dropped"}[30m])) '
        "/ sum by (run) (increase(e_rollouts_total[30m])) > 0.1",
        "5m", "warn", "{{ $labels.run }} drops {{ $value | humanizePercentage }} of its rollouts",
    ),
    "KvCacheFull": (
        "rate(e_engine_preemptions_total[5m]) > 0.1 and e_engine_kv_cache_usage_ratio > 0.9",
        "10m", "warn", "{{ $labels.engine }} of {{ $labels.run }} puts requests back for want of KV blocks",
    ),
    "LearnerStarved": (
        'max by (run) (e_stage_seconds{stage="learn"}) / max by (run) (e_step_seconds) < 0.3 '
        'and max by (run) (e_policy_lag_steps{bound="max"}) > 0',
        "30m", "warn", "the learner of {{ $labels.run }} works {{ $value | humanizePercentage }} of a step",
    ),
    "ProbeFell": (
        'max by (run) (e_probe_ratio{bound="high",rate="capability"}) '
        '< max by (run) (e_probe_first_ratio{bound="low",rate="capability"})',
        "0m", "warn", "capability of {{ $labels.run }} fell to at most {{ $value | humanizePercentage }}",
    ),
}  # fmt: skip


def rules() -> dict[str, Any]:
    """The rules file."""
    made = [
        {"alert": name, "expr": promql(expression), "for": lasting, "labels": {"severity": severity},
         "annotations": {"summary": words}}
        for name, (expression, lasting, severity, words) in ALERTS.items()
    ]  # fmt: skip
    return {"groups": [{"name": "edge-opd", "rules": made}]}
