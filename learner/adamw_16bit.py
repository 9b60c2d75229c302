"""AdamW with 6 bytes of state for each bfloat16 parameter, and weights that are as exact as float32 masters.

Legend: high = the bfloat16 nearest to a float32 number, low = what is missing, in units of the float32's last place:
16 bits with a sign. P = parameters of one flat tensor, C = those of a chunk.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

CHUNKS = {"cpu": 1 << 17, "cuda": 1 << 24}  # parameters in float32 at one time: on a CPU a chunk stays in its caches


class AdamW16Bit(Optimizer):
    """AdamW (arXiv 1711.05101, algorithm 2) over bfloat16 parameters and gradients; the update itself is in float32.

    A weight is a float32 number in two halves: the parameter is its high half, the state has the low one. Rounding
    each moment to the nearest bfloat16 would lose the small changes that it is made of, so it is rounded up or down
    at random, by as much as it is nearer to the one: on average nothing is lost (arXiv 1502.02551, section 3). What is
    drawn depends on the number of steps alone, so that a run which resumes repeats it.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": eps})

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One update of every parameter that has a gradient."""
        assert closure is None
        with torch.no_grad():
            for group in self.param_groups:
                for place, parameter in enumerate(group["params"]):
                    if parameter.grad is not None:
                        self._update(parameter, group, place)

    def _update(self, parameter: Tensor, group: dict[str, Any], place: int) -> None:
        state = self.state[parameter]
        if not state:
            # torch makes a loaded state's tensors the parameter's type, so that the low half stands there as one.
            state |= {name: torch.zeros_like(parameter.data) for name in ("exp_avg", "exp_avg_sq", "low")}
            state["step"] = torch.zeros(())
        state["step"] += 1
        step = int(state["step"])
        draw = torch.Generator(parameter.device).manual_seed((place << 32) + step)
        streams = (parameter.data, state["low"], state["exp_avg"], state["exp_avg_sq"], parameter.grad)
        for chunk in _chunks(streams):
            _update_chunk(chunk, group, step, draw)


def _chunks(streams: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    size = CHUNKS.get(streams[0].device.type, CHUNKS["cuda"])
    yield from zip(*(stream.view(-1).split(size) for stream in streams), strict=True)


def _update_chunk(chunk: tuple[Tensor, ...], group: dict[str, Any], step: int, draw: torch.Generator) -> None:
    high_C, low_C, average_C, square_C, grad_C = chunk
    master, average, square = joined(high_C, low_C), average_C.float(), square_C.float()
    before = torch.full((), step - 1.0, device=master.device)  # steps, to which `adamw` adds this one
    beta1, beta2 = group["betas"]
    given = {name: group[name] for name in ("lr", "weight_decay", "eps")} | {"beta1": beta1, "beta2": beta2}
    streams: tuple[list[Tensor], ...] = ([master], [grad_C.float()], [average], [square], [], [before])
    adamw(*streams, fused=True, amsgrad=False, maximize=False, **given)
    noise = _noise(high_C, draw).to(torch.int32).bitwise_and_(0xFFFF)  # for both: each is itself on average
    exact = (*halves(master), rounded_at_random(average, noise), rounded_at_random(square, noise))
    for kept, whole in zip((high_C, low_C, average_C, square_C), exact, strict=True):
        kept.copy_(whole)


def halves(master: Tensor) -> tuple[Tensor, Tensor]:
    """A float32 tensor as (high, low), both bfloat16 in type; low is the bits of an int16."""
    bits = master.view(torch.int32) + 0x8000  # so that high is the nearest; of two as near ones, the larger
    low = bits.to(torch.int16).bitwise_xor_(-0x8000)  # the lower bits less what was added
    high = bits.bitwise_right_shift_(16).to(torch.int16)
    return high.view(torch.bfloat16), low.view(torch.bfloat16)


def joined(high: Tensor, low: Tensor) -> Tensor:
    """The float32 tensor of the two halves, every bit of it."""
    master = high.float()
    master.view(torch.int32).add_(low.view(torch.int16).to(torch.int32))
    return master


def rounded_at_random(exact: Tensor, noise: Tensor) -> Tensor:
    """float32 to one of the two bfloat16 around it, on average itself.

    noise: int32, every value from 0 to 65,535 as likely.
    """
    bits = exact.view(torch.int32) + noise
    return bits.bitwise_right_shift_(16).to(torch.int16).view(torch.bfloat16)


def _noise(like_C: Tensor, draw: torch.Generator) -> Tensor:
    """int16 of that size; 64 bits are drawn at a time."""
    drawn = torch.empty((like_C.numel() + 3) // 4, dtype=torch.int64, device=like_C.device)
    return drawn.random_(torch.iinfo(torch.int64).min, None, generator=draw).view(torch.int16)[: like_C.numel()]
