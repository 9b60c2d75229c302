#!/usr/bin/env bash
# lighteval 0.13.0: its seven MATH tasks (math:algebra and the others) rate a model that solves everything as 0.
#
# Their one metric is maj@4, the answer that most of four samples have, and each is asked to be read by math_normalizer,
# which takes what stands in the box. The tasks set it as normalize_pred and normalize_gold. The metric has one such
# setting and it is called normalize: the two names are written onto the object and nothing reads them. So whole texts
# are compared, word for word, with the whole solution of the data set. Four samples that differ in a word have no
# majority either: the first one is taken. Settings of a metric (sample_params) are not checked, and its name in
# the results shows them as if they were in force. Other metrics of the package do read these names (exact_match), and
# some take `normalize`. With sample_params {"n": 4, "normalize": math_normalizer} it measures what it says.
#
# Seen, on Python 3.11, without a model; of "Solve x + 3 = 10." with a solution that ends in a box with a 7:
#   four samples                            the task   with normalize   boxes compared here
#   7, 7, 7 in words of their own, and 8    0          1                1
#   8, 7, 7, 7                              0          1                1
#   7, 8, 8, 8                              0          0                0
#   the solution's own text, four times     1          1                1
#   the seven tasks: a name and a setting that the metric never reads
# Fails when this changes.
set -euo pipefail
lock=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

pinned() { grep -oE "^$1==[^ ;\\]*" "$lock"; }
python3 -m venv env
env/bin/pip install -qq --no-deps --no-compile "$(pinned torch)"
env/bin/pip install -qq --no-deps --no-compile lighteval==0.13.0 latex2sympy2_extended==1.0.6 nltk==3.9.1 aenum==3.1.15
env/bin/pip install -qq --no-compile -U setuptools "$(pinned transformers)" "$(pinned accelerate)" datasets==5.2.0 \
    inspect-ai==0.3.285 scikit-learn sacrebleu rouge_score langcodes colorlog GitPython pytablewriter pycountry \
    sentencepiece requests openai sympy networkx antlr4-python3-runtime==4.13.2 2>pip.log || { tail pip.log; exit 1; }
env/bin/pip list 2>/dev/null | grep -E '^lighteval '

cat >ask.py <<'EOF'
from collections import Counter

from lighteval.metrics.metrics import Metrics
from lighteval.metrics.normalizations import math_normalizer
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.requests import Doc
from lighteval.tasks.tasks import math

SOLUTION = r"We take 3 from both sides of $x+3=10$, so that $x=\boxed{7}$."
WORDS = (r"Then $x=\boxed{%s}$.", r" The answer is $\boxed{%s}$.", r" So $x=\boxed{%s}$.", r" It is $\boxed{%s}$!")
SAMPLES = {
    name: [text % answer for text, answer in zip(WORDS, answers, strict=True)]
    for name, answers in {"7, 7, 7, 8": "7778", "8, 7, 7, 7": "8777", "7, 8, 8, 8": "7888"}.items()
} | {"the solution's own text": [SOLUTION] * 4}


def boxed(text):
    return text.rpartition(r"\boxed{")[2].partition("}")[0]


def here(samples):
    (answer, _), *_ = Counter(map(boxed, samples)).most_common()
    return int(answer == boxed(SOLUTION))


doc = math.math_prompt({"problem": "Solve x + 3 = 10.", "solution": SOLUTION})
(of_task,) = math.math_algebra.metrics
meant = Metrics.maj_at_n(sample_params={"n": 4, "normalize": math_normalizer})
for name, samples in SAMPLES.items():
    response = ModelResponse(text=samples)
    found = [metric.sample_level_fn.compute(doc=doc, model_response=response) for metric in (of_task, meant)]
    print(f"{name}: the task {found[0]}, with normalize {found[1]}, boxes compared here {here(samples)}")
tasks = [task for name, task in vars(math).items() if name.startswith("math_") and hasattr(task, "metrics")]
for task in tasks:
    (metric,) = task.metrics
    settings = vars(metric.sample_level_fn)
    assert settings["normalize_pred"] is settings["normalize_gold"] is math_normalizer and settings["normalize"] is None
    assert "normalize_pred" in metric.metric_name and type(metric.sample_level_fn).__name__ == "MajAtN"
print(len(tasks), "tasks")
EOF
HOME="$folder" env/bin/python -W ignore ask.py 2>ask.log | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; exit 1; }
7, 7, 7, 8: the task 0, with normalize 1, boxes compared here 1
8, 7, 7, 7: the task 0, with normalize 1, boxes compared here 1
7, 8, 8, 8: the task 0, with normalize 0, boxes compared here 0
the solution's own text: the task 1, with normalize 1, boxes compared here 1
7 tasks
EOF
echo "as stated: lighteval 0.13.0"
