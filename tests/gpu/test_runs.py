"""Whole runs on one GPU: student and teacher engine and the learner share it."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from cluster.config import load_recipe
from cluster.fleet.placement import Share, make_plan
from cluster.sizing.budget import asked, plan_memory
from cluster.sizing.cards import DEVICES, Card, own_cards
from cluster.sizing.claims import Look
from cluster.sizing.memory import SPARE, activation_bytes
from cluster.sizing.shape import shape_of
from evidence.manifest import Manifest
from evidence.shards import read_shard
from learner.config import LearnerConfig
from tests.bench.figures import figures_in
from tests.gpu.conftest import TELL
from tests.runs import ROOT, edge_opd, lines, small_run

STAGES = ("sleep", "wake", "push")
SMOKE = ROOT / "cluster" / "recipes" / "local-smoke.toml"


@contextmanager
def most_used(card: Card) -> Iterator[list[int]]:
    """A list whose last item is the most of the card that was in use meanwhile, beyond what was before. By process the
    driver does not tell it everywhere: in a container it knows no process of ours."""
    most, ended, before = [0], threading.Event(), used(card)

    def watch() -> None:
        while not ended.wait(0.25):
            most.append(max(most[-1], used(card) - before))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        ended.set()
        watcher.join()


def used(card: Card) -> int:
    """Bytes."""
    (found,) = [one for one in own_cards() if one.uuid == card.uuid]
    return found.total - found.free


def test_a_local_smoke_learns_within_its_plan_of_memory(
    cards: list[Card], default_model: Path, tmp_path: Path, tell: TELL
) -> None:
    """ZeRO 1. The name is learned (probe.require), and versions, digests and the canary hold at each push."""
    run_dir, begun = tmp_path / "smoke", time.monotonic()
    first = os.environ.get(DEVICES, "").partition(",")[0] or str(cards[0].index)
    one: Any = {DEVICES: first}  # of several, which all share
    with most_used(cards[0]) as most:
        done = edge_opd("run", str(SMOKE), "--run-dir", str(run_dir), timeout=400, **one)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "on cuda, weights over ipc" in done.stdout and "memory of " in done.stdout
    records = lines(run_dir / "metrics.jsonl")
    assert [record["policy_version_max"] for record in records] == list(range(32))
    assert all(record["canary"] < 0.1 for record in records)
    tell("local-smoke from its first step: seconds", sum(record["wall_s"] for record in records), "<= 180")
    tell("local-smoke in all: seconds", time.monotonic() - begun, "")
    busy = [record["busy_fraction"] for record in records[1:]]
    tell("step over the sum of its stages, lag 0", len(busy) / sum(busy), "<= 1.1")
    recipe, shape = load_recipe(SMOKE), shape_of(str(default_model))
    plan = make_plan(recipe, [Share(16, 1)])
    (budget,) = plan_memory(recipe, plan, dict.fromkeys(("student", "teacher"), shape), shape.parameters, cards[:1])
    tell("memory of a colocated run over its plan", most[-1] / asked(budget), "<= 1")
    assert 0 < most[-1] <= asked(budget) + SPARE * cards[0].total
    probed = edge_opd("probe", str(run_dir), "--json", "--set", "probe.max_tokens=8", "--set", "probe.samples=1")
    assert probed.returncode == 0, probed.stdout[-3000:] + probed.stderr[-3000:]
    assert json.loads(probed.stdout.splitlines()[-1])["n"] > 0


@pytest.mark.parametrize("stage", [2, 3])
def test_the_other_zero_stages_run_whole(stage: int, cards: list[Card], default_model: Path, tmp_path: Path) -> None:
    """At stage 3 with engines that sleep: a micro-batch is planned for that has no room beside them."""
    run_dir, sleeps = tmp_path / "run", stage == 3
    pools = ("student", "teacher")
    eager = [f"{pool}.enforce_eager=true" for pool in pools]  # a faster start
    share = cards[0].total / 2**30 / 6
    cache = [f"{pool}.kv_cache_gib={share if sleeps else 1:.1f}" for pool in pools]
    token = activation_bytes(shape_of(str(default_model)), LearnerConfig(), 1)
    tokens = int(0.75 * cards[0].total / token) if sleeps else 256
    settings = (f"learner.zero_stage={stage}", f"learner.micro_batch_tokens={tokens}", *eager, *cache)
    done = small_run(run_dir, *settings)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    records = lines(run_dir / "metrics.jsonl")
    assert [record["policy_version_max"] for record in records] == [0, 1]
    assert ("engines sleep while the learner works" in done.stdout) == sleeps
    spent = {name: [record["stages"].get(name, {"seconds": 0})["seconds"] for record in records] for name in STAGES}
    assert all(spent["push"]) and all(spent["sleep"] + spent["wake"]) == any(spent["sleep"] + spent["wake"]) == sleeps
    assert sum(read_shard(uri).num_rows for uri in Manifest(run_dir / "manifest.jsonl").written()) == 16
    assert AutoConfig.from_pretrained(str(run_dir / "export")).model_type == "llama"


def test_a_run_with_an_adapter_is_whole(cards: list[Card], tmp_path: Path) -> None:
    """With CUDA graphs, which have a kind for requests with an adapter and one for those without."""
    done = small_run(tmp_path / "run", "learner.lora_rank=8", "learner.lr=1e-3", "teacher.dtype=bfloat16")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "on cuda, weights over ray" in done.stdout
    records = lines(tmp_path / "run" / "metrics.jsonl")
    assert [record["policy_version_max"] for record in records] == [0, 1]
    assert all(record["canary"] < 0.1 for record in records)
    assert AutoConfig.from_pretrained(str(tmp_path / "run" / "export")).model_type == "llama"


BY_UUID = """
import os
from cluster.sizing.cards import settle_devices
settle_devices(os.environ)
import torch
from vllm.platforms import current_platform
seen = torch.cuda.device_count(), current_platform.device_id_to_physical_device_id(0)
print(os.environ["CUDA_VISIBLE_DEVICES"], *seen, torch.cuda.get_device_properties(0).uuid)
"""


def test_a_card_by_the_first_letters_of_its_uuid_is_that_card_to_torch_and_vllm(cards: list[Card]) -> None:
    card = cards[-1]
    environment = {**os.environ, DEVICES: card.uuid[:16], "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", BY_UUID], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    named, number, place, uuid = done.stdout.splitlines()[-1].split()
    assert (named, number, int(place)) == (card.uuid, "1", card.index) and card.uuid.endswith(uuid)


def test_a_second_plan_sees_what_the_first_has_claimed(cards: list[Card], tmp_path: Path) -> None:
    """Of the card as its driver tells it, before anything of the claim is taken."""
    size = cards[0].free // 2
    with Look(tmp_path) as look:
        look.claim({own_cards(look.left)[0]: size})
    with Look(tmp_path) as look:
        second = own_cards(look.left)[0]
    assert abs(cards[0].free - size - second.free) < 2**30 and os.getpid() in second.holders


def test_the_doctor_finds_nothing_wrong_with_the_card() -> None:
    done = edge_opd("doctor", "--gpu")
    assert "GPUs: found none" not in done.stdout
    problems = [line for line in done.stdout.splitlines() if "PROBLEM" in line]
    assert not [line for line in problems if "GPU driver" in line or "flash attention" in line], problems


def test_sampling_is_as_fast_as_bare_vllm(tell: TELL) -> None:
    command = [sys.executable, "-m", "tests.bench.sampling", "--rounds", "5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (figure,) = figures_in(done.stdout.splitlines())
    tell(figure.name, figure.value, figure.target)
