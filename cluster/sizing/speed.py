"""Seconds of a step's stages from what a GPU can do at most: a roofline, and the share of it that is reached.

The shares are this project's targets and published figures, none of them measured here on a GPU (docs/scaling.md).
"""

from dataclasses import dataclass

from cluster.sizing.shape import BYTES, ModelShape


@dataclass(frozen=True)
class Device:
    """One GPU, by its maker's data sheet. flops: dense bfloat16 a second. bandwidth: bytes of its memory a second."""

    name: str
    flops: float
    bandwidth: float
    memory: float  # bytes


DEVICES = {
    "A100": Device("A100 80 GB", 312e12, 2.04e12, 80e9),
    "H100": Device("H100 SXM 80 GB", 989e12, 3.35e12, 80e9),
    "H200": Device("H200 SXM 141 GB", 989e12, 4.8e12, 141e9),
}


def device_of(name: str) -> Device | None:
    """The data sheet of a GPU, by the name that its driver gives it; None for one that is not listed."""
    return next((device for key, device in DEVICES.items() if key in name), None)


def forward_flops(shape: ModelShape, tokens: float, context: float) -> float:
    """Of a forward pass over tokens that each attend to `context` others on average: 2 a parameter and token
    (arXiv 2001.08361, section 2.1), and 4 a number of a query and token attended to."""
    return 2.0 * shape.active * tokens + 4.0 * shape.layers * shape.queries * tokens * context


def train_flops(shape: ModelShape, tokens: float, context: float, checkpointing: bool = False) -> float:
    """A backward pass is two forward passes; with checkpointing a third is run again."""
    return forward_flops(shape, tokens, context) * (4 if checkpointing else 3)


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
