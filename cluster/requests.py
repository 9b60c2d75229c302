"""What a recipe asks of the engines."""

from cluster.config import Recipe
from rollout.render import Renderer
from rollout.requests import StepRequests
from rollout.tasks import build_task
from rollout.tasks.base import Task
from rollout.tokenizer import generation_ends, load_tokenizer


def renderer_of(recipe: Recipe, model: str) -> Renderer:
    """The chat template of `model`, a Hugging Face folder or hub id, with r where the recipe has it."""
    return Renderer(load_tokenizer(model), recipe.rollout.context_position, model, ends=generation_ends(model))


def step_requests(recipe: Recipe, model: str, task: Task | None = None) -> StepRequests:
    """The recipe's prompts, those of `task` where it is built already, as `renderer_of` renders them."""
    prompts = (task or build_task(recipe.task)).training_prompts()
    renderer = renderer_of(recipe, model)
    return StepRequests(prompts, renderer, recipe.rollout, recipe.evidence, recipe.window, recipe.run.seed)
