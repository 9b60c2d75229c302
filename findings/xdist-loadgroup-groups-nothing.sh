#!/usr/bin/env bash
# pytest-xdist 3.8.0 with pytest 9.2.0: `--dist loadgroup` keeps no group together, and says nothing.
#
# xdist appends @GROUP to each test's `_nodeid` in the worker, and the scheduler splits at the @. pytest 9.2 keeps a
# structured id instead: the attribute is written and nothing reads it. The tests of a group go to any worker, one by one,
# so that what they share is made once a worker, and tests that may not run beside each other do.
#
# Seen, on Python 3.11, two workers, two groups of six tests each, workers that ran some of a group's:
#   pytest 9.1.1: 1 and 1;   pytest 9.2.0: 2 and 2;   pytest 9.2.0 with --dist loadfile, a file a group: 1 and 1
# Fails when this changes: groups can then be used again.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

for group in a b; do
    cat >"test_$group.py" <<PY
import os
import time

import pytest


@pytest.mark.xdist_group("$group")
@pytest.mark.parametrize("number", range(6))
def test_one(number):
    time.sleep(0.2)
    with open("$group.txt", "a") as seen:
        seen.write(os.environ["PYTEST_XDIST_WORKER"] + "\n")
PY
done

ask() { # version, distribution, how many workers each group is to be seen in
    [ -d "env-$1" ] || { python3 -m venv "env-$1" && "env-$1/bin/pip" install -qq "pytest==$1" pytest-xdist==3.8.0; }
    rm -f a.txt b.txt
    "env-$1/bin/python" -m pytest -q -p no:cacheprovider -n 2 --dist "$2" >/dev/null
    found="$(sort -u a.txt | wc -l) $(sort -u b.txt | wc -l)"
    echo "pytest $1, --dist $2: $found"
    [ "$found" = "$3" ] || { echo "changed" >&2; exit 1; }
}
ask 9.1.1 loadgroup "1 1"
ask 9.2.0 loadgroup "2 2"
ask 9.2.0 loadfile "1 1"
echo "as stated: pytest-xdist 3.8.0"
