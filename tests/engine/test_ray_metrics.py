"""A real run at the metrics endpoint of its Ray, with a real Prometheus that scrapes it while it runs, until the driver
is killed."""

import re
import time
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

import psutil
import pytest
import yaml

from cluster.observe.figures import FIGURES, RAY_PREFIX
from cluster.observe.grafana import ROWS, promql
from tests.faults import UnderWay, under_way
from tests.pages import MONITORING
from tests.prometheus import Prometheus, fetched, serving
from tests.runs import lines, small_arguments

SETTINGS = ("run.steps=400", "run.max_policy_lag=1", "observe.every_s=2")
SECONDS = 120.0  # for what a report or a scrape brings
# No verifier, no GPU, no frozen model; and Ray has no counter that never grew.
ABSENT = {
    "reward_mean", "learner_mfu_ratio", "verdicts_total", "engine_preemptions_total", "prompts_refused_total",
    "learner_nonfinite_updates_total",
}  # fmt: skip
WITHOUT = {"Model FLOP utilisation", "Answers put to the verifier, an hour"} | {
    title for title, *_ in ROWS[-1][1]
}  # and Ray's own of nodes with GPUs


def ports(run: UnderWay) -> set[int]:
    """Those of the run's processes that answer with our figures: of the agent of Ray's node, where Ray chose one."""
    found = set()
    for process in psutil.Process(run.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if "DashboardAgent" in " ".join(process.cmdline()):
                sockets = [one for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
                found |= {one.laddr.port for one in sockets if RAY_PREFIX in figures_at(one.laddr.port)}
    return found


def figures_at(port: int) -> str:
    """Nothing where something else listens."""
    with suppress(OSError, HTTPException):
        return fetched(f"http://127.0.0.1:{port}/metrics").decode()
    return ""


def told(text: str) -> dict[str, float]:
    """Our figures: name with labels of ours -> value."""
    found = {}
    for name, labels, value in re.findall(rf"^{RAY_PREFIX}(\w+){{([^}}]*)}} (\S+)$", text, re.MULTILINE):
        own = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        found["|".join([name, *(own[label] for label in ("run", *FIGURES[name].labels))])] = float(value)
    return found


def configured(folder: Path, port: int) -> str:
    """The committed configuration and rules, with this target, every second; an alert waits for 15 s in place of
    minutes."""
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"] = [{"job_name": "ray", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}]
    rules = (MONITORING / "edge-opd.rules.yml").read_text()
    (folder / "edge-opd.rules.yml").write_text(re.sub(r"for: \d+m$", "for: 15s", rules, flags=re.MULTILINE))
    return yaml.safe_dump(config)


def firing(server: Prometheus) -> set[str]:
    alerts = server.result("alerts")["alerts"]
    return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


def test_a_run_is_scraped_while_it_runs_and_missed_when_its_driver_is_killed(
    tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    run_dir = tmp_path / "watched"
    metrics = run_dir / "metrics.jsonl"
    with under_way(small_arguments(run_dir, f"model.path={small_model}", *SETTINGS)) as run:
        run.wait_until("step 2", lambda: metrics.exists() and len(lines(metrics)) >= 2)
        found = set[int]()
        run.wait_until("the endpoint", lambda: bool(found.update(ports(run)) or found), SECONDS)
        (port,) = found
        with serving(tmp_path, configured(tmp_path, port)) as server:
            run.wait_until("every figure", lambda: not unseen(port), SECONDS)
            done = len(lines(metrics))
            run.wait_until("so many steps", lambda: told(figures_at(port))["steps_done|watched"] >= done, SECONDS)
            run.wait_until("all parts up", lambda: all_up(told(figures_at(port))), SECONDS)
            assert f"figures for Prometheus: http://127.0.0.1:{port}/metrics\n" in run.said()
            of_the_run(run_dir, told(figures_at(port)))
            run.wait_until("scrapes of several steps", lambda: len(set(scraped(server))) > 3, SECONDS)
            run.wait_until("a scrape each second", lambda: len(scraped(server)) > 15, SECONDS)
            run.wait_until("every panel", lambda: empty_panels(server) <= WITHOUT, SECONDS)
            assert firing(server) == set()
            run.processes()  # what has to be gone at the end
            run.process.kill()
            end = time.monotonic() + SECONDS
            while "RunVanished" not in firing(server):
                assert time.monotonic() < end, server.result("alerts")
                time.sleep(0.5)
            assert firing(server) == {"RunVanished"}


def unseen(port: int) -> set[str]:
    """Figures that are not at the endpoint yet."""
    return set(FIGURES) - ABSENT - {name.split("|")[0] for name in told(figures_at(port))}


def all_up(found: dict[str, float]) -> bool:
    """One that is late with an answer counts as down until the next."""
    return found["engine_up|watched|student|student engine 0"] == found["service_up|watched"] == 1


def of_the_run(run_dir: Path, found: dict[str, float]) -> None:
    """The endpoint says what the files say; a gauge that was told once is still there."""
    steps = lines(run_dir / "metrics.jsonl")
    assert found["steps_planned|watched"] == 400 and found["steps_done|watched"] <= len(steps)
    recorded = {round(step["stages"]["learn"]["seconds"], 6) for step in steps}
    assert round(found["stage_seconds|watched|learn"], 6) in recorded
    assert found["learner_part_seconds|watched|backward"] > 0 and found["probe_ratio|watched|selfname|high"] > 0
    assert found["canary_nats|watched"] < found["canary_tolerance_nats|watched"]


def scraped(server: Prometheus) -> list[float]:
    now = time.time()
    return server.points(promql("e_steps_done{R}", run="watched"), now - 30, now, 1)


def empty_panels(server: Prometheus) -> set[str]:
    """The dashboard's panels of which no target has a point in the last half minute."""
    now, empty = time.time(), set()
    for _, row in ROWS:
        for title, _, targets in row:
            asked = [promql(target, run="watched", interval="10s") for target in targets]
            if not any(server.points(one, now - 30, now, 1) for one in asked):
                empty.add(title)
    return empty
