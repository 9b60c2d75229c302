#!/usr/bin/env bash
# Ray 2.60.0: a `ray.util.metrics.Gauge` that is set once is gone from the node's metrics within 40 s of its first
# report.
#
# A process sends a gauge to its node's agent with each report, every 10 s by default, where it was set since the last
# one, and the agent forgets what it was not sent for two reports. The process lives and nothing has changed, and the
# series ends: a panel of a version, a limit or the step of a slow run is empty, and an alert on the value cannot fire.
# Counters stay. Whoever has a value that changes seldom has to set it again and again, from a thread if need be.
#
# Seen, on Python 3.11, a node of one machine with Ray's defaults, its metrics read each second for 40 s:
#   Gauge, set once:              there, then gone
#   Gauge, set each second:       there until the end
#   Counter, incremented once:    there until the end
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-compile -c "$lock" "ray[default]"
env/bin/pip list 2>/dev/null | grep -E '^ray '

cat >ask.py <<'EOF'
import re
import time
from urllib.request import ProxyHandler, build_opener

import ray
from ray.util.metrics import Counter, Gauge

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=__file__.removesuffix("/ask.py"))
once, often, counter = Gauge("once"), Gauge("often"), Counter("counted")
(node,) = ray.nodes()
address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
KINDS = {"once": "Gauge, set once", "often": "Gauge, set each second", "counted_total": "Counter, incremented once"}
seen = {name: [] for name in KINDS}
once.set(7.0)
counter.inc()
last = time.monotonic() + 60
while time.monotonic() < last:
    often.set(7.0)
    time.sleep(1)
    try:
        text = build_opener(ProxyHandler({})).open(address).read().decode()
    except OSError:  # the agent starts
        continue
    names = set(re.findall(r"^ray_(\w+)\{", text, re.MULTILINE))
    if not any(map(any, seen.values())) and names & KINDS.keys():
        last = time.monotonic() + 40
    for name in KINDS:
        seen[name].append(name in names)
for name, kind in KINDS.items():
    there = seen[name][seen[name].index(True) :]
    once_gone = there == sorted(there, reverse=True)
    print(f"{kind}:", "there until the end" if all(there) else "there, then gone" if once_gone else there)
ray.shutdown()
EOF
HOME="$folder" RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 env/bin/python -W ignore ask.py 2>ask.log | tee seen
diff seen - <<'EOF' || { echo "changed"; tail ask.log; exit 1; }
Gauge, set once: there, then gone
Gauge, set each second: there until the end
Counter, incremented once: there until the end
EOF
echo "as stated: Ray 2.60.0"
