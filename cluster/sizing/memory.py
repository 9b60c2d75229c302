"""Bytes of a learner rank and of an engine's worker, part by part.

Legend: b = bytes of a number of the compute type. tests/unit/test_sizing.py compares formulas with what was measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.sizing.shape import BYTES, ModelShape
from cluster.weights.transports import BUFFER
from learner.config import OPTIMIZERS, UNPACKED, LearnerConfig, head_chunk
from rollout.config import EngineConfig

GIB = 1 << 30
BUCKET = 500_000_000  # numbers in a bucket of gradients, and
GATHERED = 1_000_000_000  # parameters that ZeRO-3 keeps gathered: DeepSpeed 0.19.8's defaults
BETWEEN_GPUS = ("ipc", "nccl")  # transports
CONTEXT = 0.6 * GIB  # what CUDA, its libraries and a process's kernels take, before the first tensor
WORKSPACES = 0.2 * GIB  # of a learner's step: what cuBLAS keeps, and what no other part names
GRAPHS = 1.0 * GIB  # of an engine: graphs of up to 512 sequences, as vLLM 0.32 records them, and what compiling keeps

BLOCK = 16  # tokens that vLLM's cache keeps together on a GPU

SPARE = 0.04  # the share of a card that is left for what is not planned: fragments, and what the driver keeps

Parts = Mapping[str, float]  # bytes by what they are


@dataclass(frozen=True)
class LearnerMemory:
    """Bytes of one rank. resident: between two steps. working: beside it, in a step. micro_batch: tokens of one. push:
    beside what is resident, while weights are sent, and until it is given back."""

    resident: Parts
    working: Parts
    micro_batch: int
    push: float = 0.0

    @property
    def idle(self) -> float:
        """While others work."""
        return sum(self.resident.values())

    @property
    def peak(self) -> float:
        """In a step, or a push that comes after it."""
        return self.idle + max(sum(self.working.values()), self.push)


def learner_memory(
    shape: ModelShape, config: LearnerConfig, trained: int, longest: int, frozen_models: int = 0, push: float = 0.0
) -> LearnerMemory:
    """On a GPU.

    trained: T, all parameters or an adapter's. longest: tokens of the longest row; a micro-batch is one such row where
    that is longer than `LearnerConfig.micro_batch`. frozen_models: a teacher or a base that the learner runs.
    """
    b, ranks, stage = BYTES[config.dtype], config.num_ranks, config.zero_stage
    kept = OPTIMIZERS[config.optimizer]
    sharded = ranks if stage == 3 else 1
    tokens = max(config.micro_batch, longest)
    kept_bucket, bucket = bucket_bytes(config, trained)
    gathered = b * min(shape.parameters, GATHERED) if stage == 3 else 0
    return LearnerMemory(
        resident={
            "weights": b * shape.parameters / sharded,
            "masters and moments": (kept.master + kept.moments) * trained / (ranks if stage else 1),
            "gradients": kept.gradient * trained / (ranks if stage >= 2 else 1),  # added up
            "frozen models": b * shape.parameters * frozen_models / sharded,
            "buffers": kept_bucket,
            "CUDA": CONTEXT,
        },
        working={
            "activations": activation_bytes(shape, config, tokens),
            "padding": padding_bytes(shape, config, tokens),
            "logits": logit_bytes(shape, config),
            "buffers": bucket + gathered,
            "workspaces": WORKSPACES,
        },
        micro_batch=config.micro_batch,
        push=push,
    )


def bucket_bytes(config: LearnerConfig, trained: int) -> tuple[float, float]:
    """Of the buckets that DeepSpeed 0.19.8 reduces gradients in: (from the start on, and in a step beside that).

    ZeRO-3 keeps one in float32, as long as it may be, and copies what is in it. ZeRO 1 and 2 make one of the gradients'
    type in each backward pass, copy what is in it, and once more into float32; bfloat16 gradients that add up in
    float32 at stage 1 have no bucket. Without ZeRO there is the copy alone.
    """
    b, stage, filled = BYTES[config.dtype], config.zero_stage, min(BUCKET, trained)
    if stage == 3:
        return 4 * BUCKET, 4 * filled
    if stage == 1 and b == 2 and config.optimizer == "adamw":
        return 0, 0
    return 0, b * filled if stage == 0 else b * BUCKET + (b + 4 * (b == 2)) * filled


def push_bytes(shape: ModelShape, config: LearnerConfig, transport: str, average: bool = False) -> float:
    """Of the learner's first rank in a push between GPUs: the buffer that tensors are packed into, which over ipc is
    made whole, and under ZeRO-3 the largest layer, gathered. What is gathered or copied for the push is held until it
    is packed: over nccl all of a buffer. average: whether what is sent is an average of the weights, in float32.
    """
    if transport not in BETWEEN_GPUS:
        return 0.0
    b = BYTES["float32" if average else config.dtype]
    largest = b * shape.largest_tensor
    gathered = max(largest, b * shape.parameters / shape.layers) if config.zero_stage == 3 or average else 0.0
    if transport == "ipc":
        return max(BUFFER, largest) + gathered
    packed = min(b * shape.parameters, BUFFER + largest)
    return packed + (packed + gathered if gathered else 0.0)


def received_bytes(shape: ModelShape, dtype: str, transport: str, workers: int) -> float:
    """Of a worker of an engine in a push between GPUs, whose tensors have that dtype: what was packed, over nccl twice
    where it comes in parts, since a layer whose other half is in the next part keeps all of its own; and one layer as
    it was before it is copied into the engine's."""
    if transport not in BETWEEN_GPUS:
        return 0.0
    largest, whole = BYTES[dtype] * shape.largest_tensor, BYTES[dtype] * shape.parameters
    part = max(BUFFER, largest) if transport == "ipc" else BUFFER + largest
    return min(whole, part * (2 if transport == "nccl" else 1)) + largest / workers


def padding_bytes(shape: ModelShape, config: LearnerConfig, tokens: int) -> float:
    """What attention keeps of padded rows, beside `activation_bytes`. Flash attention pads none, and has no float32:
    there the kernel keeps queries, keys, values and what it gives, keys and values of as many heads as queries have,
    and rows are at most `UNPACKED` times as many tokens as are packed."""
    if config.dtype != "float32":
        return 0.0
    layers = 1 if config.gradient_checkpointing else shape.layers
    return layers * 4 * (4 * shape.queries) * UNPACKED * tokens


def activation_bytes(shape: ModelShape, config: LearnerConfig, tokens: int) -> float:
    """What the layers keep for the backward pass.

    Of a token in a layer: each norm keeps its input in float32 and in b, and its output in b; attention what it reads
    and, twice, what it gives; the product its two factors, what the first becomes and the whole. With
    gradient_checkpointing a layer keeps its input, and one at a time all of this.
    """
    layer = layer_bytes(shape, BYTES[config.dtype])
    inputs = BYTES[config.dtype] * shape.hidden
    whole = shape.layers * layer if not config.gradient_checkpointing else shape.layers * inputs + layer
    return tokens * whole


def layer_bytes(shape: ModelShape, b: int) -> int:
    """Of a token."""
    norms = 2 * shape.hidden * (4 + 2 * b if b == 2 else 3 * b)
    attention = b * (shape.queries + 2 * shape.values) + 2 * b * shape.queries
    experts = 4 * b * shape.hidden * shape.experts_used  # each gets a copy, and what it gives is weighed and added
    return norms + attention + 4 * b * shape.inner + experts


def logit_bytes(shape: ModelShape, config: LearnerConfig) -> float:
    """Of one chunk of positions: float32 logits and a copy in b for the backward pass, twice with a teacher's beside
    them; and the gradient of the head's weight, which an adapter leaves frozen, in float32, with a chunk's share where
    that is not added in place."""
    b = BYTES[config.dtype]
    chunk = head_chunk(config, shape.vocabulary, on_gpu=True)
    copies = (4 + b) if not config.compares_distributions else 5 * 4 + b
    of_weight = 0 if config.lora_rank else 8 if b == 2 else 4
    return chunk * shape.vocabulary * copies + shape.largest_tensor * of_weight


@dataclass(frozen=True)
class EngineMemory:
    """Bytes of one of an engine's workers. token: of a token in its cache. sequences: for which the cache may be made.
    cache: bytes that the recipe says, or 0."""

    fixed: Parts
    token: float
    sequences: int
    window: int
    cache: float = 0.0

    def bytes(self, sequences: int) -> float:
        """With a cache for that many sequences as long as the window, or the recipe's."""
        return sum(self.fixed.values()) + self.cache_bytes(sequences)

    def cache_bytes(self, sequences: int) -> float:
        """vLLM keeps whole blocks of each sequence, and one more for itself."""
        blocks = -(-self.window // BLOCK) * sequences + 1
        return self.cache or self.token * BLOCK * blocks


def engine_memory(shape: ModelShape, config: EngineConfig, received: float = 0.0) -> EngineMemory:
    """On a GPU. received: of a push, see `received_bytes`; no batch is computed meanwhile."""
    dtype, workers = config.dtype_on("cuda"), config.tensor_parallel_size
    b = BYTES[dtype]
    work = work_bytes(shape, config, b)
    return EngineMemory(
        fixed={
            "weights": b * shape.parameters / workers,
            "work": work,
            "push": max(0.0, received - work),
            "graphs": 0.0 if config.is_eager("cuda") else GRAPHS,
            "CUDA": CONTEXT,
        },
        token=shape.cache_bytes(dtype) / workers,
        sequences=config.max_num_seqs,
        window=config.window,
        cache=config.kv_cache_gib * GIB / workers,
    )


SCORED = 1024  # positions whose log-probs of a prompt vLLM 0.32 computes at one time


def work_bytes(shape: ModelShape, config: EngineConfig, b: int) -> float:
    """One layer's products of all tokens that an engine computes at a time, and the logits of what it samples or
    scores, in float32 and as log-probs."""
    tokens = max(config.max_num_batched_tokens, config.window)
    layer = b * (4 * shape.hidden + 2 * shape.queries + 2 * shape.inner / config.tensor_parallel_size)
    return tokens * layer + 2 * 4 * max(config.max_num_seqs, min(SCORED, tokens)) * shape.vocabulary
