#!/usr/bin/env bash
# lm-evaluation-harness 0.4.13: "The answer is 180" without a full stop is read as 18 by gsm8k_cot and by BBH's tasks
# with chain of thought: wrong where 180 is right, and right where 18 is.
#
# The expression of the strict filter ends in a dot that is not escaped. It was meant to leave a sentence's full stop
# out, and stands for any character but a line break. Where nothing or a line break follows, the last digit is that
# character. In BBH, also with words: True is read as Tru, and (A) as (A. So a model that ends its answer with its end
# token or a line break loses them all for a full stop. It is also paid for ten times the answer. The answer that was
# read is in the samples (--log_samples) only. gsm8k_cot has a second filter, flexible-extract, which reads 180; BBH
# with examples has this one only. The expression stands in gsm8k_cot, gsm8k_platinum_cot and their zero-shot forms, 27
# tasks of bbh_cot_fewshot, the strict filter of 27 of bbh_cot_zeroshot, GPQA's with chain of thought and mmlu_flan_cot.
#
# Seen, on Python 3.11 without a model: a model that says "... the answer is 180", by what follows
#                          the filter reads     score where 180 is right   where 18 is right
#   gsm8k_cot
#     a full stop          180                  1                          0
#     nothing              18                   0                          1
#     a line break         18                   0                          1
#   bbh_cot_fewshot_object_counting
#     a full stop          180                  1                          0
#     nothing              18                   0                          1
#     a line break         18                   0                          1
# Fails when this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv env
env/bin/pip install -qq --no-compile lm_eval==0.4.13 datasets==5.2.0
env/bin/pip list 2>/dev/null | grep -E '^lm.eval '

cat >ask.py <<'EOF'
import json
from pathlib import Path

import lm_eval
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

PACKAGE = Path(lm_eval.__file__).parent / "tasks"
TASKS = {
    "gsm8k_cot": ("gsm8k/gsm8k-cot.yaml", "strict-match", "The"),
    "object_counting": ("bbh/cot_fewshot/object_counting.yaml", "get-answer", "the"),
}
ENDS = {"a full stop": ".", "nothing": "", "a line break": "\n"}


class Says(LM):
    text = ""

    def generate_until(self, requests, disable_tqdm=False):
        return [self.text for _ in requests]

    def loglikelihood(self, requests, disable_tqdm=False):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


def made(name, right):
    """The package's task, with one row here in the place of its data set on a hub."""
    row = {"question": "How many?", "answer": f"We count. #### {right}", "input": "How many?", "target": right}
    data = Path(f"{name}_{right}.json").resolve()
    data.write_text(json.dumps(row), encoding="utf-8")
    own = {"include": str(PACKAGE / TASKS[name][0]), "task": data.stem, "dataset_path": "json", "dataset_name": None}
    own["dataset_kwargs"] = {"data_files": {"test": str(data)}}
    Path(f"tasks/{data.stem}.yaml").write_text(json.dumps(own), encoding="utf-8")


Path("tasks").mkdir()
for name in TASKS:
    for right in ("180", "18"):
        made(name, right)
manager = TaskManager(include_path="tasks")
for name, (_, rule, the) in TASKS.items():
    for end, text in ENDS.items():
        says, scores, read = Says(), [], set()
        says.text = f"We count. So {the} answer is 180{text}"
        for task in (f"{name}_180", f"{name}_18"):
            found = lm_eval.simple_evaluate(says, tasks=[task], num_fewshot=0, task_manager=manager, bootstrap_iters=0)
            scores.append(int(found["results"][task][f"exact_match,{rule}"]))
            read |= {sample["filtered_resps"][0] for sample in found["samples"][task] if sample["filter"] == rule}
        print(f"{name}, {end}: read {sorted(read)}, 180 is right {scores[0]}, 18 is right {scores[1]}")
EOF
HOME="$folder" env/bin/python -W ignore ask.py 2>ask.log | grep ': read' | tee seen || { tail ask.log; exit 1; }
diff seen - <<'EOF' || { echo "changed"; exit 1; }
gsm8k_cot, a full stop: read ['180'], 180 is right 1, 18 is right 0
gsm8k_cot, nothing: read ['18'], 180 is right 0, 18 is right 1
gsm8k_cot, a line break: read ['18'], 180 is right 0, 18 is right 1
object_counting, a full stop: read ['180'], 180 is right 1, 18 is right 0
object_counting, nothing: read ['18'], 180 is right 0, 18 is right 1
object_counting, a line break: read ['18'], 180 is right 0, 18 is right 1
EOF
echo "as stated: lm-evaluation-harness 0.4.13"
