"""Products of bfloat16 matrices on a CPU that has no kernels for them.

torch multiplies such matrices number by number then. Widened to float32 they are what they were, products of their
numbers are exact, and sums are float32, as in the kernels of a CPU that has them: only the order of a sum differs.
"""

import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")  # what linear layers, their gradients and experts are made of


def widen_products() -> torch.library.Library:
    """Has this process multiply bfloat16 matrices on the CPU in float32, and round the result once.

    Returns what undoes it once it is gone: torch forgets the kernels of a library with the library.
    """
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s).*Overriding a previously registered kernel")  # it is meant
        for name in PRODUCTS:
            kernel = torch.library.get_kernel(f"aten::{name}", "CPU")
            library.impl(name, partial(_widened, kernel), "CPU", with_keyset=True)
    return library


def _widened(kernel: Any, keyset: Any, *arguments: Any, **named: Any) -> Tensor:
    if arguments[0].dtype != torch.bfloat16:
        return kernel.call_boxed(keyset, *arguments, **named)
    wide = (argument.float() if isinstance(argument, Tensor) else argument for argument in arguments)
    return kernel.call_boxed(keyset, *wide, **named).bfloat16()
