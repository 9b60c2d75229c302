"""Seconds of products of bfloat16 matrices on this CPU over those of float32: torch's own, and widened.

    python -m tests.bench.bfloat16_products [--rounds 5]

The shapes are those of a linear layer of the default model: 48 tokens, as in sampling, and 1,024, as in a micro-batch.
On a CPU without kernels for bfloat16 (`edge-opd doctor` says so) the learner multiplies as the last column says.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from learner.products import widen_products
from tests.bench.figures import Figure

WIDTH, HEIGHT = 576, 1536
TOKENS = (48, 1024)
Product = Callable[[Tensor, Tensor, Tensor], Tensor]
PRODUCTS: dict[str, Product] = {  # of inputs [T, W], weight [H, W] and the gradient of the outputs [T, H]
    "outputs": lambda inputs, weight, grad: inputs @ weight.T,
    "gradient of the inputs": lambda inputs, weight, grad: grad @ weight,
    "gradient of the weight": lambda inputs, weight, grad: grad.T @ inputs,
}


def seconds(product: Product, matrices: list[Tensor], rounds: int) -> float:
    """Of one product, the median of `rounds`."""
    found = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        product(*matrices)
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    for tokens in TOKENS:
        wide = [torch.randn(tokens, WIDTH), torch.randn(HEIGHT, WIDTH), torch.randn(tokens, HEIGHT)]
        narrow = [matrix.bfloat16() for matrix in wide]
        for name, product in PRODUCTS.items():
            float32, own = (seconds(product, matrices, rounds) for matrices in (wide, narrow))
            library = widen_products()
            widened = seconds(product, narrow, rounds)
            del library
            said = f"{name}, {tokens} tokens: bfloat16 over float32"
            Figure(said, own / float32).say()
            Figure(f"{said}, widened", widened / float32).say()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
