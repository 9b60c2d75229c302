"""A step of the math recipe on larger models and clusters, on paper: docs/scaling.md is made of it.

Every number is a formula of `cluster.sizing` over the assumptions below. None was measured on a GPU.
"""

from dataclasses import dataclass

from cluster.sizing.memory import GIB, SPARE, engine_memory, learner_memory, push_bytes, received_bytes
from cluster.sizing.shape import ModelShape
from cluster.sizing.speed import (
    DEVICES,
    Device,
    learn_seconds,
    push_seconds,
    sample_seconds,
    score_seconds,
)
from learner.config import LearnerConfig
from rollout.config import EngineConfig

# Dimensions of Qwen3-8B and Qwen3-32B, and of a decoder with 128 experts, of which 8 and a shared one are used.
MODELS: dict[str, ModelShape] = {
    "8B": ModelShape.decoder(
        layers=36, hidden=4096, heads=32, key_heads=8, head=128, inner=12288, vocabulary=151_936
    ),
    "32B": ModelShape.decoder(
        layers=64, hidden=5120, heads=64, key_heads=8, head=128, inner=25600, vocabulary=151_936
    ),
    "120B-A12B": ModelShape.decoder(
        layers=52, hidden=4096, heads=64, key_heads=8, head=128, inner=1408, vocabulary=151_552, experts=128,
        experts_used=9,
    ),
}  # fmt: skip
GPUS = (8, 64, 512)
WORKERS = {"8B": 1, "32B": 2, "120B-A12B": 8}  # of an engine: tensor_parallel_size
DEVICE = DEVICES["H100"]
ROOM = (1 - SPARE) * DEVICE.memory

# The workload: math with worked solutions as the context, 8 samples of a prompt.
PROMPT, SOLUTION, RESPONSE, LONGEST, GROUP = 150, 3200, 2000, 8192, 8  # tokens, but for the group
ROLLOUTS_A_GPU = 16  # of a step
SEQUENCES = 128  # that an engine runs at a time
# What is reached of a GPU's limits: targets of this project, to be replaced by what `make test-gpu` finds.
LEARNING, SCORING, DECODING = 0.40, 0.50, 0.60
# Rollouts a second, of docs/benchmarks/README.md: `python -m tests.bench.controller` on two cores without AVX-512, with
# 256 stand-in engines whose rollouts take 0.25 s, so that the controller is the bound and not they.
CONTROLLER = 6953.0
# Bytes a second that weights leave a learner by, of the links' makers, and what of it a transfer reaches.
LINKS: dict[str, float] = {
    "`ipc`, within a GPU's memory": 3.35e12 / 2,
    "`nccl`, NVLink 4": 450e9,
    "`nccl`, 400 Gb/s InfiniBand": 50e9,
    "`nccl`, 100 Gb/s Ethernet": 12.5e9,
    "`gloo`, 10 Gb/s Ethernet": 1.25e9,
}
LINK_REACHED = 0.7
TOKEN_BYTES = 4 + 5 * 4 + 1 / 8  # of a response token in a shard: its id, five float32 columns and a bit
ROW_BYTES = 120  # names, counts, offsets


@dataclass(frozen=True)
class Stages:
    """Seconds of one step, on half of the GPUs for the learner and a quarter for each pool of engines."""

    sample: float
    score: float
    learn: float
    push: float

    @property
    def step(self) -> float:
        """One after another, at a max_policy_lag of 0."""
        return self.sample + self.score + self.learn + self.push


def stages(name: str, gpus: int, device: Device = DEVICE) -> Stages:
    """Of a step of ROLLOUTS_A_GPU rollouts a GPU; weights over InfiniBand."""
    shape, workers, rollouts = MODELS[name], WORKERS[name], ROLLOUTS_A_GPU * gpus
    groups, tokens = rollouts // GROUP, rollouts * RESPONSE
    engines = max(1, gpus // 4 // workers)
    plain = tokens + groups * PROMPT
    guided = tokens + groups * (PROMPT + SOLUTION)
    context = PROMPT + RESPONSE / 2
    mean = PROMPT + SOLUTION / 2 + RESPONSE  # half of the rollouts are sampled with the solution in the prompt
    held = max(1, min(SEQUENCES, int(worker_sequences(name, device) * LONGEST / mean)))
    scored = [(plain, context), (guided, context + SOLUTION)]
    return Stages(
        sample=sample_seconds(
            shape, rollouts, RESPONSE, context + SOLUTION / 2, device, engines, workers, held, DECODING
        ),
        score=sum(score_seconds(shape, read, seen, device, gpus // 4, SCORING) for read, seen in scored),
        learn=learn_seconds(shape, plain, context, device, gpus // 2, LEARNING),
        push=push_seconds(shape, LINKS["`nccl`, 400 Gb/s InfiniBand"] * LINK_REACHED),
    )


def shard_bytes(rollouts: int, prompt: float, context: float, response: float) -> float:
    """Of a step: what every shard has, without the columns that only some kinds of evidence read."""
    return rollouts * (ROW_BYTES + 4 * (2 * prompt + context) + TOKEN_BYTES * response)


def rank_bytes(name: str, gpus: int, stage: int) -> float:
    """The peak of the first learner rank on half of the GPUs, with gradient checkpointing, and weights over NCCL."""
    config = LearnerConfig(
        zero_stage=stage, num_ranks=gpus // 2, micro_batch_tokens=LONGEST, gradient_checkpointing=True
    )
    shape = MODELS[name]
    return learner_memory(shape, config, shape.parameters, LONGEST, push=push_bytes(shape, config, "nccl")).peak


def worker_sequences(name: str, device: Device = DEVICE) -> int:
    """How many sequences of LONGEST tokens an engine's cache holds; 0 where its weights do not fit."""
    config = EngineConfig(
        window=LONGEST, max_num_seqs=SEQUENCES, max_num_batched_tokens=LONGEST, tensor_parallel_size=WORKERS[name]
    )
    shape, workers = MODELS[name], WORKERS[name]
    memory = engine_memory(shape, config, received_bytes(shape, "bfloat16", "nccl", workers))
    return max(0, int(((1 - SPARE) * device.memory - memory.bytes(0)) // (memory.token * LONGEST)))


def fits(name: str, gpus: int) -> bool:
    """Whether the learner's ranks do, at some stage, and an engine's workers."""
    learns = any(rank_bytes(name, gpus, stage) < ROOM for stage in (1, 2, 3))
    return learns and WORKERS[name] <= gpus // 4 and worker_sequences(name) > 0


def tables() -> str:
    """The page's tables, in Markdown."""
    return "\n\n".join([_memory(), _engines(), _seconds(), _pushes(), _rest()]) + "\n"


def _table(title: str, words: str, head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in [head, *rows]]
    return "\n".join([f"## {title}", "", words, "", lines[0], "|" + "---|" * len(head), *lines[1:]])


def _memory() -> str:
    rows = []
    for name in MODELS:
        for gpus in GPUS:
            sizes = [rank_bytes(name, gpus, stage) for stage in (1, 2, 3)]
            shown = [f"{size / GIB:.0f}" + ("" if size < ROOM else " (no)") for size in sizes]
            rows.append([name, str(gpus), str(gpus // 2), *shown])
    words = (
        "GiB at the peak of a step. (no): more than the card has. Formula: `learner_memory` in\n"
        "[cluster/sizing/memory.py](../cluster/sizing/memory.py): 2 bytes a parameter for the weights, 12 for masters\n"
        "and moments, 4 for gradients, each divided by the ranks where the stage shares it out; activations of 8,192\n"
        "tokens with gradient checkpointing, logits, buffers; or a push, where that takes more."
    )
    return _table("Memory of a learner rank", words, ["model", "GPUs", "ranks", "ZeRO 1", "ZeRO 2", "ZeRO 3"], rows)


def _engines() -> str:
    rows = []
    for name, shape in MODELS.items():
        weights = 2 * shape.parameters / WORKERS[name] / GIB
        cache = shape.cache_bytes("bfloat16") / 1024
        held = str(worker_sequences(name))
        rows.append([name, str(WORKERS[name]), f"{weights:.1f}", f"{cache:.0f}", held])
    words = (
        "bfloat16. Formulas: `engine_memory` and `cache_bytes`: 2 bytes a parameter, divided by the workers; a key\n"
        f"and a value of every layer for each token. The last column: sequences of {LONGEST:,} tokens that fit at once."
    )
    head = ["model", "workers", "weights a worker, GiB", "cache a token, KiB", "sequences"]
    return _table("Memory of an engine", words, head, rows)


def _seconds() -> str:
    rows = []
    for name in MODELS:
        for gpus in GPUS:
            found = stages(name, gpus)
            parts = (found.sample, found.score, found.learn, found.push, found.step)
            seconds = [f"{value:.1f}" if fits(name, gpus) else "-" for value in parts]
            rows.append([name, str(gpus), f"{ROLLOUTS_A_GPU * gpus:,}", *seconds])
    words = (
        "Seconds, at staleness 0; -: does not fit. Formulas in [cluster/sizing/speed.py](../cluster/sizing/speed.py):\n"
        "`sample_seconds` (weights and caches read once a token, over the memory's bandwidth), `score_seconds` (2\n"
        "operations a parameter and token, and attention's own), `learn_seconds` (three times that), `push_seconds`\n"
        "(2 bytes a parameter over InfiniBand)."
    )
    head = ["model", "GPUs", "rollouts", "sample", "score", "learn", "push", "step"]
    return _table("Seconds of a step", words, head, rows)


def _pushes() -> str:
    rows = [
        [link, *(f"{push_seconds(shape, speed * LINK_REACHED):.2f}" for shape in MODELS.values())]
        for link, speed in LINKS.items()
    ]
    words = (
        f"Seconds for all weights, with {LINK_REACHED:.0%} of the link's speed; every engine receives at the same time."
    )
    return _table("A push by transport", words, ["transport", *MODELS], rows)


def _rest() -> str:
    rows = []
    for name in MODELS:
        for gpus in GPUS:
            rollouts, seconds = ROLLOUTS_A_GPU * gpus, stages(name, gpus).step
            written = shard_bytes(rollouts, PROMPT, SOLUTION, RESPONSE)
            load = rollouts / seconds / CONTROLLER
            shown = [f"{written / seconds / 1e6:.2f}", f"{load:.2%}"] if fits(name, gpus) else ["-", "-"]
            rows.append([name, str(gpus), f"{written / 1e6:.0f}", *shown])
    words = (
        "Formula of a shard: `shard_bytes`. The controller's load is the rollouts a second over the\n"
        f"{CONTROLLER:,.0f} that it fed on two cores, measured with 256 stand-in engines that could do more\n"
        "([benchmarks](benchmarks/README.md))."
    )
    head = ["model", "GPUs", "shard, MB", "MB a second", "load of the controller"]
    return _table("Shards and the controller", words, head, rows)
