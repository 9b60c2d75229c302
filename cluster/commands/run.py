"""`edge-opd run`: what comes before the run's own modules, which take longest to import."""

from collections.abc import Sequence

from cluster.config import load_recipe
from cluster.fleet.processes import collect_seldom
from cluster.torchless import driver_makes_no_model
from rollout.transformers_quirks import find_no_torch


def run(path: str, settings: Sequence[str], run_dir: str | None, resume: bool | None) -> int:
    """See `cluster.run.start.run_recipe`. path, settings: as `load_recipe` takes them."""
    collect_seldom()
    recipe = load_recipe(path, settings)
    if driver_makes_no_model(recipe):
        find_no_torch()
    from cluster.run.start import run_recipe

    return run_recipe(recipe, run_dir, resume)
