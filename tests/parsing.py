"""Python files as trees, for the tests that read the code."""

import ast
import gc
from functools import cache
from pathlib import Path


@cache
def parsed(path: Path) -> ast.Module:
    """The file's tree. CPython 3.11 may not parse while it makes a tree ("AST constructor recursion depth mismatch"),
    which happens where garbage is collected meanwhile and a finalizer raises: pytest then formats a traceback, and for
    that the line is parsed."""
    gc.disable()
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    finally:
        gc.enable()
