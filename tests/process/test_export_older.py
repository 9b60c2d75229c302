"""An export is read by the transformers generation before the one that wrote it, with the same log-probs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.default_model import _open_to_older_readers
from cluster.run.model_card import OLDEST
from learner.load import IDS
from tests import fakes
from tests.process.test_export import exported

OLDER = (f"transformers=={OLDEST}", "tokenizers==0.21.1", "huggingface_hub==0.30.2")
READ = """
import json, sys
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, ids = sys.argv[1], json.loads(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
with torch.no_grad():
    logprobs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
found = logprobs.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
print(json.dumps([transformers.__version__, tokenizer.decode(tokenizer.encode("who")), found]))
"""


def test_transformers_4_reads_an_export_of_a_base_that_it_reads(tmp_path: Path, default_model: Path) -> None:
    """Of a base prepared as the default model is; with other rotary embeddings or another tokenizer it is a model that
    nobody trained."""
    base, packages = tmp_path / "base", tmp_path / "packages"
    fakes.tiny_model(base, tokenizer_from=default_model, vocab=49152)
    _open_to_older_readers(base)
    logprobs = exported(base, tmp_path / "export")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "--target", str(packages), *OLDER], check=True, timeout=300)
    read = [sys.executable, "-W", "ignore", "-c", READ, str(tmp_path / "export"), json.dumps(IDS.tolist())]
    environment = os.environ | {"PYTHONPATH": str(packages), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(read, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    version, text, found = json.loads(done.stdout.splitlines()[-1])
    assert (version, text.strip()) == (OLDEST, "who")
    assert found == pytest.approx(logprobs.tolist(), abs=2e-5)
