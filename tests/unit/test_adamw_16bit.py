"""AdamW in 16 bits against torch's AdamW in float32, and against its own rounding rules."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from learner import adamw_16bit
from learner.adamw_16bit import AdamW16Bit, halves, joined, rounded_at_random
from learner.config import LearnerConfig
from learner.schedule import rate_factor

SETTINGS = {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 0.05}


def gradients(steps: int, size: int, seed: int = 0) -> Tensor:
    """Noise of which every fourth parameter has nothing else, and the others a direction."""
    draw = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-6, 0, size)[torch.randperm(size, generator=draw)]
    drift = torch.randn(size, generator=draw) * (torch.arange(size) % 4 > 0)
    return ((torch.randn(steps, size, generator=draw) + drift) * scale).bfloat16()


def whole(optimizer: AdamW16Bit, parameter: Tensor) -> Tensor:
    return joined(parameter.detach(), optimizer.state[parameter]["low"])


def stepped(optimizer: torch.optim.Optimizer, parameter: Tensor, grads: Tensor) -> None:
    for grad in grads:
        parameter.grad = grad.to(parameter.dtype)
        optimizer.step()


def start(size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(9)).bfloat16()


def test_two_halves_are_every_bit_of_a_float32_number() -> None:
    draw = torch.Generator().manual_seed(0)
    exponents = torch.randint(-140, 120, (100_000,), generator=draw)
    master = torch.randn(100_000, generator=draw) * torch.pow(2.0, exponents.double()).float()
    master = torch.cat([master, torch.tensor([0.0, -0.0, 1.00390625, -1.00390625, 1e-45, 3.3e38])])
    high, low = halves(master)
    assert torch.equal(joined(high, low).view(torch.int32), master.view(torch.int32))
    nearest = master.bfloat16()
    assert torch.equal((high.float() - master).abs(), (nearest.float() - master).abs())
    assert torch.equal(joined(nearest, torch.zeros_like(nearest)), nearest.float())  # what a run begins with


@pytest.mark.parametrize("value", [1.001, -3.3e-7, 2.5e-41, 1.0])
def test_rounding_at_random_is_right_on_average_and_gives_a_neighbour(value: float) -> None:
    exact = torch.full((200_000,), value)
    noise = torch.randint(0, 1 << 16, exact.shape, generator=torch.Generator().manual_seed(1)).int()
    found = rounded_at_random(exact, noise).float()
    spacing = float(torch.tensor(value).bfloat16().view(torch.int16).add(1).view(torch.bfloat16)) - float(
        torch.tensor(value).bfloat16()
    )
    assert float((found - exact).abs().max()) < abs(spacing)
    assert float(found.double().mean()) == pytest.approx(float(exact[0]), abs=4 * abs(spacing) / 2 / len(exact) ** 0.5)


def test_every_noise_is_drawn_as_often() -> None:
    noise = adamw_16bit._noise(torch.empty(400_003), torch.Generator().manual_seed(0))
    assert noise.shape == (400_003,) and noise.dtype == torch.int16
    assert float(noise.double().mean()) == pytest.approx(-0.5, abs=4 * 65536 / 12**0.5 / 400_003**0.5)
    assert len(noise.unique()) > 0.99 * 65536 * (1 - 2.718 ** (-400_003 / 65536))


def test_the_first_step_is_float32_adamws_to_its_last_bits() -> None:
    begun, grads = start(5000), gradients(1, 5000)
    parameter, reference = torch.nn.Parameter(begun.clone()), torch.nn.Parameter(begun.float())
    mine, theirs = AdamW16Bit([parameter], **SETTINGS), torch.optim.AdamW([reference], **SETTINGS)
    stepped(mine, parameter, grads), stepped(theirs, reference, grads)
    assert torch.allclose(whole(mine, parameter), reference, rtol=3e-7, atol=1e-9)
    assert torch.equal(parameter.float(), whole(mine, parameter).bfloat16().float())


@pytest.mark.parametrize("size", [4096, 4097])
def test_it_stays_beside_float32_adamw_over_400_steps(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a schedule and decay, in chunks that end within the tensor. What differs is the noise of the second moment,
    about 5% of it, and falls on either side."""
    monkeypatch.setitem(adamw_16bit.CHUNKS, "cpu", 1000)
    begun, grads = start(size), gradients(400, size)
    parameter, reference = torch.nn.Parameter(begun.clone()), torch.nn.Parameter(begun.float())
    mine, theirs = AdamW16Bit([parameter], **SETTINGS), torch.optim.AdamW([reference], **SETTINGS)
    for optimizer, weights in ((mine, parameter), (theirs, reference)):
        factor = rate_factor("cosine", 0.1, 20, 400)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        for grad in grads:
            stepped(optimizer, weights, grad[None])
            schedule.step()
    moved, apart = (one.detach() for one in (reference - begun.float(), whole(mine, parameter) - reference))
    print(f"apart {float(apart.norm() / moved.norm()):.4f}, {float((apart * moved).sum() / moved.square().sum()):.5f}")
    assert apart.norm() < 0.02 * moved.norm()
    assert abs((apart * moved).sum()) < 0.005 * moved.square().sum()  # neither faster nor slower
    square = mine.state[parameter]["exp_avg_sq"].float() / theirs.state[reference]["exp_avg_sq"]
    assert float(square.mean()) == pytest.approx(1, abs=0.01)  # nearest rounding would leave it where it stands


def test_steps_far_below_a_bfloat16_add_up() -> None:
    """1,000 steps of 1e-6 from 1.0, whose neighbours in bfloat16 are 4e-3 and 8e-3 away."""
    grads = torch.ones(1000, 64)
    parameter, reference = torch.nn.Parameter(torch.ones(64).bfloat16()), torch.nn.Parameter(torch.ones(64))
    mine, theirs = AdamW16Bit([parameter], lr=1e-6), torch.optim.AdamW([reference], lr=1e-6, weight_decay=0.0)
    stepped(mine, parameter, grads), stepped(theirs, reference, grads)
    assert torch.equal(parameter, torch.ones(64).bfloat16())
    assert torch.allclose(1 - whole(mine, parameter), 1 - reference.detach(), rtol=0.05, atol=0)


def test_a_loaded_state_repeats_every_bit(tmp_path: Path) -> None:
    grads = gradients(6, 3001)
    parameter = torch.nn.Parameter(start(3001))
    optimizer = AdamW16Bit([parameter], **SETTINGS)
    stepped(optimizer, parameter, grads[:3])
    torch.save([parameter.data, optimizer.state_dict()], tmp_path / "state.pt")
    stepped(optimizer, parameter, grads[3:])
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    fresh = torch.nn.Parameter(weights)
    again = AdamW16Bit([fresh], **SETTINGS)
    again.load_state_dict(state)
    stepped(again, fresh, grads[3:])
    assert torch.equal(fresh, parameter)
    for name, tensor in optimizer.state[parameter].items():
        bits = (one.view(-1).view(torch.uint8) for one in (again.state[fresh][name], tensor))
        assert torch.equal(*bits), name
    assert whole(again, fresh).equal(whole(optimizer, parameter))


def test_it_keeps_six_bytes_a_parameter() -> None:
    parameter = torch.nn.Parameter(start(1000))
    optimizer = AdamW16Bit([parameter], **SETTINGS)
    stepped(optimizer, parameter, gradients(1, 1000))
    tensors = [tensor for tensor in optimizer.state[parameter].values() if tensor.numel() > 1]
    assert sum(tensor.untyped_storage().nbytes() for tensor in tensors) == 6 * 1000


def test_a_chunk_is_gone_over_few_times() -> None:
    """Operators that make or fill a tensor of its size; each takes about as long as AdamW itself."""
    parameter = torch.nn.Parameter(start(4096))
    optimizer = AdamW16Bit([parameter], **SETTINGS)
    stepped(optimizer, parameter, gradients(1, 4096))
    passes = list[str]()

    class Passes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            fused = func is torch.ops.aten._fused_adamw_.default  # which gives nothing back
            if fused or (isinstance(made, Tensor) and made.numel() >= 1024 and not func.is_view):
                passes.append(func.name())
            return made

    with Passes():
        optimizer.step()
    assert passes.count("aten::_fused_adamw_") == 1
    assert len(passes) <= 27, passes


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({"optimizer": "muon"}, r"learner.optimizer: found 'muon', expected one of \['adamw', 'adamw_16bit'\]"),
        ({"zero_stage": 3}, r"learner.zero_stage: found 3, expected one of \(1, 2\) with learner.optimizer"),
        ({"zero_stage": 0}, r"learner.zero_stage: found 0, expected one of \(1, 2\) with learner.optimizer"),
        ({"dtype": "float32"}, "learner.optimizer: found 'adamw_16bit' with learner.dtype = 'float32'"),
        ({"lora_rank": 4}, "learner.optimizer: found 'adamw_16bit' with .*learner.lora_rank = 4"),
    ],
)
def test_what_it_cannot_hold_is_one_line(told: dict[str, object], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        LearnerConfig(**{"optimizer": "adamw_16bit"} | told)  # type: ignore[arg-type]
