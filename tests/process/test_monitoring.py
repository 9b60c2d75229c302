"""Prometheus and Grafana: the committed files are what the code makes, and a real Prometheus answers every panel."""

import asyncio
import math
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from ray._private.parameter import RayParams as Parameters

from cluster.__main__ import main
from cluster.config import Recipe
from cluster.dashboard.panels import charts
from cluster.fleet.ray_cluster import local_arguments
from cluster.observe.alerts import ALERTS
from cluster.observe.config import ObserveConfig
from cluster.observe.figures import FIGURES, RAY_PREFIX
from cluster.observe.grafana import ROWS, dashboard, legend, promql
from cluster.observe.monitoring import files
from cluster.observe.observer import Batch
from cluster.observe.openmetrics import lines
from cluster.observe.ray_sink import RaySink
from cluster.observe.readings import PROGRESS
from cluster.observe.seen import Seen, read_seen
from cluster.observe.sinks import MetricsSink
from cluster.observe.timeline import CALLS
from cluster.observe.values import Values
from cluster.observe.waits import waited
from cluster.run import start
from cluster.run.record import read_steps
from cluster.run.rundir import RunDir
from evidence.telemetry import Span
from tests.observed import BEGAN, STEP_S, a_sample, a_step, crowded, observed_run, spans_of
from tests.pages import MONITORING
from tests.prometheus import promtool, serving
from tests.unit.test_observer import Kept, answers, observed


def test_the_committed_files_are_what_the_code_makes() -> None:
    found = {str(path.relative_to(MONITORING)): path.read_text() for path in MONITORING.rglob("*") if path.is_file()}
    assert found == files(), "python -m tests.pages writes them again"


def test_the_dashboard_has_every_panel_once_and_none_over_another() -> None:
    panels = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
    assert len(panels) == sum(len(row) for _, row in ROWS) >= 37
    titles = [panel["title"] for panel in dashboard()["panels"]]
    assert len(set(titles)) == len(titles)
    cells: set[tuple[int, int]] = set()
    for at in (panel["gridPos"] for panel in dashboard()["panels"]):
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not own & cells
        cells |= own
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(titles)


def test_no_two_series_of_a_panel_have_one_legend() -> None:
    """A legend has each label that the query keeps, and a name of its own where several queries keep the same."""
    for panel in (panel for panel in dashboard()["panels"] if panel["type"] != "row"):
        legends = [target["legendFormat"] for target in panel["targets"]]
        assert len(set(legends)) == len(legends), panel["title"]
        for target in panel["targets"]:
            kept = next((labels for labels, _ in aggregated(target["expr"])), {"instance"})
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) == kept, panel["title"]
    assert legend("sum by (run, what) (rate(e_x{R}[I]))", "a") == "a {{run}} {{what}}"


def test_a_figure_that_is_yes_or_no_is_shown_in_words() -> None:
    found = [title for _, row in ROWS for title, unit, _ in row if unit == "bool_yes_no"]
    assert found == ["Running", "The rollout service answers"]


def test_rules_and_panels_name_figures_of_the_table_with_their_labels() -> None:
    expressions = [target for _, row in ROWS for _, _, targets in row for target in targets]
    for expression in (*expressions, *(alert[0] for alert in ALERTS.values())):
        for name, inside in re.findall(r"\be_(\w+)(?:\{([^}]*)\})?", expression):
            labels = re.findall(r"(\w+)(?:=~|!~|!=|=)", inside)
            assert set(labels) <= {*FIGURES[name].labels, "run"}, expression
    with pytest.raises(AssertionError):
        promql("e_no_such_figure{R}")


def test_every_figure_is_in_a_panel_a_rule_or_a_chart() -> None:
    expressions = [target for _, row in ROWS for _, _, targets in row for target in targets]
    expressions += [alert[0] for alert in ALERTS.values()]
    shown = {name for expression in expressions for name in re.findall(r"\be_(\w+)", expression)}
    assert set(FIGURES) == shown | set(charts())


def aggregated(expression: str) -> Iterator[tuple[set[str], set[str]]]:
    """The labels that each aggregation keeps, and the figures that it is over."""
    for found in re.finditer(r"\b(?:sum|count|avg|min|max)\b(?: by \(([^)]*)\))? ?\(", expression):
        depth, end = 1, found.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(expression[end], 0)
            end += 1
        yield set(re.findall(r"\w+", found[1] or "")), set(re.findall(r"\be_(\w+)", expression[found.end() : end]))


def test_no_aggregation_puts_runs_together_or_keeps_a_label_that_its_figures_lack() -> None:
    expressions = [target for _, row in ROWS for _, _, targets in row for target in targets]
    seen = 0
    for expression in (*expressions, *(alert[0] for alert in ALERTS.values())):
        for kept, over in aggregated(expression):
            seen += len(over)
            for name in over:
                assert {"run"} <= kept <= {*FIGURES[name].labels, "run"}, expression
    assert seen > 70
    assert list(aggregated("max by (a, run) (rate(e_x{R}[I])) / sum(e_y)")) == [({"a", "run"}, {"x"}), (set(), {"y"})]


def test_promtool_accepts_the_rules_and_the_configuration() -> None:
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", str(MONITORING / "edge-opd.rules.yml"))
    promtool("check", "config", "--syntax-only", str(MONITORING / "prometheus.yml"))


# name: series as promtool writes them, minute by minute; at which times which alerts fire
CASES: dict[str, tuple[dict[str, str], str, set[str]]] = {
    "stalled": (
        {"run_running": "1x60", "last_progress_timestamp_seconds": "60x60", "step_seconds": "30x60",
         "steps_done": "3x60", "steps_planned": "9x60"}, "40m", {"RunStalled"},
    ),
    "slow but not stalled": (
        {"run_running": "1x60", "last_progress_timestamp_seconds": "60x60", "step_seconds": "900x60",
         "steps_done": "3x60", "steps_planned": "9x60"}, "40m", set(),
    ),
    "vanished": (
        {"run_running": "1x10 stale", "steps_done": "3x10 stale", "steps_planned": "9x10 stale"}, "15m",
        {"RunVanished"},
    ),
    "vanished, some minutes after it was resumed by another process": (
        {'run_running{WorkerId="a"}': "1x5 stale", 'steps_done{WorkerId="a"}': "3x5 stale",
         'steps_planned{WorkerId="a"}': "9x5 stale", 'run_running{WorkerId="b"}': "_x6 1x4 stale",
         'steps_done{WorkerId="b"}': "_x6 4x4 stale", 'steps_planned{WorkerId="b"}': "_x6 9x4 stale"}, "14m",
        {"RunVanished"},
    ),
    "resumed by another process": (  # which starts services until minute 20, and needs 10 for a step
        {'run_running{WorkerId="a"}': "1x9 stale", 'steps_done{WorkerId="a"}': "3x9 stale",
         'steps_planned{WorkerId="a"}': "9x9 stale", 'run_running{WorkerId="b"}': "_x9 1x50",
         'steps_done{WorkerId="b"}': "_x9 3x20 4x30", 'steps_planned{WorkerId="b"}': "_x9 9x50",
         'step_seconds{WorkerId="a"}': "600x9 stale", 'step_seconds{WorkerId="b"}': "_x9 600x50",
         'last_progress_timestamp_seconds{WorkerId="a"}': "60x9 stale",
         'last_progress_timestamp_seconds{WorkerId="b"}': "_x20 1200x9 1800x50",
         'probe_ratio{WorkerId="a",rate="capability",bound="high"}': "0.5x9 stale",
         'probe_first_ratio{WorkerId="a",rate="capability",bound="low"}': "0.4x9 stale",
         'probe_ratio{WorkerId="b",rate="capability",bound="high"}': "_x9 0.5x50",
         'probe_first_ratio{WorkerId="b",rate="capability",bound="low"}': "_x9 0.4x50"}, "12m 19m 29m 45m", set(),
    ),
    "the first step after a resume hangs": (
        {"run_running": "_x9 1x90", "steps_done": "_x9 3x90", "steps_planned": "_x9 9x90", "step_seconds": "_x9 60x90",
         "last_progress_timestamp_seconds": "_x20 1200x90"}, "40m", {"RunStalled"},
    ),
    "the first step of all hangs": (
        {"run_running": "1x99", "steps_done": "0x99", "steps_planned": "9x99",
         "last_progress_timestamp_seconds": "_x9 600x90"}, "75m", {"RunStalled"},
    ),
    "a long first step, after a long start": (
        {"run_running": "1x99", "steps_done": "0x99", "steps_planned": "9x99",
         "last_progress_timestamp_seconds": "_x29 1800x60"}, "25m 80m", set(),
    ),
    "vanished in its start": (
        {"run_running": "1x10 stale", "steps_done": "0x10 stale", "steps_planned": "9x10 stale"}, "15m",
        {"RunVanished"},
    ),
    "a probe that is longer than steps are": (  # 20 minutes from minute 1 on; the next step has 10
        {"run_running": "1x99", "last_step_timestamp_seconds": "60x30 1860x60", "step_seconds": "30x99",
         "last_progress_timestamp_seconds": "60 60+60x20 1260x10 1860x60", "steps_done": "3x99",
         "steps_planned": "9x99"}, "10m 20m 30m 33m", set(),
    ),
    "a step hangs after a long probe": (
        {"run_running": "1x99", "last_step_timestamp_seconds": "60x99", "step_seconds": "30x99",
         "last_progress_timestamp_seconds": "60 60+60x20 1260x70", "steps_done": "3x99", "steps_planned": "9x99"},
        "50m", {"RunStalled"},
    ),
    "stopped as asked": (
        {"run_running": "1x8 0 0 stale", "steps_done": "3x10 stale", "steps_planned": "9x10 stale",
         "run_stopped": "_x8 1 1 stale"}, "12m 15m 19m", set(),
    ),
    "stopped as asked, and vanished after another process resumed it": (
        {'run_running{WorkerId="a"}': "1x3 0 0 stale", 'steps_done{WorkerId="a"}': "3x5 stale",
         'steps_planned{WorkerId="a"}': "9x5 stale", 'run_stopped{WorkerId="a"}': "_x3 1 1 stale",
         'run_running{WorkerId="b"}': "_x6 1x7 stale", 'steps_done{WorkerId="b"}': "_x6 4x7 stale",
         'steps_planned{WorkerId="b"}': "_x6 9x7 stale", 'run_stopped{WorkerId="b"}': "_x6 0x7 stale"}, "20m",
        {"RunVanished"},
    ),
    "failed": (
        {"run_running": "1x8 0 0 stale", "steps_done": "3x10 stale", "steps_planned": "9x10 stale",
         "run_stopped": "0x10 stale"}, "15m", {"RunVanished"},
    ),
    "finished": (
        {"run_running": "1x8 0 0 stale", "steps_done": "9x10 stale", "steps_planned": "9x10 stale"}, "15m", set(),
    ),
    "wasteful": (
        {'rollouts_total{outcome="dropped"}': "0+3x60", 'rollouts_total{outcome="trained"}': "0+7x60"}, "50m",
        {"RolloutsThrownAway"},
    ),
    "thrifty": (
        {'rollouts_total{outcome="dropped"}': "0+1x60", 'rollouts_total{outcome="trained"}': "0+99x60"}, "50m", set(),
    ),
    "near its tolerance": (
        {"canary_nats": "0.09x60", "canary_tolerance_nats": "0.1x60"}, "30m", {"CanaryNearTolerance"},
    ),
    "a silent engine": (
        {'engine_up{engine="e0"}': "1x5 0x20", 'engine_up{engine="e1"}': "1x30", "service_up": "1x30"}, "20m",
        {"EngineSilent"},
    ),
    "a silent service": (
        {"service_up": "1x5 0x50", 'engine_up{engine="e0"}': "1x5 0x50", 'engine_up{engine="e1"}': "1x5 0x50"}, "20m",
        {"ServiceSilent"},
    ),
    "a service that was late for a minute": (
        {"service_up": "1x5 0 1x50", 'engine_up{engine="e0"}': "1x5 0 1x50"}, "6m 8m", set(),
    ),
    "a fallen capability": (
        {'probe_ratio{rate="capability",bound="high"}': "0.3x60",
         'probe_first_ratio{rate="capability",bound="low"}': "0.4x60"}, "5m", {"ProbeFell"},
    ),
    "a full cache": (
        {'engine_preemptions_total{engine="e0"}': "0+60x60", 'engine_kv_cache_usage_ratio{engine="e0"}': "0.97x60"},
        "30m", {"KvCacheFull"},
    ),
    "a node short of memory": (
        {'ray_node_mem_used{instance="a"}': "95x60", 'ray_node_mem_total{instance="a"}': "100x60",
         'ray_node_mem_used{instance="b"}': "90x60", 'ray_node_mem_total{instance="b"}': "100x60"}, "10m",
        {"NodeMemory"},
    ),
    "a node that was short of memory for a minute": (
        {"ray_node_mem_used": "50x8 95 50x60", "ray_node_mem_total": "100x70"}, "10m", set(),
    ),
    "a starved learner": (
        {'stage_seconds{stage="learn"}': "2x60", "step_seconds": "10x60", 'policy_lag_steps{bound="max"}': "1x60"},
        "50m", {"LearnerStarved"},
    ),
}  # fmt: skip


def series(name: str, values: str) -> dict[str, str]:
    bare, _, labels = name.partition("{")
    prefix, own = ("", []) if bare.startswith("ray_node_") else (RAY_PREFIX, ['run="r"'])  # Ray's own name no run
    inside = ",".join([*own, *([labels.rstrip("}")] if labels else [])])
    return {"series": f"{prefix}{bare}{{{inside}}}", "values": re.sub(r"(?<![+\d.])([\d.]+)x", r"\1+0x", values)}


def test_every_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    assert {name for *_, fired in CASES.values() for name in fired} == set(ALERTS)
    shutil.copy(MONITORING / "edge-opd.rules.yml", tmp_path / "rules.yml")
    tests = []
    for found, times, fired in CASES.values():
        # That an alert fires is asked of ALERTS: its labels and words are not compared here.
        asked = [
            {"expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) or vector(0)', "eval_time": at,
             "exp_samples": [{"labels": "{}", "value": float(name in fired)}]}
            for name in ALERTS for at in times.split()
        ]  # fmt: skip
        written = [series(name, values) for name, values in found.items()]
        tests.append({"interval": "1m", "input_series": written, "promql_expr_test": asked})
    whole = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(whole))
    promtool("test", "rules", "tests.yml", cwd=tmp_path)


# The endpoint's port


EXPORTER = """
import sys
from ray._private.prometheus_exporter import Options, new_stats_exporter
try:
    print(new_stats_exporter(Options(namespace="ray", port=int(sys.argv[1]), address="127.0.0.1")).port)
except OSError as error:
    print(error.strerror)
"""


def port_of_the_agent(asked: int) -> str:
    """What the agent of a Ray node, which this is the exporter of, makes of a port that it is started with."""
    command = [sys.executable, "-c", EXPORTER, str(asked)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.strip()


def test_a_local_runs_endpoint_is_at_a_port_that_nothing_else_has(tmp_path: Path) -> None:
    """Beside another run, or a Ray or a Prometheus exporter that somebody has at Ray's usual ones. Where a port is
    named, as `ray start --metrics-export-port` does, one that is in use is an error of Ray's."""
    named = local_arguments(tmp_path)
    assert not {"_metrics_export_port", "_metrics_agent_port", "dashboard_agent_listen_port"} & set(named)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert port_of_the_agent(port) == "Address already in use"
        own = port_of_the_agent(Parameters().metrics_export_port or 0)  # as Ray's node passes it on
        assert int(own) not in (0, port)


@pytest.mark.parametrize("watched", [True, False])
def test_a_run_says_where_its_endpoint_is(
    watched: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The port is one that Ray chose, of this process's own node."""
    nodes = [
        {"NodeID": name, "NodeManagerAddress": "127.0.0.1", "MetricsExportPort": port}
        for name, port in (("theirs", 8080), ("ours", 41234))
    ]
    own = SimpleNamespace(get_node_id=lambda: "ours")
    fake = SimpleNamespace(nodes=lambda: nodes, get_runtime_context=lambda: own)
    monkeypatch.setattr("cluster.fleet.ray_cluster.ray", fake)
    monkeypatch.setattr(start, "connect", lambda: None)
    monkeypatch.setattr(start, "watched_head", lambda _: nullcontext())

    async def survive(*_: object) -> None:
        pass

    monkeypatch.setattr(start, "_survive", survive)
    recipe = Recipe(observe=ObserveConfig(ray=watched))
    asyncio.run(start._run(recipe, RunDir(Path("r")), MetricsSink(1), False, None))  # type: ignore[arg-type]
    said = "figures for Prometheus: http://127.0.0.1:41234/metrics\n"
    assert capsys.readouterr().out == (said if watched else "")


def test_figures_without_an_endpoint_do_not_end_a_run(tmp_path: Path) -> None:
    """A Ray that has none: its agent is gone, or nothing is connected."""
    good, sink = Kept(), RaySink(tmp_path, Recipe())
    said = observed(answers, [sink, good])
    assert said == [] and len(sink._told) > 3 and good.batches[-1].ended == "finished"


# A finished run in a real Prometheus


Query = Callable[..., list[float]]  # of an expression, a run and an interval
REAL = Path(__file__).parents[1] / "data" / "small-run"  # `python -m cluster run` on two cores: tests/data/README.md


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Query]:
    """What a PromQL expression's points are over two runs of 60 steps that are made up, or over the real one, each
    filled in from its files, or over what endpoints have told while long steps were under way."""
    folder = tmp_path_factory.mktemp("prometheus")
    times = [step.time or 0.0 for step in read_steps(REAL / "metrics.jsonl").values()]
    ranges = {REAL.name: (times[0], times[-1] + 1)}
    for run in (*(observed_run(folder / name, steps=60) for name in ("observed", "beside")), REAL):
        assert main(["export-metrics", str(run), "--out", str(folder / "run.txt")]) == 0
        promtool("tsdb", "create-blocks-from", "openmetrics", str(folder / "run.txt"), str(folder / "data"))
    (folder / "lanes.txt").write_text("".join(told_of_lanes()))
    promtool("tsdb", "create-blocks-from", "openmetrics", str(folder / "lanes.txt"), str(folder / "data"))
    with serving(folder, "", "--storage.tsdb.retention.time=100y") as server:
        yield lambda target, run="observed", interval="1m": server.points(
            promql(target, run=run, interval=interval),
            *ranges.get(run, (BEGAN, BEGAN + 60 * STEP_S)),
            1 if run == REAL.name else 10,
        )


def told_of_lanes() -> Iterator[str]:
    """Scrapes of three runs whose steps have 300 s, 270 of them the learner's. What the driver does comes as it is
    done, what ranks say of a step and of a push once it is over; `older` has no parts of a push."""
    ahead = ("long", "learner", "learn", 0.9), ("long", "student engine 0", "sample", 0.8)
    ahead += ("long", "student engine 0", "score", 0.7), ("older", "driver", "check", 0.01)
    ahead += ("long", "learner", "push", 0.1), ("older", "learner", "push", 0.1)
    after = [("long", f"learner rank {rank}", "learn", 270.0) for rank in (0, 1)]
    after += [("long", "push", part, 15.0) for part in ("pause", "send")]
    name = f"{RAY_PREFIX}lane_busy_seconds"
    yield f"# TYPE {name} counter\n"
    for run, lane, what, seconds in (*ahead, *after):
        for at in range(0, 601, 10):
            value = seconds * at if (run, lane, what, seconds) in ahead else seconds * (at // 300)
            labels = f'run="{run}",lane="{lane}",what="{what}"'
            yield f"{name}_total{{{labels}}} {value:.3f} {BEGAN + at:.3f}\n"
    yield "# EOF\n"


def panel(title: str) -> str:
    """What it asks, of one target."""
    ((target,),) = [targets for _, row in ROWS for name, _, targets in row if name == title]
    return target


def test_each_run_that_is_picked_has_series_of_its_own(prometheus: Query) -> None:
    """Two that do the same."""
    for _, row in ROWS[:-1]:
        for title, _, targets in row:
            for target in targets:
                one = prometheus(f"count({target})")
                assert one and prometheus(f"count({target})", "observed|beside") == [2 * count for count in one], title


def test_nobody_works_more_than_all_the_time(prometheus: Query) -> None:
    shares = prometheus(panel("Who works"), "long")
    assert 0.85 < max(shares) <= 1.001 and len(prometheus(f"count({panel('Who works')}) == 4", "long")) > 10


def test_a_push_is_shown_by_its_parts_or_as_a_whole(prometheus: Query) -> None:
    target = panel("A push by part, seconds an hour")
    for run, parts in (("observed", {"pause", "gather", "digest", "send", "load", "check", "canary"}),
                       ("long", {"pause", "send"}), ("older", {"push", "check"})):  # fmt: skip
        assert prometheus(f"count({target})", run)[-1] == len(parts)
        for part in parts:
            named = f'label_replace(vector(1), "what", "{part}", "", "")'
            assert prometheus(f"({target}) and on (what) {named}", run), part


NODES = [title for title, *_ in ROWS[-1][1]]  # Ray's own
# The real one is older, and was on a CPU, without a verifier.
OLDER = ["Model FLOP utilisation", "Answers put to the verifier, an hour", "Peak memory of the learner", *NODES]


@pytest.mark.parametrize(("run", "without"), [("observed", NODES), (REAL.name, OLDER)])
def test_every_panel_has_finite_points_of_a_finished_run(prometheus: Query, run: str, without: list[str]) -> None:
    empty = []
    for _, row in ROWS:
        for title, _, targets in row:
            for target in targets:
                if not any(math.isfinite(value) for value in prometheus(target, run, "20s")):
                    empty.append(title)
    assert empty == without


def test_what_services_waited_for_is_what_the_timeline_says(tmp_path: Path) -> None:
    """Of the real run, from the start of its engines to its last sample, and of a made-up one, whose first sample is at
    the start."""
    for run in (REAL, observed_run(tmp_path / "observed", steps=6)):
        seen, found = read_seen(run), dict[tuple[str, str], float]()
        for line in lines(seen):
            if told := re.match(
                r'ray_edge_opd_wait_seconds_total\{run="\S+",service="(\w+)",what="(\w+)"\} (\S+)', line
            ):
                found[told[1], told[2]] = float(told[3])
        times = [sample.time for sample in seen.samples if not sample.fault]
        starts = [span.begin for span in seen.spans if span.name == "start engines"]
        assert bool(starts) == (run == REAL)
        expected = waited(seen.spans, min([times[0], *starts]), times[-1])
        assert found == pytest.approx({pair: seconds for pair, seconds in expected.items() if seconds > 1e-9}, abs=0.01)


def test_prometheus_answers_what_a_real_runs_files_say(prometheus: Query) -> None:
    steps = list(read_steps(REAL / "metrics.jsonl").values())
    assert prometheus("e_steps_done{R}", REAL.name)[-1] == len(steps) == 16
    assert {round(value, 6) for value in prometheus("e_step_seconds{R}", REAL.name)} <= {
        round(step.wall_s or 0.0, 6) for step in steps
    }
    trained = sum((step.rows or 0) - (step.skipped_rows or 0) for step in steps)
    assert prometheus('e_rollouts_total{R,outcome="trained"}', REAL.name)[-1] == trained
    assert prometheus('e_learner_part_seconds{R,part="backward"}', REAL.name)[-1] == pytest.approx(
        steps[-1].learner_parts["backward"], rel=1e-6
    )


def test_the_real_run_names_no_machine() -> None:
    assert sorted(path.name for path in REAL.iterdir()) == [
        "config.toml", "gap.json", "metrics.jsonl", "probes.jsonl", "samples.jsonl", "trace.jsonl",
    ]  # fmt: skip
    assert not [path.name for path in REAL.iterdir() if re.search(r"/(home|root|tmp|work|mnt)\b", path.read_text())]


def test_prometheus_answers_what_the_files_say(prometheus: Query) -> None:
    def last(name: str) -> float:
        return prometheus(name)[-1]

    assert last("e_steps_done{R}") == 60 and max(prometheus("e_step_seconds{R}")) == STEP_S
    assert last('e_rollouts_total{R,outcome="dropped"}') == 60  # 0, 1 and 2 a step, in turn
    assert last('e_lane_busy_seconds_total{R,lane="learner",what="learn"}') == pytest.approx(60 * 7.0)
    assert last('e_engine_generated_tokens_total{R,pool="student"}') == pytest.approx(90 * 598.0)
    lanes = prometheus('rate(e_lane_busy_seconds_total{R,what="learn"}[5m])')
    assert lanes[-1] == pytest.approx(0.7, rel=0.05)


def test_a_run_without_times_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    older = MONITORING.parents[2] / "docs" / "reproduction" / "runs" / "N1-seed0"
    assert main(["export-metrics", str(older)]) == 2
    assert "N1-seed0: found no times in metrics.jsonl, expected a run of this version" in capsys.readouterr().err


def test_the_text_is_openmetrics_with_each_family_once_and_rising_times(tmp_path: Path) -> None:
    run = observed_run(tmp_path / 'a "run"', steps=3)
    assert main(["export-metrics", str(run), "--out", str(tmp_path / "out.txt")]) == 0
    text = (tmp_path / "out.txt").read_text()
    types = re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE)
    assert len(dict(types)) == len(types) > 35 and text.endswith("# EOF\n") and 'run="a \\"run\\""' in text
    times: dict[str, list[float]] = {}
    for line in (line for line in text.splitlines() if not line.startswith("#")):
        name, _, at = line.rsplit(" ", 2)
        times.setdefault(name, []).append(float(at))
    assert all(found == sorted(set(found)) for found in times.values())


def test_counters_add_up_and_survive_an_engine_that_begins_again() -> None:
    values = Values(Recipe())
    sample = a_sample(10.0)
    again = {name: replace(one, stats={**one.stats, "generated_tokens": 40.0}) for name, one in sample.engines.items()}
    values.add(Batch(0.0, samples=(sample, sample, replace(sample, engines=again)), steps=(a_step(1), a_step(2))))
    now = {(name, *(word for _, word in labels)): value for (name, labels), value in values.now.items()}
    assert now["engine_generated_tokens_total", "student engine 0", "student"] == 900 + 0 + 40
    assert now["rollouts_total", "dropped"] == 1 + 2 and now["steps_done",] == 3 and now["run_running",] == 1
    values.add(Batch(0.0, ended="failed"))
    assert values.now["run_running", ()] == 0


def test_a_probe_and_an_export_are_progress_and_a_stop_is_told() -> None:
    assert set(CALLS.values()) >= PROGRESS
    values = Values(Recipe())
    values.add(Batch(0.0, steps=(a_step(0),), spans=(Span("driver", "probe", BEGAN, BEGAN + 90.0),)))
    assert values.now["last_progress_timestamp_seconds", ()] == BEGAN + 90.0
    assert values.now["last_step_timestamp_seconds", ()] == BEGAN + STEP_S
    values.add(Batch(0.0, spans=(Span("learner", "export", BEGAN + 90.0, BEGAN + 99.0), spans_of(50)[0])))
    assert values.now["last_progress_timestamp_seconds", ()] == BEGAN + 99.0
    for ended, stopped in (("failed", 0.0), ("restarting", 0.0), ("stopped", 1.0)):
        assert values.now["run_stopped", ()] == 0.0
        values.add(Batch(0.0, ended=ended))
        assert values.now["run_stopped", ()] == stopped


def crowded_run(engines: int, samples: int) -> Seen:
    """A run at one step each 10 s, whose engines' figures change with every sample of 5 s."""
    rng = np.random.default_rng(0)
    told = [crowded(a_sample(5.0 * place), engines, rng) for place in range(samples)]
    steps = [a_step(step) for step in range(samples // 2)]
    return Seen("r", Recipe(), steps, samples=told)


def values_of(text: Iterable[str]) -> dict[str, list[tuple[float, float]]]:
    """(time, value) of each series."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in text:
        if not line.startswith("#"):
            name, value, at = line.rsplit(" ", 2)
            found.setdefault(name, []).append((float(at), float(value)))
    return found


def test_an_exported_value_that_stays_is_told_once_a_minute_and_a_counter_four_times() -> None:
    """Every change of a figure that is no engine's is there, and no gap is as long as Prometheus looks back."""
    seen = crowded_run(1, 240)
    told = values_of(lines(seen))
    times = {name: [at for at, _ in points] for name, points in told.items()}
    assert max(later - at for of in times.values() for at, later in pairwise(of)) <= 60.0
    planned = times['ray_edge_opd_steps_planned{run="r"}']
    assert 20 <= len(planned) <= 25, "20 minutes"
    refused = times['ray_edge_opd_prompts_refused_total{run="r"}']
    assert 70 <= len(refused) <= 85
    norms = [value for _, value in told['ray_edge_opd_learner_grad_norm{run="r"}']]
    changes = [value for place, value in enumerate(norms) if not place or value != norms[place - 1]]
    assert changes == pytest.approx([step.grad_norm for step in seen.steps])


def test_engines_of_a_large_export_are_thinned_to_a_value_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = crowded_run(4, 240)
    whole = values_of(lines(seen))
    monkeypatch.setattr("cluster.observe.openmetrics.MOST", 1000)
    thin = values_of(lines(seen))
    assert whole.keys() == thin.keys()
    of_engines = [name for name in whole if ",engine=" in name or "engine=" in name]
    name = next(name for name in of_engines if "kv_cache" in name)
    assert len(whole[name]) > 200 and 18 <= len(thin[name]) <= 25
    assert all(thin[name] == whole[name] for name in whole.keys() - set(of_engines))


def test_what_files_do_not_say_is_not_exported() -> None:
    """Whether a run was stopped as asked."""
    assert not [name for name in values_of(lines(crowded_run(1, 8))) if "run_stopped" in name]
