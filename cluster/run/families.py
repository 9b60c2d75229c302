"""Which kinds of model transformers has."""

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

CAUSAL = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
IMAGES = "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"


@cache
def families(named: str) -> frozenset[str]:
    """The `model_type` of every model that transformers has under a table's name, read from its source: importing the
    module with the tables brings all that makes models, seconds of a processor in which a run could start."""
    spec = find_spec("transformers")
    assert spec is not None and spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0]) / "models" / "auto" / "modeling_auto.py"
    for statement in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == named:
            assert isinstance(statement.value, ast.Call), ast.dump(statement)  # OrderedDict([("llama", ...), ...])
            return frozenset(kind for kind, _ in ast.literal_eval(statement.value.args[0]))
    raise AssertionError(f"{source}: found no {named}, expected one as in transformers 5.19")
