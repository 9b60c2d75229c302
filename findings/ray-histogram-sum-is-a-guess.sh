#!/usr/bin/env bash
# Ray 2.60.0: the sum of a `ray.util.metrics.Histogram` is made of the middles of its buckets.
#
# The process that observes sends counts of buckets to its node's agent, and the agent records the middle of a bucket
# for each count; for the last one, which has no end, twice its bound. So sum / count, the mean in a dashboard, moves
# with the bounds and not with what was observed: a time of 0.6 s is 0.5 s between 0 and 1, and all that is over the
# last bound is one number. The buckets and the count are right. Whoever wants a mean has to add the seconds up in a
# Counter.
#
# Seen, on Python 3.11, a node of one machine, 0.6 and 9.9 observed (10.5), and a Counter that was given the same:
#   bounds 1, 5, 20:  sum 13.0, count 2
#   bounds 1, 10:     sum 6.0, count 2
#   bounds 0.5:       sum 2.0, count 2
#   Counter:          10.5
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
from ray.util.metrics import Counter, Histogram

BOUNDS = {"three": [1.0, 5.0, 20.0], "two": [1.0, 10.0], "one": [0.5]}
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=__file__.removesuffix("/ask.py"))
counter, histograms = Counter("seen"), [Histogram(name, boundaries=bounds) for name, bounds in BOUNDS.items()]
for value in (0.6, 9.9):
    counter.inc(value)
    for histogram in histograms:
        histogram.observe(value)
(node,) = ray.nodes()
address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
for _ in range(120):
    time.sleep(0.5)
    try:
        text = build_opener(ProxyHandler({})).open(address).read().decode()
    except OSError:  # the agent starts
        continue
    found = dict(re.findall(r"^ray_(\w+)\{.*\} (\S+)$", text, re.MULTILINE))
    if found.keys() >= {"seen_total", *(f"{name}_sum" for name in BOUNDS)}:
        break
for name, bounds in BOUNDS.items():
    print(f"bounds {bounds}: sum {found[f'{name}_sum']}, count {found[f'{name}_count']}")
print("Counter:", found["seen_total"])
ray.shutdown()
EOF
HOME="$folder" RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 env/bin/python -W ignore ask.py 2>ask.log | tee seen
diff seen - <<'EOF' || { echo "changed"; tail ask.log; exit 1; }
bounds [1.0, 5.0, 20.0]: sum 13.0, count 2.0
bounds [1.0, 10.0]: sum 6.0, count 2.0
bounds [0.5]: sum 2.0, count 2.0
Counter: 10.5
EOF
echo "as stated: Ray 2.60.0"
