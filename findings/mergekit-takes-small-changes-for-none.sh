#!/usr/bin/env bash
# mergekit 0.1.5: two of its methods take a small fine-tune for none: "sce" forgets its weights, and "model_stock" with
# filter_wise returns the base model.
#
# Both formulas know no scale: of changes that are a hundredth, the merged change is a hundredth. The code has bounds
# against a division by zero that do know one. sce weighs each model by the mean square of what it changed, and weighs
# all the same where these add up to less than 1e-6, which is a change of 0.001 a weight at most. model_stock divides by
# the product of two norms, taken to be at least 1e-6: with filter_wise they are norms of rows, so that two models that
# changed alike seem to stand at a right angle, of which the formula keeps nothing. Adam at a learning rate of 1e-6, as
# in reinforcement learning, moves a weight by about 1e-6 a step at most, so that hundreds of steps stay below the first
# bound. Nothing warns, and the merged model works, as the base or a plain mean does. A test that needs no benchmark: of
# a model and a copy of it, model_stock has to make that model.
#
# Seen, on Python 3.11 without a GPU, in float32: a base and two models that share most of their change, the second's
# three times as large; the merged change of a matrix of 96 x 64 by size and by distance, in parts of the formula's
#   the first's change, a weight   1e-2        1e-3        1e-4        1e-5
#   sce                            1.00 0.00   1.00 0.00   0.72 0.29   0.72 0.29
#   model_stock                    1.00 0.00   1.00 0.00   1.00 0.00   1.00 0.00
#   model_stock, filter_wise       1.00 0.00   1.00 0.00   1.00 0.00   0.04 0.96
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

pinned() { grep -oE "^$1==[^ ;\\]*" "$lock"; }
python3 -m venv env
env/bin/pip install -qq --no-deps --no-compile "$(pinned torch)"
env/bin/pip install -qq --no-compile -U setuptools sympy networkx jinja2 mergekit==0.1.5 \
    "$(pinned transformers)"
env/bin/pip list 2>/dev/null | grep -E '^(mergekit|transformers|torch) '

cat >ask.py <<'EOF'
import shutil

import torch
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

NAME = "model.layers.0.mlp.up_proj.weight"
config = LlamaConfig(
    vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=4, dtype="float32",
)
torch.manual_seed(0)
base = LlamaForCausalLM(config)
base.save_pretrained("base")
start = {name: one.detach().clone() for name, one in base.named_parameters()}
noise = [{name: torch.randn_like(one) for name, one in start.items()} for _ in range(3)]


def fine_tuned(folder, by, *parts):
    """A model whose weights are the base's, changed by the sum of `parts`, each a (number of a direction, size)."""
    made = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, one in made.named_parameters():
            one.copy_(start[name] + by * sum(size * noise[which][name] for which, size in parts))
    made.save_pretrained(folder)


def change(folder):
    return load_file(f"{folder}/model.safetensors")[NAME].double() - start[NAME].double()


def merged(method, folders, **parameters):
    shutil.rmtree("merged", ignore_errors=True)
    models = [{"model": folder} for folder in folders]
    asked = dict(merge_method=method, base_model="base", models=models, dtype="float32", parameters=parameters)
    options = MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False)
    run_merge(MergeConfiguration.model_validate(asked), "merged", options)
    return change("merged")


def sce(first, second):
    """Eq. of arXiv 2408.07990, all elements kept: weights by mean square, the sign of the sum, a weighted mean."""
    both = torch.stack([first, second])
    weights = both.square().mean((1, 2), keepdim=True)
    weights = weights / weights.sum() * (both.sign() == both.sum(0).sign())
    return (both * weights).sum(0) / weights.sum(0)


def stock(first, second):
    """Eq. of arXiv 2403.19522 for two models: t times their mean, t = 2 cos / (1 + cos), for each row."""
    cosine = torch.nn.functional.cosine_similarity(first, second, dim=-1, eps=0).unsqueeze(-1)
    return 2 * cosine / (1 + cosine) * (first + second) / 2


for by in (1e-2, 1e-3, 1e-4, 1e-5):
    folders = f"first-{by}", f"second-{by}"
    fine_tuned(folders[0], by, (0, 1.0), (1, 0.3))
    fine_tuned(folders[1], by, (0, 3.0), (2, 0.9))
    first, second = map(change, folders)
    line = []
    for name, right, found in (
        ("sce", sce(first, second), merged("sce", folders)),
        ("model_stock", stock(first.flatten(), second.flatten()).view_as(first), merged("model_stock", folders)),
        ("by row", stock(first, second), merged("model_stock", folders, filter_wise=True)),
    ):
        size, distance = found.norm() / right.norm(), (found - right).norm() / right.norm()
        line.append(f"{name} {size:.2f} {distance:.2f}")
    print(f"{by:.0e}:", ", ".join(line))
EOF
export HOME="$folder"
env/bin/python -W ignore ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; tail ask.log; exit 1; }
1e-02: sce 1.00 0.00, model_stock 1.00 0.00, by row 1.00 0.00
1e-03: sce 1.00 0.00, model_stock 1.00 0.00, by row 1.00 0.00
1e-04: sce 0.72 0.29, model_stock 1.00 0.00, by row 1.00 0.00
1e-05: sce 0.72 0.29, model_stock 1.00 0.00, by row 0.04 0.96
EOF
echo "as stated: mergekit 0.1.5"
