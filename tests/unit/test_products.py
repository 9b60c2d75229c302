"""Products of bfloat16 matrices in float32: against sums in float64, and as autograd calls them."""

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from learner.products import PRODUCTS, widen_products

HALF_STEP = 2.0**-8  # of bfloat16, of a number's size: what one rounding may change
SUMMED = 1e-5  # of the factors' sizes: what float32 sums of 96 terms may be off by

PRODUCT: dict[str, Callable[..., Tensor]] = {
    "mm": lambda a, b, c: a[0] @ b[0],
    "addmm": lambda a, b, c: torch.addmm(c[0], a[0], b[0]),
    "bmm": lambda a, b, c: a @ b,
    "baddbmm": lambda a, b, c: torch.baddbmm(c, a, b, beta=0.5, alpha=2.0),
}


@pytest.fixture
def widened() -> Iterator[None]:
    """Nothing of a test keeps the library, whose end is what undoes it."""
    library = widen_products()
    assert all("learner/products.py" in torch._C._dispatch_dump(f"aten::{name}") for name in PRODUCTS)
    yield
    del library
    gc.collect()
    assert not any("learner/products.py" in torch._C._dispatch_dump(f"aten::{name}") for name in PRODUCTS)


def matrices() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, *shape).bfloat16() for shape in ((24, 96), (96, 40), (24, 40))]


@pytest.mark.usefixtures("widened")
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_is_rounded_once(name: str) -> None:
    expected = PRODUCT[name](*(matrix.double() for matrix in matrices()))
    size = PRODUCT[name](*(matrix.double().abs() for matrix in matrices()))
    found = PRODUCT[name](*matrices())
    assert found.dtype == torch.bfloat16
    off = (found.double() - expected).abs()
    assert (off <= expected.abs() * HALF_STEP + size * SUMMED).all()
    for place in (0, -1):
        assert off.flatten()[place] <= expected.flatten()[place].abs() * HALF_STEP + size.flatten()[place] * SUMMED


@pytest.mark.usefixtures("widened")
def test_gradients_of_a_linear_layer_are_such_products_too() -> None:
    a, b, _ = matrices()
    layer = nn.Linear(96, 40, dtype=torch.bfloat16)
    layer.weight.data.copy_(b[0].T)
    inputs = a[0].clone().requires_grad_()
    grad = torch.randn(24, 40).bfloat16()
    layer(inputs).backward(grad)
    assert inputs.grad is not None and layer.weight.grad is not None
    for found, left, right in ((inputs.grad, grad, b[0].T), (layer.weight.grad, grad.T, a[0])):
        expected, size = left.double() @ right.double(), left.double().abs() @ right.double().abs()
        assert ((found.double() - expected).abs() <= expected.abs() * HALF_STEP + size * SUMMED).all()


def test_float32_products_stay_as_they_were_and_so_does_all_once_it_is_undone() -> None:
    a, b, _ = matrices()
    wide, narrow = a[0].float() @ b[0].float(), a[0] @ b[0]
    library = widen_products()
    assert torch.equal(a[0].float() @ b[0].float(), wide)
    del library
    gc.collect()
    assert torch.equal(a[0] @ b[0], narrow)
