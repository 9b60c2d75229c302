"""The probe as a task of inspect-ai: `inspect eval cluster/inspect_task.py -T task=identity --model ...`.

The only home of inspect_ai, which is an extra: nothing here imports this file. Each probe question is a sample, each of
its answers an epoch, and the metrics are `rollout.probe.summarise_so_far` over the answers: inspect computes them about
every second while answers come, and at the end over what has not failed.
"""

import json
from functools import cache
from logging import getLogger

from inspect_ai import Epochs, task
from inspect_ai import Task as InspectTask
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
)
from inspect_ai.scorer import (
    Metric,
    SampleScore,
    Score,
    Scorer,
    ScoreReducer,
    Target,
    mean_score,
    metric,
    score_reducer,
)
from inspect_ai.scorer import scorer as inspect_scorer
from inspect_ai.solver import Generate, Solver, TaskState, generate, solver

from cluster.commands.probe_server import checked_answer, sent_variables
from cluster.config import Recipe, load_recipe
from cluster.run.record import probe_record, shown_probe
from cluster.typed import build
from rollout.placement import placed
from rollout.probe import summarise_so_far
from rollout.tasks import build_task
from rollout.tasks.base import Turns

WITHOUT_TOP_K = ("openai", "openai-api")  # providers whose protocol has no such setting


@task
def edge_opd_probe(task: str = "identity", recipe: str = "") -> InspectTask:
    """The probe of a task of this project, or of the task and probe settings of a recipe (an absolute path)."""
    loaded = _recipe(task, recipe)
    config, prompts = loaded.probe, build_task(loaded.task).probe_prompts()
    if variables := sent_variables(loaded.template, _warn):
        given = json.dumps({"chat_template_kwargs": variables})
        _warn(f"template: found variables, which inspect does not send; expected --extra-body '{given}'")
    chats = [placed(prompt.turns, prompt.context, loaded.rollout.context_position) for prompt in prompts]
    samples = [Sample(id=str(place), input=_chat(turns)) for place, turns in enumerate(chats)]
    return InspectTask(
        dataset=MemoryDataset(samples, name=f"{loaded.task.name} probe"),
        solver=[say_where_top_k_ends(config.top_k), generate()],
        scorer=flags(task, recipe),
        metrics=[rates(task, recipe)],
        epochs=Epochs(config.samples, all_answers()),
        config=GenerateConfig(
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k or None,
            max_tokens=config.max_tokens,
        ),
    )


def _chat(turns: Turns) -> list[ChatMessage]:
    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    return [kinds[role](content=text) for role, text in turns]


def _recipe(task: str, recipe: str) -> Recipe:
    return load_recipe(recipe, []) if recipe else build(Recipe, {"task": {"name": task}}, "-T task")


@solver
def say_where_top_k_ends(top_k: int) -> Solver:
    """Warns, once, where inspect leaves `top_k` out: it sends its own setting to no OpenAI-compatible server."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        if top_k and state.model.api in WITHOUT_TOP_K:
            _warn(
                f"probe.top_k: found {top_k}, which inspect does not send to {state.model.api}; expected "
                f"--extra-body '{{\"top_k\": {top_k}}}' (an inspect that has it, and a server that takes it) or "
                "probe.top_k = 0 in a recipe"
            )
        return state

    return solve


@cache
def _warn(text: str) -> None:
    getLogger(__name__).warning(text)


# A scorer and a metric take names, not objects, so that they are written to a log and made again from it.
@inspect_scorer(metrics=[])
def flags(task: str, recipe: str) -> Scorer:
    """The task's flags of each answer."""
    probed = build_task(_recipe(task, recipe).task)
    prompts = probed.probe_prompts()

    async def score(state: TaskState, target: Target) -> Score:
        output = state.output
        elsewhere = _beside_text(output.message) if output.choices else []
        answer = checked_answer(output.completion, f"stop_reason {output.stop_reason}", elsewhere)
        if answer.lost:
            raise RuntimeError(
                f"question {state.sample_id}: found an empty answer ({answer.lost}), expected text; a larger "
                "probe.max_tokens leaves room for reasoning, and most servers can turn it off"
            )
        shown = probed.flags(prompts[int(state.sample_id)], answer.text)
        return Score(value=dict(shown), answer=answer.text, metadata={"answers": [answer.text]})

    return score


def _beside_text(message: ChatMessageAssistant) -> list[str]:
    """What an answer has beside its text, as inspect names it; newer versions have reasoning within the content."""
    parts = [] if isinstance(message.content, str) else message.content
    own = [key for key in ("reasoning", "tool_calls") if getattr(message, key, None)]
    return sorted({*own, *(part.type for part in parts if part.type != "text")})


@score_reducer
def all_answers() -> ScoreReducer:
    """The mean of each flag over a question's epochs, with all answers kept for `rates`."""
    mean = mean_score()

    def reduce(scores: list[Score]) -> Score:
        answers = [text for score in scores for text in (score.metadata or {})["answers"]]
        return mean(scores).model_copy(update={"metadata": {"answers": answers}})

    return reduce


@metric
def rates(task: str, recipe: str) -> Metric:
    """The rates and counts of `probes.jsonl`."""
    probed = build_task(_recipe(task, recipe).task)
    prompts = probed.probe_prompts()

    def compute(scores: list[SampleScore]) -> dict[str, str | int | float | bool | None]:
        answers = [
            (prompts[int(s.sample_id or 0)], text) for s in scores for text in (s.score.metadata or {})["answers"]
        ]
        record = probe_record(summarise_so_far(answers, probed), 0, probed.name)
        figures = shown_probe(record) | {"questions": record.questions, "samples": record.samples}
        return {key: value for key, value in figures.items() if isinstance(value, (int, float))}

    return compute
