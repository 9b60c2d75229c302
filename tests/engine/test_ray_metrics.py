"""The figures at the metrics endpoint of a real Ray, scraped as Prometheus does."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request

from cluster.observe.figures import FIGURES, RAY_PREFIX
from tests.runs import ROOT

# A driver that tells one step, one probe and a sample every half second, as the observer does.
DRIVER = """
import json, sys, time
import ray
from cluster.config import Recipe, RunConfig
from cluster.observe.observer import Batch
from cluster.observe.ray_sink import RaySink
from tests.observed import a_sample, a_step, spans_of
from tests.unit.test_record import a_probe

quick = {"metrics_report_interval_ms": 1000}
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _system_config=quick)
node = ray.nodes()[0]
print(json.dumps([node["NodeManagerAddress"], node["MetricsExportPort"]]), flush=True)
sink = RaySink("observed", Recipe(run=RunConfig(steps=9)))
sink.write(Batch(0.0, steps=(a_step(0), a_step(1)), probes=(a_probe(0),), spans=tuple(spans_of(0))))
for tick in range(600):
    sink.write(Batch(0.0, samples=(a_sample(2.0),)))
    time.sleep(0.5)
"""
DEADLINE_S = 60.0
# A run without a verifier has no reward, and Ray has no counter that never grew.
ABSENT = {"reward_mean", "verdicts_total", "engine_preemptions_total", "prompts_refused_total"}


def scrape(host: str, port: int) -> dict[str, float]:
    """Our figures: name with labels of ours -> value."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    text = opener.open(f"http://{host}:{port}/metrics", timeout=10).read().decode()
    found = {}
    for name, labels, value in re.findall(rf"^{RAY_PREFIX}(\w+){{([^}}]*)}} (\S+)$", text, re.MULTILINE):
        own = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        kept = [own[label] for label in ("run", *FIGURES[name].labels)]
        found["|".join([name, *kept])] = float(value)
    return found


def test_every_figure_is_at_rays_endpoint_and_a_gauge_stays() -> None:
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", DRIVER]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env, start_new_session=True)
    try:
        assert driver.stdout is not None
        host, port = json.loads(driver.stdout.readline())
        end, found = time.monotonic() + DEADLINE_S, dict[str, float]()
        while missing := set(FIGURES) - ABSENT - {name.split("|")[0] for name in found}:
            assert time.monotonic() < end, f"not at the endpoint: {sorted(missing)}"
            time.sleep(1)
            found = scrape(host, port)
        assert found["steps_done|observed"] == 2 and found["steps_planned|observed"] == 9
        assert found["rollouts_total|observed|dropped"] == 1 and found["rollouts_total|observed|trained"] == 62
        assert found["engine_kv_cache_usage_ratio|observed|student|student engine 0"] == 0.2
        assert found["lane_busy_seconds_total|observed|learner|learn"] == 7.0
        time.sleep(5)  # five reports: a gauge that was told once would be gone
        assert scrape(host, port)["step_seconds|observed"] == 10.0
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        assert driver.stdout is not None
        driver.stdout.close()
