"""Which processes of a run make no model, so that transformers need not import torch there: `find_no_torch`."""

import os
import shutil

from cluster.builds import CPU, installed
from cluster.config import DEFAULT_MODEL, Recipe
from cluster.default_model import default_model_path, is_prepared


def rollout_makes_no_model(recipe: Recipe) -> bool:
    """Whether the rollout service makes none: one without storage shows which layers an adapter gets, and the default
    model is made where it is not there yet."""
    asked = DEFAULT_MODEL in (recipe.model.path, recipe.teacher.path)
    return not recipe.learner.lora_rank and (not asked or is_prepared(default_model_path()))


def driver_makes_no_model(recipe: Recipe) -> bool:
    """Whether the driver makes none: for GPUs one without storage shows what their memory has room for."""
    on_cpus = installed("torch").endswith(CPU) and not os.environ.get("RAY_ADDRESS") and not shutil.which("nvidia-smi")
    return on_cpus and rollout_makes_no_model(recipe)
