"""The learner's step against a plain PyTorch loop: padded rows, full logits, one float32 AdamW.

    python -m tests.bench.learner_step [--rounds 3]

Both take the same rows (4 prompts, 8 responses each of 10 to 256 tokens) in the same compute type. Each side is a
process of its own and they take turns; the figures are medians of times, and peak memory. Gradient norms are printed
since they must be the same. On a GPU whose peak is known the learner's model FLOP utilisation is told as well.
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cluster.default_model import prepare_default_model
from cluster.fleet.launch import learner_environment
from cluster.fleet.placement import Plan
from cluster.sizing.speed import device_of
from evidence.records import TrainRow
from learner.products import widen_products
from rollout.cores import cpu_flags, has_bfloat16, num_cores
from tests.bench.figures import Figure

ROOT = Path(__file__).parents[2]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROMPTS, SAMPLES, PROMPT_TOKENS, PLAIN_BATCH = 4, 8, 40, 8
# what the learner is told, the share of rows with a kept token, and what our time may be of the plain loop's
SETTINGS: dict[str, tuple[dict[str, Any], float, str]] = {
    "anchored": ({"beta_kl": 0.05}, 1.0, "<= 0.75"),
    "half kept": ({"beta_kl": 0.0}, 0.5, "<= 0.6"),
    "anchored, checkpointing": ({"beta_kl": 0.05, "gradient_checkpointing": True}, 1.0, "<= 0.75"),
    "anchored, 16 bits": ({"beta_kl": 0.05, "optimizer": "adamw_16bit"}, 1.0, "<= 0.75"),
    "anchored, 16 bits, checkpointing": (
        {"beta_kl": 0.05, "optimizer": "adamw_16bit", "gradient_checkpointing": True},
        1.0,
        "<= 0.75",
    ),
}


def make_rows(kept: float) -> list[TrainRow]:
    """Half of the tokens of the first `kept` of the rows are kept, and nothing of the others."""
    rng = np.random.default_rng(0)
    rows: list[TrainRow] = []
    for prompt in (rng.integers(5, 40_000, PROMPT_TOKENS).astype(np.int32) for _ in range(PROMPTS)):
        for sample in range(SAMPLES):
            length = int(np.clip(rng.lognormal(4.0, 0.8), 10, 256))
            response = rng.integers(5, 40_000, length).astype(np.int32)
            with_r, without = (-5 * rng.random(length, np.float32) for _ in range(2))
            weight = (rng.random(length) < 0.5) & (sample < kept * SAMPLES)
            streams = (with_r, without, with_r - without, weight.astype(np.float32))
            rows.append(TrainRow(str(len(rows)), False, prompt, prompt, response, *streams))
    return rows


def ours(rows: list[TrainRow], **told: Any) -> Callable[[], float]:
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_SIZE="1", MASTER_ADDR="127.0.0.1",
                      MASTER_PORT="29611", **({} if DEVICE == "cuda" else {"DS_ACCELERATOR": "cpu"}))  # fmt: skip
    from learner.config import LearnerConfig
    from learner.engine import ZeroEngine
    from learner.train import Trainer

    config = LearnerConfig(lr=1e-7, **told)
    trainer = Trainer(ZeroEngine(str(prepare_default_model()), config), config)
    return lambda: trainer.step(rows).grad_norm


def plain(rows: list[TrainRow], beta_kl: float, **told: Any) -> Callable[[], float]:
    """bfloat16 compute and float32 master weights, as ours; K1 with the k3 anchor, method.md."""
    model = AutoModelForCausalLM.from_pretrained(str(prepare_default_model()), dtype=torch.bfloat16).to(DEVICE)
    masters = [parameter.detach().float() for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(masters, lr=1e-7, weight_decay=0.0)
    tokens = sum(len(row.response_ids) for row in rows)

    def loss_of(batch: list[TrainRow]) -> torch.Tensor:
        full = [torch.from_numpy(np.concatenate([row.prompt_ids, row.response_ids])).long() for row in batch]
        padded = torch.nn.utils.rnn.pad_sequence(full, batch_first=True).to(DEVICE)
        seen = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in full], batch_first=True).to(DEVICE)
        logits = model(input_ids=padded, attention_mask=seen, use_cache=False).logits.float()
        logprobs = torch.log_softmax(logits[:, :-1], -1).gather(2, padded[:, 1:, None]).squeeze(2)
        total = logprobs.new_zeros(())
        for mine, row in zip(logprobs, batch, strict=True):
            own = mine[len(row.prompt_ids) - 1 :][: len(row.response_ids)]
            with_r, without, weight = (
                torch.from_numpy(stream).to(DEVICE)
                for stream in (row.teacher_context_logprobs, row.teacher_logprobs, row.weight)
            )
            total = total - (weight * (with_r - own.detach()) * own).sum() / tokens
            if beta_kl:
                d = without - own
                total = total + beta_kl * (torch.exp(d) - d - 1).sum() / tokens
        return total

    def step() -> float:
        for start in range(0, len(rows), PLAIN_BATCH):
            loss_of(rows[start : start + PLAIN_BATCH]).backward()
        for master, parameter in zip(masters, model.parameters(), strict=True):
            master.grad, parameter.grad = parameter.grad.float(), None
        norm = torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        for master, parameter in zip(masters, model.parameters(), strict=True):
            parameter.data.copy_(master)
        optimizer.zero_grad()
        return float(norm)

    return step


def resource_peak() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def model_flops(rows: list[TrainRow]) -> float:
    """Of one step's forward and backward pass: 6 for each parameter and token that needs it (arXiv 2001.08361, section
    2.1), a shared prompt once, the head at response tokens only; attention's own products are not counted."""
    config = AutoConfig.from_pretrained(str(prepare_default_model()))
    head = config.vocab_size * config.hidden_size
    with torch.device("meta"):
        body = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters()) - head
    responses = sum(len(row.response_ids) for row in rows)
    return 6.0 * (body * (PROMPTS * PROMPT_TOKENS + responses - len(rows)) + head * responses)


def serve(side: str, setting: str) -> None:
    """Takes a step, and one for every line on stdin; tells seconds, gradient norm and peak memory of each."""
    told, kept, _ = SETTINGS[setting]
    widened = widen_products() if DEVICE == "cpu" and not has_bfloat16(cpu_flags()) else None  # as a run's learner does
    step = (ours if side == "ours" else plain)(make_rows(kept), **told)
    for _ in itertools.chain([""], sys.stdin):
        start = time.perf_counter()
        norm = step()
        peak = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else resource_peak()
        print(
            "RESULT", json.dumps({"seconds": time.perf_counter() - start, "norm": norm, "gb": peak / 1e9}), flush=True
        )
    del widened


def start(side: str, setting: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.bench.learner_step", "--serve", side, setting]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    own = learner_environment(Plan(DEVICE, "shm", {}, 1, threads=num_cores())) if side == "ours" else {}
    return subprocess.Popen(command, text=True, cwd=ROOT, env=os.environ | own, **pipes)  # type: ignore[call-overload]


def ask(process: "subprocess.Popen[str]") -> Any:
    assert process.stdin
    process.stdin.write("\n"), process.stdin.flush()
    return answer_of(process)


def answer_of(process: "subprocess.Popen[str]") -> Any:
    assert process.stdout
    answer = next(line for line in process.stdout if line.startswith("RESULT"))
    return json.loads(answer.removeprefix("RESULT"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", nargs=2, metavar=("SIDE", "SETTING"))
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(*arguments.serve)
    for setting in SETTINGS:
        sides = {side: start(side, setting) for side in ("ours", "plain")}
        for process in sides.values():
            answer_of(process)  # both have taken their first step, and none disturbs the other from here on
        rounds = [{side: ask(process) for side, process in sides.items()} for _ in range(arguments.rounds)]
        for process in sides.values():
            process.communicate()
        seconds, gb, norm = (
            [pick(one[side][key] for one in rounds) for side in sides]
            for key, pick in (("seconds", statistics.median), ("gb", max), ("norm", min))
        )
        note = f"{setting}: {seconds[0]:.2f} and {seconds[1]:.2f} s, gradient norm {norm[0]:.4g} and {norm[1]:.4g}"
        Figure("step over a plain loop, time", seconds[0] / seconds[1], SETTINGS[setting][2], note).say()
        note = f"{setting}: {gb[0]:.2f} and {gb[1]:.2f} GB"
        Figure("step over a plain loop, peak memory", gb[0] / gb[1], "<= 0.45", note).say()
        if setting == "anchored":  # every row runs
            flops = model_flops(make_rows(1.0)) / seconds[0]
            Figure("model FLOP/s of the learner", flops, "", DEVICE).say()
            name = torch.cuda.get_device_name() if DEVICE == "cuda" else ""
            if device := device_of(name):
                Figure("model FLOP utilisation of the learner", flops / device.flops, "", name).say()
    return None


if __name__ == "__main__":
    main()
