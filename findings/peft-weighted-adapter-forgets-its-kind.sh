#!/usr/bin/env bash
# peft 0.21.2: `add_weighted_adapter` makes of an rsLoRA adapter one that is root of the rank times too large, and of a
# PiSSA or OLoRA adapter it changes the base model, so that the adapters it was given are wrong afterwards.
#
# The new adapter has the first one's config, with lora_alpha set to the rank, so that its scaling should be 1. With
# use_rslora kept, it is the root of the rank. With init_lora_weights "pissa" or "olora" kept, the new adapter is first
# made as if it were to be trained: what its factors start with is taken off the base's weights once more, and then only
# the factors are replaced. Nothing puts the part back, not even deleting the new adapter. DoRA's magnitudes
# are not carried over: those of the new adapter are as before training. Nothing warns, and "svd" and "cat" are the
# methods that the documentation calls precise. Whoever adds up adapters compares the sum of one adapter, with weight 1,
# with that adapter, and the adapter with itself before.
#
# Seen, on Python 3.11 without a GPU: two linear layers, one adapter "a" of rank 16, weight 1; by "svd" and by "cat":
# how much of a's change of the layers' weights the new adapter has, and how far "a" and the base went, in parts of it
#                       the new one     off      "a" off   base off
#   LoRA                1.00            0.00     0.00      0.00
#   use_rslora          4.00            3.00     0.00      0.00
#   use_dora            0.77            0.64     0.00      0.00
#   pissa               1.19            0.64     0.64      0.64
#   olora               0.38            0.93     0.93      0.93
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

pinned() { grep -oE "^$1==[^ ;\\]*" "$lock"; }
python3 -m venv env
env/bin/pip install -qq --no-deps --no-compile "$(pinned torch)"
env/bin/pip install -qq --no-compile -U setuptools sympy networkx jinja2 "$(pinned transformers)" "$(pinned peft)"
env/bin/pip list 2>/dev/null | grep -E '^(peft|torch) '

cat >ask.py <<'EOF'
import sys

import torch
from peft import LoraConfig, get_peft_model

KINDS = {
    "LoRA": {},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
}
IN = torch.eye(64)


def change(before, after):
    return (after - before).norm()


def asked(settings, method):
    """The new adapter's change by size and by distance, and the ways of "a" and the base, in parts of a's change."""
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False), torch.nn.Linear(64, 64, bias=False))
    model = get_peft_model(layer, LoraConfig(r=16, lora_alpha=8, target_modules=["0", "1"], **settings), "a")
    with torch.no_grad():
        for name, one in model.named_parameters():
            if "lora_" in name:  # as training would, magnitudes as well
                one += 0.03 * torch.randn_like(one)

    def outputs(adapter):
        model.set_adapter(adapter or "a")
        found = []
        for one in model.base_model.model:
            with torch.no_grad():
                found.append(one(IN) if adapter else one.base_layer(IN))
        return torch.stack(found)

    base, first = outputs(None), outputs("a")
    model.base_model.add_weighted_adapter(["a"], [1.0], "new", combination_type=method)
    new = outputs("new")
    model.delete_adapter("new")
    whole = change(base, first)
    return [
        float(part / whole)
        for part in (change(base, new), change(first, new), change(first, outputs("a")), change(base, outputs(None)))
    ]


def told(part):
    return f"{part:.2f}"


for name, settings in KINDS.items():
    for method in ("svd", "cat"):
        size, off, first, base = asked(settings, method)
        exact = name in ("LoRA", "rsLoRA")
        shown = (told(size), told(off)) if exact else ("-", "off" if off > 0.1 else "exact")
        kept = ["kept" if part < 1e-4 else "moved" if part > 0.1 else "unclear" for part in (first, base)]
        print(f"{name}, {method}: new {shown[0]} {shown[1]}, a {kept[0]}, base {kept[1]}")
        print(name, method, *(f"{part:.3f}" for part in (size, off, first, base)), file=sys.stderr)
EOF
export HOME="$folder"
env/bin/python -W ignore ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; tail ask.log; exit 1; }
LoRA, svd: new 1.00 0.00, a kept, base kept
LoRA, cat: new 1.00 0.00, a kept, base kept
rsLoRA, svd: new 4.00 3.00, a kept, base kept
rsLoRA, cat: new 4.00 3.00, a kept, base kept
DoRA, svd: new - off, a kept, base kept
DoRA, cat: new - off, a kept, base kept
PiSSA, svd: new - off, a moved, base moved
PiSSA, cat: new - off, a moved, base moved
OLoRA, svd: new - off, a moved, base moved
OLoRA, cat: new - off, a moved, base moved
EOF
grep -E '^[A-Za-z]+ (svd|cat) ' ask.log
echo "as stated: peft 0.21.2"
