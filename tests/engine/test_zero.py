"""The real ZeRO engine against plain torch: same gradient for every stage, number of ranks and packing.

Two launches, of one rank and of two, run every scenario in processes of their own (tests/zero_process.py). The
reference sees one row at a time, with full logits, and autograd through the formulas of arXiv 2605.23493.
"""

import hashlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from evidence.diagnostics import TokenStats
from evidence.records import Ids, TrainRow
from learner.adapter import add_adapter
from learner.config import LearnerConfig
from learner.deepspeed_quirks import checkpoint_state
from learner.export import export_checkpoint
from learner.plan import plan, row_length
from tests import fakes
from tests.families import tiny
from tests.ranks import DEADLINE_S, ENVIRONMENT, launch_ranks, wait
from tests.reference import logprobs_of, plain_model
from tests.runs import ROOT, free_port
from tests.zero_process import Job, Scenario

VOCAB = 2048
RANKS = (1, 2)
STAGES = (0, 1, 2, 3)
DTYPES = ("float32", "bfloat16")
CHECKPOINTS: dict[str, dict[str, Any]] = {dtype: {"dtype": dtype} for dtype in DTYPES}
CHECKPOINTS["bfloat16-0"] = {"dtype": "bfloat16", "stage": 0}  # whose optimizer is not like that of the other stages
SIXTEEN = (1, 2)  # the stages of the optimizer with 16 bits
CHECKPOINTS |= {
    f"16bit-{stage}": {"dtype": "bfloat16", "stage": stage, "optimizer": "adamw_16bit"} for stage in SIXTEEN
}
BUDGETS = {"row-by-row": 1, "one-pack": 100_000}
BUCKETED, BUCKETS = (1, 2), (0, 50_000)  # stages that reduce gradients in buckets; 0: ours, which holds all of them
ADDED = (1, 2, 3)  # the stages that add bfloat16 gradients up in float32
EXPORTS: dict[str, dict[str, Any]] = {
    "export": {},
    "export-lora": {"lora_rank": 4},
    "export-bfloat16-0": {"stage": 0, "dtype": "bfloat16"},
}
ADAPTERS = {"lora": False, "lora-recomputed": True}  # whether layers run again in the backward pass
BETA = 0.05
LR = 1e-3
JSD_BETA, TOP_K = 0.3, 20
EMA_RATE, LORA_RANK = 0.75, 4
KEPT_LR = 0.02  # large, so that the weights of two steps are not one another's in bfloat16
CLIPPED_LR = {"float32": LR, "bfloat16": 0.1}  # of bfloat16 so large that rounding does not swallow the step
DECAY = 0.1
FLOAT32 = {"dtype": "float32", "lr": LR, "grad_clip": 0.0, "head_chunk_tokens": 5}
# (context, prompt, response) tokens of each row: unequal, one-token responses among them, and an odd number of rows.
SIZES = [(4, 5, 7), (3, 1, 4), (6, 9, 1), (1, 2, 1), (5, 3, 12), (2, 6, 2), (3, 4, 9)]


# The reference


def reference_loss(
    model: Any, rows: Sequence[TrainRow], beta: float, old: Sequence[Tensor] | None = None, kept_only: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """(loss, log-probs) with N = response tokens, or kept tokens; the PPO clip of 0.2 counts once old is given."""
    total = sum(len(row.response_ids) for row in rows)
    num = sum(int((row.weight != 0).sum()) for row in rows) if kept_only else total
    loss, seen = torch.zeros((), dtype=torch.float64), []
    for index, row in enumerate(rows):
        logprobs = logprobs_of(model, row.prompt_ids, row.response_ids)
        seen.append(logprobs.detach())
        before = logprobs.detach() if old is None else old[index]
        teacher, base, weight = (
            torch.from_numpy(a).double() for a in (row.teacher_context_logprobs, row.teacher_logprobs, row.weight)
        )
        advantage, ratio = weight * (teacher - before), torch.exp(logprobs - before)
        bound = torch.where(advantage > 0, torch.tensor(1.2), torch.tensor(0.8)).double()
        outside = torch.where(advantage > 0, ratio > bound, ratio < bound)
        policy = torch.where(outside, advantage * bound, advantage * ratio)
        d = base - logprobs
        loss = loss - policy.sum() / num + beta / total * (torch.exp(d) - d - 1).sum()
    return loss, seen


def reference_gradient(path: Path, rows: Sequence[TrainRow], beta: float, kept_only: bool = False) -> dict[str, Tensor]:
    model = plain_model(path)
    reference_loss(model, rows, beta, kept_only=kept_only)[0].backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 2e-4) -> None:
    """Each parameter by itself, relative to its own largest element."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        worst, largest = (found[name].float() - tensor).abs().max().item(), tensor.abs().max().item()
        assert worst <= tolerance * largest, f"{name}: off by {worst:.2e}, largest is {largest:.2e}"


# Rows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, default_model: Path) -> Path:
    """MLPs and the embedding are above ZeRO-3's persistence threshold, so that they are really partitioned."""
    folder = tmp_path_factory.mktemp("zero-model")
    return fakes.tiny_model(folder, vocab=VOCAB, intermediate_size=1792, tokenizer_from=default_model)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same vocabulary: narrower, untied, embedding and head large enough to be partitioned."""
    folder = tmp_path_factory.mktemp("zero-other")
    return fakes.tiny_model(folder, vocab=VOCAB, tied=False, hidden_size=56, seed=3)


@pytest.fixture(scope="module")
def context_prompts() -> list[Ids]:
    rng = np.random.default_rng(1)
    return [rng.integers(3, VOCAB, r + x).astype(np.int32) for r, x, _ in SIZES]


@pytest.fixture(scope="module")
def rows(model: Path, context_prompts: list[Ids]) -> list[TrainRow]:
    """Scored by the model itself, which is the frozen teacher of step 0; mask e > 0; every second row is guided."""
    teacher, rng, made = plain_model(model), np.random.default_rng(0), []
    for index, (_, num_prompt, num_response) in enumerate(SIZES):
        with_r = context_prompts[index]
        prompt = with_r[-num_prompt:]
        response = rng.integers(3, VOCAB, num_response).astype(np.int32)
        with torch.no_grad():
            plain, contextual = (logprobs_of(teacher, p, response).float().numpy() for p in (prompt, with_r))
        evidence = contextual - plain
        weight = (evidence > 0).astype(np.float32)
        made.append(
            TrainRow(f"r{index}", index % 2 == 0, prompt, with_r, response, contextual, plain, evidence, weight)
        )
    return made


@pytest.fixture(scope="module")
def soft_rows(rows: list[TrainRow]) -> list[TrainRow]:
    """Away from step 0: another teacher and base, soft weights, and one row that the mask leaves out."""
    rng = np.random.default_rng(2)

    def shifted(values: np.ndarray) -> np.ndarray:
        return (values + rng.normal(0, 0.5, len(values))).astype(np.float32)

    made = []
    for index, row in enumerate(rows):
        weight = row.weight * rng.uniform(0.8, 1.2, len(row.weight)) * (index != 3)
        made.append(
            replace(
                row,
                teacher_context_logprobs=shifted(row.teacher_context_logprobs),
                teacher_logprobs=shifted(row.teacher_logprobs),
                weight=weight.astype(np.float32),
            )
        )
    return made


def only(rows: Sequence[TrainRow], index: int) -> list[TrainRow]:
    """The same rows, nothing kept of any but one: its part of their gradient, at their scale."""
    return [row if place == index else replace(row, weight=0 * row.weight) for place, row in enumerate(rows)]


def with_weight(rows: Sequence[TrainRow], value: float) -> list[TrainRow]:
    return [replace(row, weight=np.full(len(row.weight), value, np.float32)) for row in rows]


# The launches


def scenarios(
    num_ranks: int,
    rows: list[TrainRow],
    soft_rows: list[TrainRow],
    context_prompts: list[Ids],
    folder: Path,
    model: str,
    other: str,
    clip: float,
) -> dict[str, Scenario]:
    def of(
        kind: list[TrainRow], stage: int, act: str = "step", extra: dict[str, Any] | None = None, **learner: Any
    ) -> Scenario:
        settings = FLOAT32 | {"zero_stage": stage, "beta_kl": BETA, "micro_batch_tokens": 16} | learner
        return Scenario(kind, settings, act, extra or {})

    def compared(stage: int, **learner: Any) -> Scenario:
        """With every rank's micro-batches of one row, so that one of two ranks idles at the end."""
        told = of(soft_rows, stage, objective="jsd", jsd_beta=JSD_BETA, micro_batch_tokens=1, **learner)
        return replace(told, frozen={"teacher": other, "base": other})

    grid = {
        f"grid-{stage}-{name}": of(soft_rows, stage, micro_batch_tokens=budget)
        for stage in STAGES
        for name, budget in BUDGETS.items()
    }
    stage = {1: 1, 2: 3}[num_ranks]  # the default, and the one with the most machinery
    common = {
        "all-masked": of(with_weight(rows, 0), stage, beta_kl=0.0, weight_decay=0.1),
        "all-ones": of(with_weight(rows, 1), stage, beta_kl=0.0),
        "kept": of(soft_rows, stage, beta_kl=0.0, denominator="kept"),
        "step-0": of(rows, stage, beta_kl=0.0),
        "scores": of(rows, stage, act="score"),
        "live": of(rows, stage, act="live_teacher", extra={"context_prompts": context_prompts}),
        "two-updates": of(soft_rows, stage, updates_per_batch=2),
        "experts": replace(of(soft_rows, stage), model=str(folder / "experts")),
        "gather": of(soft_rows, 3, act="gather"),
        "compared": compared(stage),
        "compared-top-k": compared(stage, divergence_top_k=TOP_K),
        "load-nothing": of(rows, stage, act="load_nothing", extra={"folder": str(folder / "empty")}),
        "bfloat16": of(soft_rows, stage, dtype="bfloat16"),
    }  # fmt: skip
    clipped = {
        f"clipped-{stage}-{dtype}": of(soft_rows, stage, dtype=dtype, grad_clip=clip, weight_decay=DECAY, lr=rate)
        for stage in STAGES
        for dtype, rate in CLIPPED_LR.items()
    }
    huge = [
        replace(row, teacher_logprobs=row.teacher_logprobs + (200 if index == 2 else 0))
        for index, row in enumerate(soft_rows)
    ]
    overflow = {
        f"overflow-{stage}-{dtype}": of(huge, stage, act="overflow", dtype=dtype)
        for stage in STAGES
        for dtype in DTYPES
    }
    for kind, told in CHECKPOINTS.items():
        common[f"checkpoint-{kind}"] = of(
            soft_rows,
            act="checkpoint",
            extra={"folder": str(folder / f"checkpoints-{kind}")},
            **{"stage": stage} | told,
        )
        common[f"resume-{kind}"] = of(
            soft_rows, act="resume", warmup_steps=3, weight_decay=0.01,
            extra={"folder": str(folder / f"resumed-{kind}"), "rate": EMA_RATE, "model": model},
            **{"stage": stage} | told,
        )  # fmt: skip
    for kept in STAGES:
        for dtype in DTYPES:
            extra = {"folder": str(folder / f"kept-{kept}-{dtype}")}
            common[f"keep-{kept}-{dtype}"] = of(soft_rows, kept, act="keep", extra=extra, dtype=dtype, lr=KEPT_LR)
    for name, told in EXPORTS.items():
        extra = {"folder": str(folder / name)}
        common[name] = of(soft_rows, act="export", extra=extra, **{"stage": stage} | told)
    lora = {
        f"{name}-{stage}": of(soft_rows, stage, act="adapter_steps", lora_rank=LORA_RANK, gradient_checkpointing=again)
        for stage in STAGES
        for name, again in ADAPTERS.items()
    }
    for kept in SIXTEEN:
        told = {"dtype": "bfloat16", "optimizer": "adamw_16bit", "grad_clip": 0.1, "weight_decay": DECAY}
        common[f"sixteen-{kept}"] = of(soft_rows, kept, act="sixteen_bits", **told)
    bf16 = {"dtype": "bfloat16", "beta_kl": 0.0, "micro_batch_tokens": 1}
    three = [row for row in soft_rows if row.weight.any()][:3]
    added = {
        f"added-{stage}-{name}": of(kind, stage, **bf16)
        for stage in ADDED
        for name, kind in [("all", three), *((str(index), only(three, index)) for index in range(3))]
    }
    buckets = {
        f"buckets-{kept}-{bucket}": replace(of(soft_rows, kept, act="in_buckets"), bucket=bucket)
        for kept in BUCKETED
        for bucket in BUCKETS
    }
    one_row = {f"one-row-{stage}": of(soft_rows[:1], stage) for stage in STAGES}
    again = {f"recomputed-{stage}": of(soft_rows, stage, gradient_checkpointing=True) for stage in STAGES}
    return grid | common | lora | added | buckets | one_row | again | clipped | overflow


def launch(job: Job, num_ranks: int, folder: Path) -> list[dict[str, Any]]:
    """Every rank's results."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(job, folder / "job.pt")
    port = free_port()
    found = launch_ranks("tests.zero_process", folder / "job.pt", num_ranks, port, folder)
    left = list(Path("/dev/shm").glob(f"deepspeed_*_{port}_*"))
    assert not left, f"shared memory left behind: {left}"
    return found


BUILD = "import sys; from learner.deepspeed_quirks import build_collectives; build_collectives(float(sys.argv[1]))"


def test_a_start_that_is_killed_while_deepspeed_compiles_does_not_stop_the_next(tmp_path: Path) -> None:
    """torch's own lock stays behind then; two ranks that start afterwards compile once, and both go on."""
    environment = ENVIRONMENT | {"TORCH_EXTENSIONS_DIR": str(tmp_path)}

    def start(deadline_s: float) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", BUILD, str(deadline_s)]
        return subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True)

    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    killed = start(DEADLINE_S)
    try:
        end = time.monotonic() + DEADLINE_S
        while not lock.exists():
            assert killed.poll() is None and time.monotonic() < end, "it did not come to compile"
            time.sleep(0.05)
        for process in everyone(killed.pid):
            process.suspend()  # its compilers too, so that its lock is there as long as we like, and nothing is built
        hasty = start(0.1)
        _, said = hasty.communicate(timeout=DEADLINE_S)
        assert hasty.returncode == 1
        assert f"TimeoutError: {tmp_path}: another process has been compiling".encode() in said
    finally:
        for process in [*everyone(killed.pid)]:  # found before one of them ends, whose children then are nobody's
            process.kill()  # its compilers too, which ninja gives groups of their own
        killed.communicate(timeout=DEADLINE_S)
    assert lock.exists() and not list(lock.parent.glob("*.so"))
    ranks = [start(DEADLINE_S), start(DEADLINE_S)]
    try:
        assert wait(ranks) == [0, 0]
    finally:
        for process in ranks:
            process.kill()
            process.communicate(timeout=DEADLINE_S)
    assert not lock.exists() and list(lock.parent.glob("*.so"))


def everyone(pid: int) -> Iterator[psutil.Process]:
    """A process and what it started, each before its children: one that was stopped starts no more."""
    process = psutil.Process(pid)
    yield process
    for child in process.children():
        yield from everyone(child.pid)


@pytest.fixture(scope="module", params=RANKS, ids=lambda num: f"{num}-ranks")
def results(
    request: pytest.FixtureRequest,
    model: Path,
    rows: list[TrainRow],
    soft_rows: list[TrainRow],
    context_prompts: list[Ids],
    other: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> "Results":
    folder = tmp_path_factory.mktemp(f"zero-{request.param}")
    paths = (folder, str(model), str(other))
    tiny("qwen3_moe", folder / "experts", vocab_size=VOCAB)
    todo = scenarios(request.param, rows, soft_rows, context_prompts, *paths, tiny_clip(model))
    return Results(folder, launch(Job(str(model), todo), request.param, folder))


class Results:
    """What the ranks of one launch handed in."""

    def __init__(self, folder: Path, ranks: list[dict[str, Any]]) -> None:
        self.folder, self.ranks = folder, ranks

    def of(self, name: str) -> dict[str, Any]:
        """Rank 0's result of a scenario. Full tensors are the same on every rank."""
        for other in self.ranks[1:]:
            for key in ("after", "loaded"):
                for parameter, tensor in self.ranks[0][name].get(key, {}).items():
                    assert torch.equal(tensor, other[name][key][parameter]), (name, key, parameter)
        return self.ranks[0][name]

    def loss(self, name: str) -> float:
        return sum(rank[name]["report"].loss for rank in self.ranks)

    def stats(self, name: str) -> TokenStats:
        return sum((stats for rank in self.ranks for _, stats in rank[name]["report"].stats), TokenStats())


# One gradient


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_and_packing_gives_the_reference_gradient(
    results: Results, model: Path, soft_rows: list[TrainRow], stage: int, budget: str
) -> None:
    name = f"grid-{stage}-{budget}"
    (gradient,) = results.of(name)["gradients"]
    assert_same(gradient, reference_gradient(model, soft_rows, BETA))
    expected = reference_loss(plain_model(model), soft_rows, BETA)[0].item()
    assert results.loss(name) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("stage", BUCKETED)
def test_many_buckets_give_the_gradient_of_one(
    results: Results, model: Path, soft_rows: list[TrainRow], stage: int
) -> None:
    """Some parameters are larger than a bucket, and some share one."""
    one, many = (results.of(f"buckets-{stage}-{bucket}") for bucket in BUCKETS)
    assert many["reduced"] > one["reduced"] + 2
    assert_same(many["gradients"][0], reference_gradient(model, soft_rows, BETA))
    for name, tensor in one["after"].items():
        assert torch.equal(many["after"][name], tensor), name


@pytest.mark.parametrize("stage", STAGES)
def test_layers_that_run_again_give_the_reference_gradient(
    results: Results, model: Path, soft_rows: list[TrainRow], stage: int
) -> None:
    (gradient,) = results.of(f"recomputed-{stage}")["gradients"]
    assert_same(gradient, reference_gradient(model, soft_rows, BETA))


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_takes_the_same_adamw_step(
    results: Results, model: Path, soft_rows: list[TrainRow], stage: int
) -> None:
    reference = plain_model(model)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=LR, weight_decay=0.0)
    reference_loss(reference, soft_rows, BETA)[0].backward()
    optimizer.step()
    assert_stepped_alike(results.of(f"grid-{stage}-row-by-row")["after"], reference)


def assert_stepped_alike(found: dict[str, Tensor], reference: Any) -> None:
    """AdamW's first steps are about lr in size whatever the gradient's: where that is next to 0, they are noise."""
    expected = {name: parameter.detach() for name, parameter in reference.named_parameters()}
    assert found.keys() == expected.keys()
    difference = torch.cat([(found[name] - expected[name]).abs().flatten() for name in expected])
    assert difference.max() <= 4.5 * LR
    assert (difference > 0.05 * LR).float().mean() < 2e-3


def test_every_rank_runs_its_own_share_and_unequal_shares_do_not_hang(
    results: Results, soft_rows: list[TrainRow]
) -> None:
    num_ranks = len(results.ranks)
    shares = plan(soft_rows, num_ranks, BUDGETS["row-by-row"])
    if num_ranks == 2:
        assert len({sum(1 for part in packs if part) for packs in shares}) == 2  # one of them idles at the end
    for stage in STAGES:
        reports = [rank[f"grid-{stage}-row-by-row"]["report"] for rank in results.ranks]
        assert sum(report.row_tokens for report in reports) == sum(row_length(row) for row in soft_rows)
        assert sum(len(report.stats) for report in reports) == len(soft_rows)


@pytest.mark.parametrize("stage", STAGES)
def test_a_rank_without_any_row_takes_part(
    results: Results, model: Path, soft_rows: list[TrainRow], stage: int
) -> None:
    name = f"one-row-{stage}"
    computed = [rank[name]["report"].row_tokens for rank in results.ranks]
    assert computed == [row_length(soft_rows[0]), 0][: len(results.ranks)]
    (gradient,) = results.of(name)["gradients"]
    assert_same(gradient, reference_gradient(model, soft_rows[:1], BETA))


def test_every_stage_tells_the_gradients_norm_before_clipping(
    results: Results, model: Path, soft_rows: list[TrainRow]
) -> None:
    gradient = reference_gradient(model, soft_rows, BETA)
    norm = torch.sqrt(sum(tensor.double().square().sum() for tensor in gradient.values())).item()
    clipped = [f"clipped-{stage}-float32" for stage in STAGES]
    for name in (*clipped, *(f"grid-{stage}-{budget}" for stage in STAGES for budget in BUDGETS)):
        assert [rank[name]["report"].grad_norm for rank in results.ranks] == pytest.approx(
            [norm] * len(results.ranks), rel=1e-3
        ), name


def tiny_clip(model: Path) -> float:
    """A norm at which elements are about as large as AdamW's eps of 1e-8: its first step then tells their scale."""
    return 1e-8 * sum(parameter.numel() for parameter in plain_model(model).parameters()) ** 0.5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stage", STAGES)
def test_a_clipped_first_step_has_the_reference_size(
    results: Results, model: Path, soft_rows: list[TrainRow], stage: int, dtype: str
) -> None:
    reference = plain_model(model)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=CLIPPED_LR[dtype], weight_decay=DECAY)
    reference_loss(reference, soft_rows, BETA)[0].backward()
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), tiny_clip(model))
    assert norm > 1e3 * tiny_clip(model)
    optimizer.step()
    start, stepped = (dict(one.named_parameters()) for one in (plain_model(model), reference))
    result = results.of(f"clipped-{stage}-{dtype}")
    mine, theirs = (
        torch.cat([(after[name].float() - before[name]).detach().flatten() for name in start])
        for before, after in ((result["before"], result["after"]), (start, stepped))
    )
    if dtype == "float32":
        assert (mine - theirs).norm() < 0.01 * theirs.norm()
    assert torch.cosine_similarity(mine, theirs, dim=0) > 0.98
    assert mine.norm() / theirs.norm() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_that_is_not_finite_ends_the_step_on_every_rank(results: Results, stage: int, dtype: str) -> None:
    """Of one row, whose k3 overflows: one rank alone computes it."""
    for rank in results.ranks:
        told = rank[f"overflow-{stage}-{dtype}"]["error"]
        assert re.match(r"gradient norm: found (inf|nan), expected a finite one", told)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stage", STAGES)
def test_an_update_that_is_skipped_is_counted_and_moves_no_weight(results: Results, stage: int, dtype: str) -> None:
    for rank in results.ranks:
        found = rank[f"overflow-{stage}-{dtype}"]
        assert (found["skipped"], found["moved"]) == (1, [])


def test_bfloat16_computes_nearly_the_same_gradient(results: Results, model: Path, soft_rows: list[TrainRow]) -> None:
    result, expected = results.of("bfloat16"), reference_gradient(model, soft_rows, BETA)
    assert {dtype for _, dtype, _ in result["shapes"]} == {"torch.bfloat16"}
    (gradient,) = result["gradients"]
    mine, theirs = (torch.cat([tensors[name].flatten() for name in expected]) for tensors in (gradient, expected))
    assert torch.cosine_similarity(mine, theirs, dim=0) > 0.98
    assert mine.norm() / theirs.norm() == pytest.approx(1, abs=0.1)


def test_bfloat16_gradients_of_micro_batches_add_up_in_float32(results: Results) -> None:
    """Row by row, in bfloat16 each: the sum has the bits that a bfloat16 sum would have dropped."""
    for stage in ADDED:
        (gradient,), *parts = (results.of(f"added-{stage}-{name}")["gradients"] for name in ("all", "0", "1", "2"))
        total = {name: sum(part[name] for (part,) in parts) for name in gradient}
        mine, exact = (torch.cat([tensors[name].flatten() for name in gradient]) for tensors in (gradient, total))
        assert (mine - exact).norm() < 1e-6 * exact.norm()
        assert (mine.bfloat16().float() - mine).norm() > 1e-4 * mine.norm()


@pytest.mark.parametrize("stage", SIXTEEN)
def test_the_optimizer_with_16_bits_takes_float32_adamws_steps(
    results: Results, model: Path, soft_rows: list[TrainRow], stage: int
) -> None:
    """On the engine's own gradients, clipped to a tenth of their norm or less, with decay; and those are the
    reference's, over micro-batches and ranks."""
    result, expected = results.of(f"sixteen-{stage}"), reference_gradient(model, soft_rows, BETA)
    mine, theirs = (torch.cat([one[name].flatten() for name in expected]) for one in (result["gradients"][0], expected))
    assert torch.cosine_similarity(mine, theirs, dim=0) > 0.98
    assert mine.norm() / theirs.norm() == pytest.approx(1, abs=0.1)
    parameters = {name: torch.nn.Parameter(tensor.float()) for name, tensor in result["before"].items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=LR, weight_decay=DECAY)
    for gradient, report, masters in zip(result["gradients"], result["reports"], result["masters"], strict=True):
        assert report.grad_norm > 1  # so that the clip of 0.1 counts
        for name, parameter in parameters.items():
            parameter.grad = gradient[name] * (0.1 / (report.grad_norm + 1e-6))
        optimizer.step()
        for name, parameter in parameters.items():
            apart = (masters[name] - parameter.detach()).abs()
            assert apart.mean() < 0.01 * LR and apart.max() < 0.2 * LR, name
    for name, tensor in result["masters"][-1].items():
        away, nearest = ((one.float() - tensor).abs() for one in (result["weights"][name], tensor.bfloat16()))
        assert torch.equal(away, nearest), name


@pytest.mark.parametrize("stage", SIXTEEN)
def test_the_optimizer_with_16_bits_holds_8_bytes_a_parameter(results: Results, stage: int) -> None:
    """Counted in the process, when the gradient is whole: 2 of a master's low half, 4 of moments, 2 of the gradient;
    the first two of them split over the ranks. No moments stand before the first step."""
    for rank in results.ranks:
        result = rank[f"sixteen-{stage}"]
        between, whole = (count / result["trained"] for count in result["bytes"][1:3])
        print(f"stage {stage}, {len(results.ranks)} ranks: {between:.3f} between steps, {whole:.3f} with a gradient")
        assert between <= 6.01 / len(results.ranks) and whole <= 8.01


# The method's invariants


def test_nothing_kept_and_no_anchor_is_no_step_at_all(results: Results, rows: list[TrainRow]) -> None:
    result = results.of("all-masked")
    report = result["report"]
    assert results.loss("all-masked") == 0
    assert (report.grad_norm, report.row_tokens, report.skipped_rows) == (0.0, 0, len(rows))
    for name, tensor in result["before"].items():
        assert torch.equal(result["after"][name], tensor), name
    stats = results.stats("all-masked")
    assert (stats.rows, stats.active) == (len(rows), 0)
    assert stats.tokens == sum(len(row.response_ids) for row in rows)


def test_all_ones_is_plain_opsd(results: Results, model: Path, rows: list[TrainRow]) -> None:
    """tau = -inf: the gradient of - mean (log pi_T(y|x,r) - log pi) sg * log pi, without any mask or ratio."""
    reference = plain_model(model)
    num = sum(len(row.response_ids) for row in rows)
    for row in rows:
        logprobs = logprobs_of(reference, row.prompt_ids, row.response_ids)
        reward = torch.from_numpy(row.teacher_context_logprobs).double() - logprobs.detach()
        (-(reward * logprobs).sum() / num).backward()
    (gradient,) = results.of("all-ones")["gradients"]
    assert_same(gradient, {name: parameter.grad for name, parameter in reference.named_parameters()})


def test_the_kept_denominator_counts_kept_tokens(results: Results, model: Path, soft_rows: list[TrainRow]) -> None:
    (gradient,) = results.of("kept")["gradients"]
    assert_same(gradient, reference_gradient(model, soft_rows, 0.0, kept_only=True))
    skipped = sum(not row.weight.any() for row in soft_rows)
    assert results.of("kept")["report"].skipped_rows == skipped > 0


def test_at_step_0_the_advantage_is_the_evidence(results: Results, rows: list[TrainRow]) -> None:
    scored = results.of("scores")["logprobs"]
    for row, mine in zip(rows, scored, strict=True):
        advantage = row.teacher_context_logprobs - np.array(mine, np.float32)
        assert advantage[0] == pytest.approx(row.evidence[0], abs=2e-5)
        assert advantage[-1] == pytest.approx(row.evidence[-1], abs=2e-5)
        assert advantage == pytest.approx(row.evidence, abs=2e-5)
        assert np.array_equal(advantage > 0, row.weight > 0)


def test_at_step_0_kept_is_positive_and_agreement_is_whole(results: Results, rows: list[TrainRow]) -> None:
    """Without an anchor, rows without a kept token are not run: they count as tokens, without the student's say."""
    stats = results.stats("step-0")
    evidence = np.concatenate([row.evidence for row in rows])
    of_run_rows = np.concatenate([row.evidence for row in rows if row.weight.any()])
    assert 0 < stats.active == (evidence > 0).sum() < of_run_rows.size < evidence.size
    assert (stats.tokens, stats.rows) == (evidence.size, len(rows))
    assert stats.evidence == pytest.approx(evidence.sum(dtype=np.float64), abs=1e-4)
    assert stats.student_tokens == of_run_rows.size
    assert stats.summary()["agreement"] == 1.0
    assert stats.surprise == pytest.approx(-of_run_rows.sum(dtype=np.float64), abs=1e-3)


def test_rows_that_are_not_run_still_count_in_the_denominator(
    results: Results, model: Path, rows: list[TrainRow]
) -> None:
    assert results.of("step-0")["report"].skipped_rows > 0
    (gradient,) = results.of("step-0")["gradients"]
    assert_same(gradient, reference_gradient(model, rows, 0.0))


def test_a_live_teachers_evidence_is_minus_the_surprise(results: Results, rows: list[TrainRow]) -> None:
    columns, stats = results.of("live")["rows"], results.stats("live")
    evidence = np.concatenate([row.evidence for row in columns])
    first = np.concatenate([row.evidence for row in rows])
    assert np.abs(evidence - first).max() > 1e-2  # it has moved away from the frozen one
    assert stats.surprise == pytest.approx(-evidence.sum(dtype=np.float64), abs=1e-3)
    assert stats.summary()["agreement"] == 1.0


def test_guided_and_plain_rows_keep_their_names(results: Results, rows: list[TrainRow]) -> None:
    told = [(guided, stats.tokens) for rank in results.ranks for guided, stats in rank["step-0"]["report"].stats]
    assert sorted(told) == sorted((row.guided, len(row.response_ids)) for row in rows)


def test_a_second_update_is_clipped_against_the_first(results: Results, model: Path, soft_rows: list[TrainRow]) -> None:
    reference = plain_model(model)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=LR, weight_decay=0.0)
    loss, old = reference_loss(reference, soft_rows, BETA)
    loss.backward()
    first = {name: parameter.grad.clone() for name, parameter in reference.named_parameters()}
    optimizer.step()
    optimizer.zero_grad()
    loss, new = reference_loss(reference, soft_rows, BETA, old)
    ratio = torch.exp(torch.cat(new) - torch.cat(old))
    assert (ratio > 1.2).any() and (ratio < 0.8).any() and ((ratio - 1).abs() < 0.2).any()
    loss.backward()
    second = {name: parameter.grad.clone() for name, parameter in reference.named_parameters()}
    optimizer.step()

    result = results.of("two-updates")
    assert len(result["gradients"]) == 2
    assert_same(result["gradients"][0], first)
    assert_same(result["gradients"][1], second, tolerance=5e-3)
    assert_stepped_alike(result["after"], reference)


# Frozen models


@pytest.mark.parametrize(("name", "top_k"), [("compared", 0), ("compared-top-k", TOP_K)])
def test_a_frozen_teacher_and_a_frozen_base_give_the_reference_gradient(
    results: Results, model: Path, other: Path, soft_rows: list[TrainRow], name: str, top_k: int
) -> None:
    """The teacher under (x, r), the base under x, neither of them the student's initial weights."""
    student, frozen = plain_model(model), plain_model(other)
    num = sum(len(row.response_ids) for row in soft_rows)
    loss = torch.zeros((), dtype=torch.float64)
    for row in soft_rows:
        with torch.no_grad():
            base = logprobs_of(frozen, row.prompt_ids, row.response_ids)
            teacher = probabilities(frozen, row.context_prompt_ids, row.response_ids)
        d = base - logprobs_of(student, row.prompt_ids, row.response_ids)
        measured = jsd_by_hand(teacher, probabilities(student, row.prompt_ids, row.response_ids), top_k)
        policy = torch.from_numpy(row.weight).double() @ measured
        loss = loss + (policy + BETA * (torch.exp(d) - d - 1).sum()) / num
    loss.backward()
    (gradient,) = results.of(name)["gradients"]
    assert_same(gradient, {name: parameter.grad for name, parameter in student.named_parameters()})
    assert results.loss(name) == pytest.approx(loss.item(), rel=1e-4)


def test_frozen_models_are_sharded_under_zero_3_only(results: Results, other: Path) -> None:
    whole = sum(parameter.numel() for parameter in plain_model(other).parameters())
    for rank in results.ranks:
        held = rank["compared"]["frozen"]
        assert len(held) == 2
        # Between steps ZeRO-3 keeps whole only what is small: here all but the embedding and the head.
        small = whole - 2 * VOCAB * 56
        assert held == [whole if len(results.ranks) == 1 else small] * 2


def probabilities(model: Any, prompt: Ids, response: Ids) -> Tensor:
    """[T, V] float64 of one row alone."""
    full = torch.from_numpy(np.concatenate([prompt, response])).long()
    weights = model(full[None], use_cache=False).logits[0].double()[len(prompt) - 1 : -1].exp()
    return weights / weights.sum(1, keepdim=True)


def jsd_by_hand(teacher: Tensor, student: Tensor, top_k: int) -> Tensor:
    if top_k:
        top = teacher.topk(top_k, dim=1).indices
        teacher, student = (
            torch.cat([kept := p.gather(1, top), 1 - kept.sum(1, keepdim=True)], dim=1) for p in (teacher, student)
        )
    mixture = JSD_BETA * teacher + (1 - JSD_BETA) * student
    from_teacher, from_student = ((p * (p / mixture).log()).sum(1) for p in (teacher, student))
    return JSD_BETA * from_teacher + (1 - JSD_BETA) * from_student


# LoRA


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("stage", STAGES)
def test_an_adapter_takes_the_reference_steps_and_nothing_else_moves(
    results: Results, model: Path, soft_rows: list[TrainRow], stage: int, kind: str
) -> None:
    """Two steps: in the first B is 0, so that A has no gradient yet."""
    reference = plain_model(model)
    add_adapter(reference, LearnerConfig(lora_rank=LORA_RANK))
    trained = {name: parameter for name, parameter in reference.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=LR, weight_decay=0.0)
    first, _, last = results.of(f"{kind}-{stage}")["weights"]
    assert first.keys() == trained.keys() and all(".lora_" in name for name in trained)
    assert results.of(f"{kind}-{stage}")["moved"] == []
    assert all(torch.equal(first[name], parameter) for name, parameter in trained.items())
    for _ in range(2):
        optimizer.zero_grad()
        reference_loss(reference, soft_rows, BETA)[0].backward()
        optimizer.step()
    moved = torch.cat([(last[name] - first[name]).abs().flatten() for name in trained])
    apart = torch.cat([(last[name] - parameter.detach()).abs().flatten() for name, parameter in trained.items()])
    assert (moved > 0.5 * LR).float().mean() > 0.9 and all(not torch.equal(last[name], first[name]) for name in trained)
    assert (apart > 0.05 * LR).float().mean() < 2e-2


# Full tensors, checkpoints, export


def test_full_tensors_have_full_shapes_and_every_stages_values(results: Results, model: Path) -> None:
    expected = {name: parameter.detach() for name, parameter in plain_model(model).named_parameters()}
    assert "lm_head.weight" not in expected  # tied: named once
    for stage in STAGES:
        result = results.of(f"grid-{stage}-one-pack")
        assert result["shapes"] == [(name, "torch.float32", tuple(tensor.shape)) for name, tensor in expected.items()]
        for name, tensor in expected.items():
            assert torch.equal(result["before"][name], tensor), (stage, name)
            assert not torch.equal(result["after"][name], tensor), (stage, name)


def test_a_push_gathers_one_group_of_layers_at_a_time(results: Results) -> None:
    """Under ZeRO-3; with one rank too, which has nothing to gather but keeps to the same order."""
    for rank in results.ranks:
        (before, most, after), groups = rank["gather"]["held"], rank["gather"]["groups"]
        print(
            f"{len(results.ranks)} ranks: at most {most} bytes held, the largest of {len(groups)} groups {max(groups)}"
        )
        assert before == after == 0 and len(groups) == 4  # embeddings, two layers, the last norm
        assert max(groups) <= most <= 2 * max(groups) < sum(groups)


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_checkpoint_brings_back_parameters_and_optimizer(results: Results, kind: str) -> None:
    """In bfloat16 the float32 masters too: rounded ones would not repeat the step to the bit."""
    result = results.of(f"checkpoint-{kind}")
    assert result["client_state"] == {"step": 7}
    for name, saved in result["saved"].items():
        assert torch.equal(result["loaded"][name], saved), name
        assert not torch.equal(result["onwards"][name], saved), name
        assert torch.allclose(result["repeated"][name], result["onwards"][name], rtol=0, atol=1e-2 * LR), name


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_the_ranks_seal_every_file_of_a_checkpoint_once(results: Results, kind: str) -> None:
    folder = results.folder / f"checkpoints-{kind}" / "step-000007"
    sealed = [file for rank in results.ranks for file in rank[f"checkpoint-{kind}"]["sealed"]]
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(file.name for file in sealed) == sorted(contents)
    for file in sealed:
        content = contents[file.name]
        assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest()), file.name
    about, total = results.of(f"checkpoint-{kind}")["about"], sum(map(len, contents.values()))
    print(f"{kind}, {len(results.ranks)} ranks: {total} bytes, about {about} expected")
    assert 0.9 * total < about < 1.5 * total


RATES = [LR / 3, LR * 2 / 3, LR, LR]  # of a warm-up over three steps


def test_the_warm_up_is_exact(results: Results) -> None:
    """Plain AdamW on the engine's own gradients, with the rate of each step set by hand, gives the same weights."""
    result = results.of("resume-float32")
    parameters = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in result["before"].items()}
    optimizer = torch.optim.AdamW(parameters.values(), weight_decay=0.01)
    assert [step["lr"] for step in result["steps"]] == pytest.approx(RATES)
    for rate, gradient, step in zip(RATES, result["gradients"], result["steps"], strict=True):
        optimizer.param_groups[0]["lr"] = rate
        for name, parameter in parameters.items():
            parameter.grad = gradient[name]
        optimizer.step()
        for name, parameter in parameters.items():
            assert torch.allclose(step["after"][name], parameter, rtol=0, atol=1e-3 * LR), name


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_checkpoint_restores_the_schedule(results: Results, kind: str) -> None:
    """From the middle of the warm-up on, as if nothing had happened."""
    result = results.of(f"resume-{kind}")
    assert result["restored"]["lr"] == pytest.approx(RATES[1])
    assert [step["lr"] for step in result["again"]] == pytest.approx(RATES[1:])
    for first, second in zip(result["steps"][1:], result["again"], strict=True):
        for name, tensor in first["after"].items():
            assert torch.allclose(second["after"][name], tensor, rtol=0, atol=1e-2 * LR), name


def test_the_average_of_the_weights_is_the_recursion_and_survives_a_checkpoint(results: Results) -> None:
    result = results.of("resume-float32")
    expected = {name: tensor.double() for name, tensor in result["before"].items()}
    for step in result["steps"]:
        expected = {name: EMA_RATE * e + (1 - EMA_RATE) * step["after"][name].double() for name, e in expected.items()}
        assert_averages(step["average"], expected)
    assert_averages(result["restored"]["average"], result["steps"][0]["average"])
    assert_averages(result["again"][-1]["average"], expected)
    for other_rank in results.ranks[1:]:
        assert [step["average"] for step in other_rank["resume-float32"]["steps"]] == [{}] * 4


def assert_averages(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name].double(), tensor.double(), rtol=0, atol=1e-2 * LR), name


def test_the_mean_of_the_last_weights_survives_a_checkpoint(results: Results) -> None:
    """Of all four steps, the checkpoint after the first."""
    result = results.of("resume-float32")
    for name, tensor in result["mean"].items():
        expected = torch.stack([step["after"][name].double() for step in result["steps"]]).mean(0)
        assert torch.allclose(tensor.double(), expected, rtol=0, atol=1e-3 * LR), name
        assert torch.allclose(result["mean_again"][name], tensor, rtol=0, atol=1e-2 * LR), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stage", STAGES)
def test_kept_weights_take_the_place_of_the_trained_ones(
    results: Results, rows: list[TrainRow], model: Path, stage: int, dtype: str
) -> None:
    """What is gathered, what a forward runs and what a checkpoint holds, all of it the mean of two steps' weights."""
    result = results.of(f"keep-{stage}-{dtype}")
    assert result["refused"] == "kept weights: found the mean of 2, expected of 3"
    _, second, third = result["afters"]
    expected = {name: (second[name].float() + third[name].float()) / 2 for name in second}
    assert any(not torch.equal(second[name], third[name]) for name in second)
    reference = plain_model(model)
    for name, tensor in expected.items():
        rounded = tensor.to(result["mean"][name].dtype)
        assert torch.allclose(result["mean"][name], rounded, rtol=1e-6, atol=1e-7), name
        assert torch.equal(result["best"][name], second[name]), name
    saved = checkpoint_state(results.folder / f"kept-{stage}-{dtype}" / "step-000003")
    for name, tensor in expected.items():
        assert torch.allclose(saved[f"causal_lm.{name}"].float(), tensor, rtol=0, atol=1e-6 if stage == 3 else 1e-2)
    reference.load_state_dict({name: tensor.float() for name, tensor in result["mean"].items()}, strict=False)
    with torch.no_grad():
        for row, found in zip(rows, result["logprobs"], strict=True):
            wanted = logprobs_of(reference, row.prompt_ids, row.response_ids)
            assert torch.tensor(found).sub(wanted).abs().max() < (1e-3 if dtype == "float32" else 0.5)


def test_loading_from_nothing_is_refused(results: Results) -> None:
    assert (
        "found no checkpoint step-000001, expected one that --resume can continue from"
        in results.of("load-nothing")["error"]
    )


def test_an_export_is_an_ordinary_model_folder(
    results: Results, soft_rows: list[TrainRow], default_model: Path
) -> None:
    folder, result = results.folder / "export", results.of("export")
    assert "packed_rows" not in (folder / "config.json").read_text()
    exported = plain_model(folder)
    assert exported.config.use_cache
    for name, parameter in exported.named_parameters():
        assert torch.equal(parameter.detach(), result["after"][name]), name
    with torch.no_grad():
        for row, mine in zip(soft_rows, result["logprobs"], strict=True):
            expected = logprobs_of(exported, row.prompt_ids, row.response_ids).tolist()
            assert mine[0] == pytest.approx(expected[0], abs=2e-5)
            assert mine[-1] == pytest.approx(expected[-1], abs=2e-5)
            assert mine == pytest.approx(expected, abs=2e-5)
    ours, theirs = (AutoTokenizer.from_pretrained(str(path)) for path in (folder, default_model))
    assert ours.encode("Who are you?") == theirs.encode("Who are you?")


@pytest.mark.parametrize("name", EXPORTS)
def test_a_checkpoint_exports_to_the_same_files_without_the_ranks(results: Results, model: Path, name: str) -> None:
    folder, settings = results.folder / name, FLOAT32 | EXPORTS[name]
    settings.pop("stage", None)
    checkpoint = Path(f"{folder}-checkpoints") / "step-000001"
    export_checkpoint(checkpoint, str(model), LearnerConfig(**settings), results.folder / "later")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in (results.folder / "later").iterdir()
    }


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_checkpoint_is_read_without_the_ranks(results: Results, kind: str) -> None:
    found = checkpoint_state(results.folder / f"checkpoints-{kind}" / "step-000007")
    for name, tensor in results.of(f"checkpoint-{kind}")["saved"].items():
        assert torch.equal(found[f"causal_lm.{name}"].to(tensor.dtype), tensor), name


def test_experts_learn_and_leave_under_the_names_of_files(results: Results, soft_rows: list[TrainRow]) -> None:
    """Without the router's load-balancing loss: the objective is the whole loss."""
    folder, result = results.folder / "experts", results.of("experts")
    (gradient,) = result["gradients"]
    expected = reference_gradient(folder, soft_rows, BETA)
    fused = {name for name in expected if "experts" in name}
    assert fused and all(expected[name].any() for name in (*fused, "model.layers.0.mlp.gate.weight"))
    assert_same(gradient, expected)
    written = load_file(folder / "model.safetensors")
    assert result["before"].keys() == result["after"].keys() == written.keys()
    for name, tensor in written.items():
        assert torch.equal(result["before"][name], tensor) and not torch.equal(result["after"][name], tensor), name
    assert {name: shape for name, _, shape in result["shapes"]} == {n: tuple(t.shape) for n, t in written.items()}
