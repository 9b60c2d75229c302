"""Seconds of a step's stages from what a GPU can do at most: a roofline, and the share of it that is reached.

The shares are this project's targets and published figures, none of them measured here on a GPU (docs/scaling.md).
"""

import re
from dataclasses import dataclass

from cluster.sizing.shape import BYTES, ModelShape
from learner.report import Work


@dataclass(frozen=True)
class Device:
    """One GPU, by its maker's data sheet. flops: dense bfloat16 a second. bandwidth: bytes of its memory a second."""

    name: str
    flops: float
    bandwidth: float
    memory: float  # bytes


# By words of the driver's name; the first that fits.
DEVICES = {
    "A100": Device("A100 80 GB", 312e12, 2.04e12, 80e9),
    "H100 PCIe": Device("H100 PCIe 80 GB", 756e12, 2.0e12, 80e9),
    "H100 NVL": Device("H100 NVL 94 GB", 835e12, 3.9e12, 94e9),
    "H100": Device("H100 SXM 80 GB", 989e12, 3.35e12, 80e9),
    "H200": Device("H200 SXM 141 GB", 989e12, 4.8e12, 141e9),
    "GH200": Device("GH200 96 GB", 989e12, 4.0e12, 96e9),
    "B200": Device("B200 180 GB", 2250e12, 7.7e12, 180e9),
    "L4": Device("L4 24 GB", 121e12, 0.3e12, 24e9),
    "L40S": Device("L40S 48 GB", 362e12, 0.864e12, 48e9),
    "A10": Device("A10 24 GB", 125e12, 0.6e12, 24e9),
    "RTX A6000": Device("RTX A6000 48 GB", 154.8e12, 0.768e12, 48e9),
    "RTX 4090": Device("GeForce RTX 4090 24 GB", 165.2e12, 1.008e12, 24e9),
    "MI300X": Device("Instinct MI300X 192 GB", 1307e12, 5.3e12, 192e9),
}


def device_of(name: str) -> Device | None:
    """The data sheet of a GPU, by the name that its driver gives it; None for one that is not listed."""
    return next((device for key, device in DEVICES.items() if re.search(rf"\b{key}\b", name)), None)


def forward_flops(shape: ModelShape, tokens: float, context: float) -> float:
    """Of a forward pass over tokens that each attend to `context` others on average: 2 a parameter and token
    (arXiv 2001.08361, section 2.1), and 4 a number of a query and token attended to."""
    return 2.0 * shape.active * tokens + 4.0 * shape.layers * shape.queries * tokens * context


def train_flops(shape: ModelShape, tokens: float, context: float, checkpointing: bool = False) -> float:
    """A backward pass is two forward passes; with checkpointing a third is run again."""
    return forward_flops(shape, tokens, context) * (4 if checkpointing else 3)


def learned_flops(shape: ModelShape, work: Work, is_adapter: bool) -> float:
    """Of what a learner's rank ran: the head at the targets only, and an adapter's backward pass without the gradients
    of weights, which are half of it. A layer that runs again counts once."""
    head = shape.vocabulary * shape.hidden
    forward = 2.0 * ((shape.active - head) * work.tokens + head * work.targets)
    forward += 4.0 * shape.layers * shape.queries * work.attended
    return forward * (2 if is_adapter else 3)


def learn_seconds(
    shape: ModelShape, tokens: float, context: float, device: Device, gpus: int, utilisation: float
) -> float:
    """Of a learner step over all tokens. utilisation: of model FLOPs, in which a layer that runs again counts once."""
    return train_flops(shape, tokens, context) / (gpus * device.flops * utilisation)


def score_seconds(
    shape: ModelShape, tokens: float, context: float, device: Device, gpus: int, utilisation: float
) -> float:
    """Of a forward pass over all tokens; prompts that rows share are read once."""
    return forward_flops(shape, tokens, context) / (gpus * device.flops * utilisation)


def decode_step_seconds(
    shape: ModelShape, sequences: int, context: float, device: Device, workers: int, reached: float
) -> float:
    """Of one token for each of an engine's sequences, over its workers: weights and caches are read once, or the
    products bound it. reached: the share of either limit."""
    read = weights_read(shape, sequences) + sequences * context * shape.cache_bytes("bfloat16")
    products = forward_flops(shape, sequences, context)
    return max(read / device.bandwidth, products / device.flops) / workers / reached


def weights_read(shape: ModelShape, sequences: int) -> float:
    """Bytes: with experts those that at least one sequence goes to, as many as all where sequences are many."""
    return BYTES["bfloat16"] * min(float(shape.parameters), float(shape.active) * sequences)


def sample_seconds(
    shape: ModelShape,
    rollouts: int,
    response: float,
    context: float,
    device: Device,
    engines: int,
    workers: int,
    sequences: int,
    reached: float,
) -> float:
    """Of a step's rollouts over all engines, `sequences` of them at a time in each, for responses of one length."""
    rounds = max(1.0, rollouts / (engines * sequences))
    at_once = min(sequences, max(1, rollouts // engines))
    return rounds * response * decode_step_seconds(shape, at_once, context, device, workers, reached)


def push_seconds(shape: ModelShape, bytes_per_second: float) -> float:
    """Of all weights in bfloat16 through the narrowest place, which every engine hears at once (a broadcast)."""
    return BYTES["bfloat16"] * shape.parameters / bytes_per_second
