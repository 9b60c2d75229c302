"""What is looked at before anything starts: a run that cannot end well ends here, with one line.

Each check raises ValueError, which names the key or the file, what was found and what was expected.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from shlex import quote

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from cluster.builds import installed, lacks_torchvision
from cluster.config import Recipe
from cluster.models import TEXT_PART, is_hub_id, resolve_model
from cluster.proxies import check_proxies
from cluster.requests import step_requests, window_keys
from cluster.run.families import CAUSAL, IMAGES, families
from cluster.run.gap import check_gap, teaches_itself
from cluster.run.lengths import lengths_near
from cluster.run.notes import Notes, prompt_notes
from cluster.sizing.shape import BYTES
from evidence.files import check_writable
from evidence.require import require
from learner.folder import check_model_folder
from rollout.config import EngineConfig
from rollout.contrast import check_wrong_contexts
from rollout.gap import gap_questions
from rollout.positions import cache_bytes, most_positions, ropes
from rollout.render import Renderer, require_same_token_ids
from rollout.requests import StepRequests
from rollout.tasks.base import Task, TaskPrompt
from rollout.tasks.notes import row_notes, special_notes


@dataclass(frozen=True)
class RunInputs:
    """What a run works on beside its recipe, read once: the student's resolved model, the task, and its chat template
    and tokenizer."""

    model: str
    task: Task
    renderer: Renderer


def check_recipe(recipe: Recipe, task: Task) -> tuple[RunInputs, Notes]:
    """Everything that can be known without an engine: `check_inputs`, and a store that can be written."""
    inputs, notes = check_inputs(recipe, task)
    check_storage(recipe)
    return inputs, notes


def check_inputs(recipe: Recipe, task: Task) -> tuple[RunInputs, Notes]:
    """What is asked of engines, the cheapest first.

    Returns what was read for it, and what is worth knowing of the prompts.
    """
    check_task(recipe, task)
    model = check_models(recipe)
    requests = step_requests(recipe, model, task)
    refused = check_prompts(recipe, requests, task)
    of_rows = [
        *row_notes(recipe.task, task),
        *special_notes(recipe.task, task, requests.renderer.special_tokens_in),
    ]
    notes = prompt_notes(recipe, requests).among(of_rows, [refused] if refused else [])
    if recipe.probe.gap and teaches_itself(recipe):
        check_gap(task, requests.renderer)
    return RunInputs(model, task, requests.renderer), notes


def check_task(recipe: Recipe, task: Task) -> None:
    """Too few wrong contexts, a prompt without an answer to verify, a scale of the evidence that means nothing,
    weights that cannot be chosen, or a share of a rate that nobody measures."""
    prompts = task.training_prompts()
    check_wrong_contexts(prompts, recipe.evidence)
    check_answers(prompts, recipe)
    check_scale(recipe)
    check_export(recipe)
    share = recipe.probe.require_of_teacher
    expected = "0.0 where the teacher is not asked: with teacher.path or teacher.url, or no question that has a context"
    asked = teaches_itself(recipe) and bool(gap_questions(task))
    require(not share or asked, "probe.require_of_teacher", share, expected)


def check_answers(prompts: Sequence[TaskPrompt], recipe: Recipe) -> None:
    """The first prompt without an answer, where rewards are needed."""
    keys = {
        "learner.objective": recipe.learner.needs_advantage and recipe.learner.objective,
        "evidence.soft": recipe.evidence.soft == "rlsd_verifier" and recipe.evidence.soft,
    }
    asked = [f"{key} = {value!r}" for key, value in keys.items() if value]
    unanswered = next((prompt for prompt in prompts if prompt.answer is None), None)
    if asked and unanswered is not None:
        file = recipe.task.prompts_file
        where = f"task.prompts_file: {file}" if file else f"task.name: {recipe.task.name}"
        raise ValueError(
            f"{where}: prompt {unanswered.prompt_id}: found no answer to verify, expected one for every prompt with "
            f"{asked[0]}"
        )


def check_scale(recipe: Recipe) -> None:
    """A scale of evidence that is the advantage itself: AdamW takes the same steps, whatever it is."""
    scale = recipe.learner.evidence_scale
    same = {
        "evidence.kind": recipe.evidence.kind == "teacher_student" and recipe.evidence.kind,
        "teacher.kind": recipe.teacher.kind == "live" and recipe.teacher.kind,
    }
    for key, value in same.items():
        if value and scale != 1:
            raise ValueError(
                f"learner.evidence_scale: found {scale}, expected 1.0 with {key} = {value!r}, whose evidence is the "
                "advantage itself: a scale would only be another learning rate"
            )


def check_export(recipe: Recipe) -> None:
    """A mean of more weights than there are, or a best probe of one."""
    run, export = recipe.run, recipe.export
    if export.choose == "average":
        expected = f"at most run.steps = {run.steps}: there is one set of weights a step"
        require(export.average <= run.steps, "export.average", export.average, expected)
    if export.choose == "best":
        expected = f"another choice with run.probe_every = {run.probe_every} and run.steps = {run.steps}: no probe on"
        probed = 0 < run.probe_every < run.steps
        require(probed, "export.choose", export.choose, f"{expected} the way, so nothing to choose from")


def check_models(recipe: Recipe) -> str:
    """The models' folders, the teacher's tokenizer or server, and heads that an engine's workers can share."""
    model = _resolve(recipe.model.path, "model.path")
    teacher = _resolve(recipe.teacher.path, "teacher.path") if recipe.teacher.path else model
    require_same_token_ids(model, teacher)
    check_parallel("student", recipe.student, model)
    check_parallel("teacher", recipe.teacher, teacher)
    check_positions("student", recipe.student, model)
    check_positions("teacher", recipe.teacher, teacher)
    check_long_rope("student", recipe.student, model)
    check_long_rope("teacher", recipe.teacher, teacher)
    check_adapter(recipe, model)
    if recipe.teacher.url:
        check_proxies()
    return model


def _resolve(path: str, key: str) -> str:
    model = resolve_model(path, key)
    check_model_folder(model, key, weights=not is_hub_id(path))  # of the hub's every engine and rank looks at its own
    check_family(model, key)
    return model


def check_family(model: str, key: str) -> None:
    """A model that is no causal language model, such as most that wrap one for images, or one that an engine cannot
    load here; learner and engine would say so only when they have started."""
    config = read_config(model, key)
    parts = [name for name in ("vision_config", "audio_config") if getattr(config, name, None) is not None]
    wraps = f" ({' and '.join(parts)} beside a text model)" if parts else ""
    found = f"{key}: {model}: found {config.model_type!r}{wraps}"
    if config.model_type not in families(CAUSAL):
        raise ValueError(f"{found}, expected a causal language model{_text_part(config, model) if parts else ''}")
    lacking = lacks_torchvision(installed("torch"), installed("torchvision"))
    if "vision_config" in parts and lacking:  # vLLM 0.32.0 imports it for every such model
        raise ValueError(f"{found}, expected {lacking}{_text_part(config, model)}")


def _text_part(config: PreTrainedConfig, model: str) -> str:
    """How to come to the text model of one that takes more, where it is one that can be trained."""
    text = config.get_text_config().model_type
    whole = config.model_type in families(IMAGES)
    if not whole or text == config.model_type or text not in families(CAUSAL):
        return ""
    return f"; `{TEXT_PART} {quote(model)}` writes its text model"


def read_config(model: str, key: str) -> PreTrainedConfig:
    """Of a model of a known kind; ValueError for another, and for one that would run code of its own."""
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError, TypeError, LookupError, ArithmeticError, StrictDataclassError) as error:
        said = " ".join(str(error).split("\n\n")[0].split())
        raise ValueError(
            f"{key}: {model}: found a config.json that transformers {transformers.__version__} does not read "
            f"({said or type(error).__name__}), expected one of a causal language model that it knows"
        ) from error


def check_adapter(recipe: Recipe, model: str) -> None:
    """A layer of learner.lora_targets that the model lacks."""
    if recipe.learner.lora_rank:
        from learner.adapter import adapted_names  # takes seconds, for nothing where there is no adapter

        adapted_names(model, recipe.learner)


def check_positions(pool: str, config: EngineConfig, model: str) -> None:
    """A window beyond the model's positions, which an engine of `pool` would refuse when it starts."""
    most = most_positions(AutoConfig.from_pretrained(model).get_text_config())
    if most is not None:
        require(config.window <= most, f"{pool}.window", config.window, f"at most {most}, the positions of {model}")


def check_parallel(pool: str, config: EngineConfig, model: str) -> None:
    """An engine of `pool` that cannot share the model's attention heads out among its workers."""
    workers = config.tensor_parallel_size
    if workers == 1:  # nothing to share out, and a model may have no heads
        return
    heads = AutoConfig.from_pretrained(model).get_text_config().num_attention_heads
    if heads % workers:
        raise ValueError(
            f"{pool}.tensor_parallel_size: found {workers}, expected a divisor of the {heads} attention heads of "
            f"{model}"
        )


def check_caches(recipe: Recipe, model: str) -> None:
    """On a CPU: a KV cache that has no room for one sequence of the window, which an engine would refuse."""
    teacher = resolve_model(recipe.teacher.path, "teacher.path") if recipe.teacher.path else model
    pools = {"student": (recipe.student, model)}
    if recipe.teacher_engines and not recipe.teacher.url:
        pools["teacher"] = (recipe.teacher, teacher)
    for pool, (config, path) in pools.items():
        text = AutoConfig.from_pretrained(path).get_text_config()
        needed = cache_bytes(text, config.window, BYTES[config.dtype_on("cpu")]) / 2**30
        expected = f"at least {needed:.3g}, for the {config.window} tokens of {pool}.window"
        require(config.cpu_cache_gib >= needed, f"{pool}.kv_cache_gib", config.cpu_cache_gib, expected)


def check_long_rope(pool: str, config: EngineConfig, model: str) -> None:
    """A window in which an engine of `pool` turns positions otherwise than the learner: longrope has factors for short
    and for long texts, and vLLM goes by the window, transformers by the longest row of a batch."""
    text = AutoConfig.from_pretrained(model).get_text_config()
    lengths = [part["original_max_position_embeddings"] for part in ropes(text) if part["rope_type"] == "longrope"]
    if lengths and config.window > min(lengths):
        raise ValueError(
            f"{pool}.window: found {config.window}, expected at most {min(lengths)}, the original positions of {model}"
            ": beyond them vLLM and transformers take its longrope factors by different rules"
        )


def check_prompts(recipe: Recipe, requests: StepRequests, task: Task) -> str:
    """A step, of all of the run's, with too many prompts that do not fit the window, or a probe's that does not.

    Returns a line on the training prompts that do not fit, where rollout.max_refused_fraction allows them.
    """
    longest = recipe.window - recipe.rollout.max_response_tokens
    refused = requests.check(recipe.run.steps, lambda pairs: lengths_near(requests.renderer, pairs, longest))
    check_probe(recipe, requests.renderer, task)
    if not refused:
        return ""
    window = f"{window_keys(recipe)} = {recipe.window}"
    return (
        f"{len(refused)} of {len(requests.prompts)} training prompts do not fit {window} with "
        f"rollout.max_response_tokens = {recipe.rollout.max_response_tokens} and are refused when they are drawn, as "
        f"rollout.max_refused_fraction = {recipe.rollout.max_refused_fraction} allows ({next(iter(refused.values()))})"
    )


def check_probe(recipe: Recipe, renderer: Renderer, task: Task) -> None:
    """A question of the probe that does not arrive as it was written, or leaves no room for an answer."""
    prompts, window, file = task.probe_prompts(), recipe.student.window, recipe.task.probe_file
    probe = f"the probe, task.probe_file = {file}" if file else "the probe"
    for place, prompt in enumerate(prompts, start=1):
        try:
            renderer.require_arrival(prompt.turns, prompt.context)
        except ValueError as error:
            raise ValueError(f"question {place} of {probe} ({prompt.question[:60]!r}): {error}") from error
    lengths = lengths_near(renderer, {(prompt.turns, prompt.context) for prompt in prompts}, window - 1)
    for place, prompt in enumerate(prompts, start=1):
        length, question = lengths[prompt.turns, prompt.context], prompt.question
        if length >= window:
            raise ValueError(
                f"student.window: found {window}, expected more than the {length} tokens of question "
                f"{place} of {probe} ({question[:60]!r})"
            )


def check_storage(recipe: Recipe) -> None:
    """Shards can be written; before the run's folder belongs to this recipe."""
    if recipe.run.storage:
        try:
            check_writable(recipe.run.storage)
        except ValueError as error:
            raise ValueError(f"run.storage: {error}") from error
