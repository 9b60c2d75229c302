"""The gap: what a teacher with the context says beside the base without it, before anything is learned.

The student learns to be the teacher, so the gap says how far it can come (arXiv 2605.30070). Pure; sampling happens
elsewhere.
"""

from collections.abc import Sequence

from evidence.rates import RATES, RateRule
from rollout.tasks.base import ProbePrompt, Task, TaskPrompt

MOST = 24  # training problems that are asked: as many questions as the identity probe has

Asked = tuple[ProbePrompt, str]  # a question, and its context


def gap_questions(task: Task) -> list[Asked]:
    """What to ask with the context and without: the probe's questions, where all training prompts share one context;
    otherwise the first training prompts with an answer, each with its own, and of one question the first. None where
    there are no such."""
    prompts = [prompt for prompt in task.training_prompts() if not prompt.is_ordinary]
    contexts = {prompt.context for prompt in prompts}
    if len(contexts) == 1:
        (context,) = contexts
        return [(probe, context) for probe in task.probe_prompts()]
    rule = RATES[task.rates[0]]
    answered: dict[ProbePrompt, str] = {}  # rates are over as many answers to each question
    for prompt in prompts:
        if prompt.answer is not None and len(answered) < MOST:
            answered.setdefault(as_probe(prompt, rule), prompt.context)
    return list(answered.items())


def as_probe(prompt: TaskPrompt, rule: RateRule) -> ProbePrompt:
    """A training prompt as a question that this rate counts."""
    tags = (rule.tag,) if rule.tag else ()
    return ProbePrompt(rule.probe, prompt.question, prompt.answer, prompt.before, tags, prompt.judge)


def asks_the_probe(questions: Sequence[Asked], task: Task) -> bool:
    """Whether these are the probe's own questions, so that the base's answers are those of the probe at step 0."""
    return [probe for probe, _ in questions] == list(task.probe_prompts())
