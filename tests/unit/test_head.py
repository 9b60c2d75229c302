"""The head in parts of the vocabulary: numbers as of whole logits in float64, and never the whole head in float32."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from learner import head
from learner.head import LogprobHead
from learner.logits import AS_IT_IS, LogitForm

VOCABULARY, HIDDEN, PART = 301, 24, 100  # three whole parts and one token
FORMS = [AS_IT_IS, LogitForm(0.3), LogitForm(1.5, 2.0)]
# the first and the last token of each part stand first, last and amid the positions
TARGETS = torch.tensor([300, 0, 99, 100, 150, 199, 200, 299, 7, 0])


class LargestMade(TorchDispatchMode):
    """Elements of the largest tensor that is made of each type; what a view shows is not made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: dict[torch.dtype, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made._base is None:
            self.numbers[made.dtype] = max(self.numbers.get(made.dtype, 0), made.numel())
        return made


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(len(TARGETS), HIDDEN, generator=random).to(dtype).requires_grad_()
    return hidden, torch.randn(VOCABULARY, HIDDEN, generator=random).to(dtype)


def whole(hidden: Tensor, weight: Tensor, form: LogitForm) -> Tensor:
    """Of full float64 logits."""
    logits = form.scale * (hidden @ weight.T)
    logits = logits if form.cap is None else form.cap * torch.tanh(logits / form.cap)
    return logits.log_softmax(-1).gather(1, TARGETS[:, None]).squeeze(1)


def require_near(mine: Tensor, exact: Tensor) -> None:
    if mine.dtype == torch.float32:
        assert torch.allclose(mine.double(), exact, rtol=1e-4, atol=1e-5)
    else:
        assert (mine.double() - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [3, 64])
def test_parts_of_the_vocabulary_give_what_whole_logits_do(
    monkeypatch: pytest.MonkeyPatch, chunk: int, dtype: torch.dtype, form: LogitForm
) -> None:
    monkeypatch.setattr(head, "WIDENED", PART)
    hidden, weight = inputs(dtype)
    parameter = torch.nn.Parameter(weight)
    (found,) = LogprobHead(parameter, chunk, form=form)(hidden, TARGETS)
    exact_hidden, exact_weight = (one.detach().double().requires_grad_() for one in (hidden, weight))
    expected = whole(exact_hidden, exact_weight, form)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    factors = torch.linspace(-1.0, 2.0, len(TARGETS))
    (found * factors).sum().backward()
    (expected * factors).sum().backward()
    for mine, exact in ((hidden.grad, exact_hidden.grad), (parameter.grad, exact_weight.grad)):
        assert mine is not None and exact is not None and mine.dtype == dtype
        for one, other in ((mine, exact), (mine[0], exact[0]), (mine[-1], exact[-1])):
            require_near(one, other)


def test_the_largest_float32_tensor_is_a_part_of_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "WIDENED", PART)
    hidden, weight = inputs(torch.bfloat16)
    parameter = torch.nn.Parameter(weight)
    with LargestMade() as made:
        (found,) = LogprobHead(parameter, 3)(hidden, TARGETS)
        assert made.numbers[torch.float32] == PART * HIDDEN
        found.sum().backward()
    assert made.numbers[torch.float32] == PART * HIDDEN
    assert made.numbers[torch.bfloat16] == VOCABULARY * HIDDEN  # the gradient, which is the recorder's witness
