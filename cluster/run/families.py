"""Which kinds of model are causal language models."""

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

NAMED = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"


@cache
def causal_families() -> frozenset[str]:
    """The `model_type` of every causal language model that transformers has, read from its source: importing the module
    that names them brings all that makes models, seconds of a processor in which a run could start."""
    spec = find_spec("transformers")
    assert spec is not None and spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0]) / "models" / "auto" / "modeling_auto.py"
    for statement in ast.parse(source.read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == NAMED:
            assert isinstance(statement.value, ast.Call), ast.dump(statement)  # OrderedDict([("llama", ...), ...])
            return frozenset(kind for kind, _ in ast.literal_eval(statement.value.args[0]))
    raise AssertionError(f"{source}: found no {NAMED}, expected one as in transformers 5.19")
