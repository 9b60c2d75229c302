#!/usr/bin/env bash
# math-verify 0.9.0: two different numbers that are both tiny are the same to `verify`, and one that is huge is not itself.
#
# `verify` rounds numbers to six decimals before it compares them, and lets sympy chop what is near zero. A physical
# constant in SI units is then equal to any other of its size, and the same number written as a power of ten and written
# out is not. A reward from it teaches nothing about answers below 1e-6.
#
# Seen, on Python 3.11:
#   6.626e-34 against 1.05e-34   True
#   0.0000001 against 0.0000002  True
#   6.626 against 1.05           False
#   6.022e23 against 602200000000000000000000   False
# Fails when one of these changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq "math-verify[antlr4-13-2]==0.9.0"
cat >compare.py <<'PY'
from math_verify import parse, verify

PAIRS = [
    (r"6.626\times10^{-34}", r"1.05\times10^{-34}", True),
    ("0.0000001", "0.0000002", True),
    ("6.626", "1.05", False),
    (r"6.022\times10^{23}", "602200000000000000000000", False),
]
changed = 0
for left, right, seen in PAIRS:
    found = verify(parse(rf"\boxed{{{left}}}"), parse(rf"\boxed{{{right}}}"))
    print(f"{left} against {right}: {found}")
    changed += found != seen
raise SystemExit(f"changed: {changed} of {len(PAIRS)}" if changed else 0)
PY
env/bin/python -W ignore compare.py
echo "as stated: math-verify 0.9.0"
