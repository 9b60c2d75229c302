"""What a recipe's steps ask of the engines."""

from transformers import AutoTokenizer

from cluster.config import Recipe
from rollout.render import Renderer
from rollout.requests import StepRequests
from rollout.tasks import build_task


def step_requests(recipe: Recipe, model: str) -> StepRequests:
    """The recipe's prompts in the chat template of `model`, a Hugging Face folder or hub id."""
    renderer = Renderer(AutoTokenizer.from_pretrained(model), recipe.rollout.context_position, model)
    prompts = build_task(recipe.task).training_prompts()
    return StepRequests(prompts, renderer, recipe.rollout, recipe.evidence, recipe.window, recipe.run.seed)
