#!/usr/bin/env bash
# Ray 2.60.0: `ray job submit` exits 0 for a job that somebody stopped.
#
# The command waits for the job and exits 1 where it failed. A job that `ray job stop` ended from elsewhere has the
# status STOPPED, which is neither success nor failure, and the command warns and exits 0. So a script that goes on
# where the command succeeded takes half a run for a whole one. Whoever waits for a job has to ask `ray job status` or
# the client for SUCCEEDED.
#
# Seen, on Python 3.11, a node of one machine:
#   a job that ends:              SUCCEEDED, exit status 0
#   a job that fails:             FAILED, exit status 1
#   a job that is stopped:        STOPPED, exit status 0
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
import subprocess
import sys
import time
from pathlib import Path

import ray
from ray.job_submission import JobSubmissionClient

RAY = [sys.executable, "-m", "ray.scripts.scripts", "job"]
address = ray.init(
    num_cpus=1, log_to_driver=False, include_dashboard=True, dashboard_host="127.0.0.1", _temp_dir=str(Path.cwd())
).dashboard_url
client = JobSubmissionClient(f"http://{address}")


def submit(name, command):
    started = Path(f"{name}.started").resolve()
    entry = ["sh", "-c", f"touch {started}; {command}"]
    waiting = subprocess.Popen(
        [*RAY, "submit", "--address", f"http://{address}", "--submission-id", name, "--", *entry],
        stdout=sys.stderr,
    )
    if name == "stopped":
        while not started.exists():
            time.sleep(0.2)
        subprocess.run([*RAY, "stop", "--address", f"http://{address}", name], stdout=sys.stderr, check=True)
    status = waiting.wait()
    print(f"{name}: {client.get_job_status(name)}, exit status {status}", flush=True)


submit("ends", "true")
submit("fails", "exit 3")
submit("stopped", "exec sleep 120")
ray.shutdown()
EOF
HOME="$folder" RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 env/bin/python -W ignore ask.py 2>ask.log | tee seen
diff seen - <<'EOF' || { echo "changed"; tail ask.log; exit 1; }
ends: SUCCEEDED, exit status 0
fails: FAILED, exit status 1
stopped: STOPPED, exit status 0
EOF
echo "as stated: Ray 2.60.0"
