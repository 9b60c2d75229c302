"""Every shipped recipe's learner, and every objective, takes two real steps on a tiny model."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.config import load_recipe
from evidence.records import TrainRow
from learner.config import LearnerConfig
from learner.objectives import OBJECTIVES
from tests import fakes
from tests.engine.test_zero import Results, launch
from tests.zero_process import Job, Scenario

VOCAB = 64
RECIPES = {path.stem: load_recipe(path) for path in (Path(__file__).parents[2] / "cluster" / "recipes").glob("*.toml")}
# Recipes that differ in nothing that the learner sees are one learner.
LEARNERS = {
    **{f"objective {name}": LearnerConfig(objective=name) for name in OBJECTIVES},
    **{str(recipe.learner): recipe.learner for recipe in RECIPES.values()},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("recipes")
    model = str(fakes.tiny_model(folder / "model", vocab=VOCAB))
    todo = {name: scenario(config, model) for name, config in LEARNERS.items()}
    return Results(folder, launch(Job(model, todo), 1, folder / "job"))


def scenario(config: LearnerConfig, model: str) -> Scenario:
    settings = {key: value for key, value in asdict(config).items() if key != "num_ranks"}
    return Scenario(rows(), settings, "two_steps", frozen={"teacher": model} if config.compares_distributions else {})


def rows() -> list[TrainRow]:
    """Two groups of four with rewards, away from step 0, where a teacher equal to the student would teach nothing."""
    rng, made = np.random.default_rng(0), []
    for index in range(8):
        prompt, response = (rng.integers(3, VOCAB, n).astype(np.int32) for n in (5, 7))
        context, plain = ((-4 + rng.normal(0, 1, 7)).astype(np.float32) for _ in range(2))
        weight = (context > plain).astype(np.float32)
        row = TrainRow(
            f"r{index}", index % 2 == 0, prompt, np.concatenate([prompt[:2], prompt]), response, context, plain,
            context - plain, weight,
        )  # fmt: skip
        made.append(replace(row, advantage=1.0 if index % 2 else -1.0))
    return made


def check(result: dict[str, Any]) -> None:
    assert [np.isfinite(report.loss) for report in result["reports"]] == [True, True]
    assert all(report.grad_norm > 0 and report.row_tokens > 0 for report in result["reports"])
    before, first, second = result["weights"]
    moved = [torch.cat([(b[k] - a[k]).abs().flatten() for k in a]).max() for a, b in ((before, first), (first, second))]
    assert all(0 < step < 1e-2 for step in moved)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_takes_two_steps(results: Results, name: str) -> None:
    check(results.of(f"objective {name}"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_takes_two_steps(results: Results, name: str) -> None:
    check(results.of(str(RECIPES[name].learner)))
