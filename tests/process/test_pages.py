"""The pages that are made from the code are made without what runs a recipe."""

import subprocess
import sys


def test_the_pages_start_nothing() -> None:
    """Made on a machine without the libraries that run a recipe."""
    heavy = ("torch", "ray", "vllm", "deepspeed", "transformers")
    code = f"import sys, tests.pages; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
