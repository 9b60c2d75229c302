"""The probe as a task of inspect-ai: `inspect eval cluster/inspect_task.py -T task=identity --model ...`.

The only home of inspect_ai, which is an extra: nothing here imports this file. Each probe question is a sample, each of
its answers an epoch, and the metrics are `rollout.probe.summarise` over all answers.
"""

from inspect_ai import Epochs, task
from inspect_ai import Task as InspectTask
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig
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
from inspect_ai.solver import TaskState, generate

from cluster.config import Recipe, build, load_recipe
from cluster.run.record import probe_record, shown_probe
from rollout.probe import summarise
from rollout.tasks import build_task


@task
def edge_opd_probe(task: str = "identity", recipe: str = "") -> InspectTask:
    """The probe of a task of this project, or of the task and probe settings of a recipe (an absolute path)."""
    loaded = _recipe(task, recipe)
    config, prompts = loaded.probe, build_task(loaded.task).probe_prompts()
    samples = [Sample(id=str(i), input=prompt.question) for i, prompt in enumerate(prompts)]
    return InspectTask(
        dataset=MemoryDataset(samples, name=f"{loaded.task.name} probe"),
        solver=generate(),
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


def _recipe(task: str, recipe: str) -> Recipe:
    return load_recipe(recipe, []) if recipe else build(Recipe, {"task": {"name": task}}, "-T task")


# A scorer and a metric take names, not objects, so that they are written to a log and made again from it.
@inspect_scorer(metrics=[])
def flags(task: str, recipe: str) -> Scorer:
    """The task's flags of each answer."""
    probed = build_task(_recipe(task, recipe).task)
    prompts = probed.probe_prompts()

    async def score(state: TaskState, target: Target) -> Score:
        text = state.output.completion
        shown = probed.flags(prompts[int(state.sample_id)], text)
        return Score(value=dict(shown), answer=text, metadata={"answers": [text]})

    return score


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
        record = probe_record(summarise(answers, probed), 0, probed.name)
        figures = shown_probe(record) | {"questions": record.questions, "samples": record.samples}
        return {key: value for key, value in figures.items() if isinstance(value, (int, float))}

    return compute
