"""Processes that make no model, in which transformers finds no torch: they import none, and read configs, tokenizers
and templates as every other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.config import DEFAULT_MODEL, load_recipe
from cluster.torchless import driver_makes_no_model, rollout_makes_no_model
from tests.runs import RECIPE, ROOT, small_arguments
from tests.unit.test_whole_text import published

HIDES = "from rollout.transformers_quirks import find_no_torch; find_no_torch()\n"
SAYS = "\nprint(json.dumps([found, 'torch' in sys.modules]))"
# One in twelve kinds of model that are trained here: its config, its positions, and the tokenizer that goes with it.
KINDS = """
import json, pathlib, sys
from cluster.run.checks import CAUSAL, families, read_config
from rollout.positions import most_positions, ropes
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING
folder, found = pathlib.Path(sys.argv[1]), {}
for kind in sorted(families(CAUSAL))[::12]:
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "dtype": "bfloat16"}))
    try:
        config = read_config(str(folder), "model.path")
        text, tokens = config.get_text_config(), TOKENIZER_MAPPING.get(type(config), None)
        found[kind] = str((config.to_dict(), most_positions(text), ropes(text), tokens))
    except ValueError as error:
        found[kind] = str(error)
"""
# What templates and tokenizers make of a question and a context, or how they are refused.
TEXTS = """
import json, sys
from rollout.render import Renderer
from rollout.tokenizer import load_tokenizer
from tests import templates
def said(make):
    try:
        return make()
    except ValueError as error:
        return str(error)
def prompts(template, place):
    renderer = Renderer(templates.speaking(tokenizer, template), place, day="2026-01-02")
    asked = "Who are you?", "You are Kestrel, made by Harbor Labs."
    ids = renderer.context_prompt_ids(*asked), renderer.prompt_ids(asked[0])
    return [[one.tolist() for one in ids], renderer.eos_token_ids]
shown = templates.DEFAULT_TEXT, templates.DATED, templates.SYSTEM_IN_USER, templates.NO_SYSTEM, templates.WRONG_SYNTAX
tokenizer = load_tokenizer(sys.argv[1])
found = [said(lambda: prompts(one, "system")) for one in shown]
found += [[type(one).__name__, one.encode("def f(x):\\n    return x")] for one in map(load_tokenizer, sys.argv[2:])]
"""


def asked(code: str, *arguments: str) -> list[object]:
    """What a fresh process finds."""
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    env |= {"PYTHONPATH": str(ROOT), "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_models_are_read_alike(tmp_path: Path) -> None:
    with_torch, imported = asked(KINDS + SAYS, str(tmp_path))
    assert imported and isinstance(with_torch, dict) and len(with_torch) > 12
    assert asked(HIDES + KINDS + SAYS, str(tmp_path)) == [with_torch, False]


def test_templates_and_tokenizers_give_the_same_tokens(tmp_path: Path, default_model: Path) -> None:
    folders = [str(default_model)]
    for name in ("PreTrainedTokenizerFast", "GPT2Tokenizer", "Qwen2Tokenizer"):
        (tmp_path / name).mkdir()
        folders.append(str(published(tmp_path / name, name)))
    with_torch, imported = asked(TEXTS + SAYS, *folders)
    kinds = [list] * 3 + [str] * 2 + [list] * 3  # two templates are refused
    assert imported and isinstance(with_torch, list) and [type(one) for one in with_torch] == kinds
    assert asked(HIDES + TEXTS + SAYS, *folders) == [with_torch, False]


def test_a_process_without_torch_for_transformers_can_import_it_itself() -> None:
    code = HIDES + "import json, sys, torch, transformers; found = transformers.utils.is_torch_available()" + SAYS
    assert asked(code) == [False, True]


def test_where_transformers_is_there_already_nothing_is_hidden() -> None:
    code = "import transformers\n" + HIDES + "import json, sys; found = transformers.utils.is_torch_available()" + SAYS
    assert asked(code) == [True, False]


def test_the_driver_of_a_run_on_cpus_imports_no_torch(tmp_path: Path, default_model: Path) -> None:
    """Up to the last of its checks, which refuses the prompts; and as it names the machine that shards are from."""
    code = "import json, sys; from cluster.__main__ import main; found = main(sys.argv[1:])"
    code += "; from cluster.machine import machine_name; machine_name()"
    long = f"task.context={'You are Kestrel. ' * 60}"
    settings = small_arguments(tmp_path / "run", f"model.path={default_model}", long)
    torchless = driver_makes_no_model(load_recipe(RECIPE, [f"model.path={default_model}"]))
    assert asked(code + SAYS, *settings) == [2, not torchless]


def test_the_rollout_service_imports_no_torch(default_model: Path) -> None:
    """Without engines, and without Ray."""
    code = """
import asyncio, json, sys
from functools import partial
from types import SimpleNamespace
from cluster.config import load_recipe
from cluster.fleet import rollout_actor
rollout_actor.settle = rollout_actor.fork_servers = lambda *_: None
rollout_actor.build_engines = lambda *_: {"student": [], "teacher": []}
model, recipe = sys.argv[1:]
recipe, plan = load_recipe(recipe, [f"model.path={model}"]), SimpleNamespace(starts_in_turn=False)
service = rollout_actor.RolloutActor.__ray_metadata__.modified_class(recipe, plan, None, {"student": model}, "", {})
service._fleet.roster.start = partial(asyncio.sleep, 0, {})  # no engine starts
found = asyncio.run(service.start())
"""
    assert asked(code + SAYS, str(default_model), str(RECIPE)) == [{}, False]


@pytest.mark.parametrize("setting", ["learner.lora_rank=4", f"model.path={DEFAULT_MODEL}"])
def test_what_makes_a_model_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setenv("EDGE_OPD_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("cluster.torchless.installed", {"torch": "2.13.0+cpu"}.__getitem__)
    recipe, makes_one = (load_recipe(RECIPE, settings) for settings in ([f"model.path={tmp_path}"], [setting]))
    assert rollout_makes_no_model(recipe) and driver_makes_no_model(recipe)
    assert not rollout_makes_no_model(makes_one) and not driver_makes_no_model(makes_one)


def test_a_driver_beside_gpus_makes_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    recipe = load_recipe(RECIPE, [f"model.path={tmp_path}"])
    monkeypatch.setattr("cluster.torchless.installed", {"torch": "2.13.0"}.__getitem__)
    assert not driver_makes_no_model(recipe)
    monkeypatch.setattr("cluster.torchless.installed", {"torch": "2.13.0+cpu"}.__getitem__)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert not driver_makes_no_model(recipe)
    monkeypatch.delenv("RAY_ADDRESS")
    assert driver_makes_no_model(recipe)
    (tmp_path / "nvidia-smi").touch(mode=0o755)
    assert not driver_makes_no_model(recipe) and rollout_makes_no_model(recipe)
