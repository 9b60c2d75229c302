#!/usr/bin/env bash
# A Ray cluster by hand, on machines that reach each other and have the same project folder and environment:
#   export RAY_AUTH_TOKEN=...                              the same everywhere: openssl rand -hex 32
#   ray-start.sh head HEAD_IP                              on the head
#   ray-start.sh worker HEAD_IP WORKER_IP                  on each other machine
#   ray-start.sh submit RECIPE.toml --run-dir /shared/DIR  on the head, in the project's folder
# `ray stop` on each machine ends it.
set -euo pipefail

fail() { echo "ray-start.sh: $*" >&2; exit 2; }
[ "${RAY_AUTH_TOKEN:-}" ] || fail "found no RAY_AUTH_TOKEN, expected the same one on every machine"
export RAY_AUTH_MODE=token

head() { ray start --head --node-ip-address="$1" --port=6379 --dashboard-host=127.0.0.1 --dashboard-port=8265; }
worker() { ray start --address="$1:6379" --node-ip-address="$2"; }
# Where the others do not have the project: `--working-dir .` instead of env -C, which sends what .rayignore leaves.
submit() {
    local dashboard=http://127.0.0.1:8265 job
    job=edge-opd-$(date +%s)-$$
    ray job submit --address "$dashboard" --submission-id "$job" -- env -C "$PWD" edge-opd run "$@"
    # `ray job submit` exits 0 for a job that somebody stopped.
    [[ $(ray job status --address "$dashboard" "$job" 2>&1) == *"Job '$job' succeeded"* ]] ||
        { echo "ray-start.sh: found the Ray job $job ended without success, expected it to succeed" >&2; exit 1; }
}

case "${1:-} $#" in
    "head 2" | "worker 3") "$@" ;;
    "submit "[!1]* | "submit 1"?*) "$@" ;;
    *) fail "found '$*', expected head HEAD_IP, worker HEAD_IP WORKER_IP or submit RECIPE.toml [OPTION...]" ;;
esac
