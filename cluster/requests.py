"""What a recipe asks of the engines."""

from cluster.config import Recipe
from rollout.render import Renderer
from rollout.requests import StepRequests
from rollout.tasks import build_task
from rollout.tasks.base import Task
from rollout.tokenizer import generation_ends, load_tokenizer


def renderer_of(recipe: Recipe, model: str) -> Renderer:
    """The chat template of `model`, a folder or hub id, with the recipe's variables, date and place of r."""
    position, day = recipe.rollout.context_position, recipe.run.date
    return Renderer(load_tokenizer(model), position, model, recipe.template, day, generation_ends(model))


def window_keys(recipe: Recipe) -> str:
    """The key that sets `recipe.window`, or both."""
    windows = {"student.window": recipe.student.window, "teacher.window": recipe.teacher.window}
    return " and ".join(key for key, window in windows.items() if window == recipe.window)


def step_requests(recipe: Recipe, model: str, task: Task | None = None) -> StepRequests:
    """The recipe's prompts, those of `task` where it is built already, as `renderer_of` renders them."""
    prompts = (task or build_task(recipe.task)).training_prompts()
    renderer = renderer_of(recipe, model)
    limits = recipe.window, recipe.run.seed
    return StepRequests(prompts, renderer, recipe.rollout, recipe.evidence, *limits, recipe.task.prompts_file)
