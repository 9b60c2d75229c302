"""Which wrong contexts a prompt's responses are also scored under, for contrastive evidence."""

from collections.abc import Sequence

import numpy as np

from evidence.rule import EvidenceConfig
from evidence.schema import reads
from rollout.tasks.base import TaskPrompt


def num_wrong_contexts(config: EvidenceConfig) -> int:
    """How many each prompt needs: none where another kind of evidence is configured."""
    return config.num_wrong_contexts if reads(config.kind, "wrong_context_logprobs") else 0


def pick_wrong_contexts(prompt: TaskPrompt, count: int, rng: np.random.Generator) -> list[str]:
    """`count` different wrong contexts of `prompt`, drawn by `rng` without replacement. A prompt without a context has
    empty ones: no evidence.

    Raises:
        ValueError: the task offers fewer; the correct context and its wordings do not count.
    """
    if not prompt.context.strip():
        return [""] * count
    offered = {context.strip(): context for context in prompt.wrong_contexts}
    right = {context.strip() for context in prompt.contexts}
    wrong = [context for text, context in offered.items() if text not in right]
    if len(wrong) < count:
        only = "a set that holds only the correct context" if offered and not wrong else f"{len(wrong)} of them"
        raise ValueError(
            f"evidence.num_wrong_contexts: prompt {prompt.prompt_id}: found {only}, expected at least {count} wrong "
            "contexts from the task"
        )
    return [wrong[index] for index in rng.permutation(len(wrong))[:count]]


def check_wrong_contexts(prompts: Sequence[TaskPrompt], config: EvidenceConfig) -> None:
    """ValueError, as `pick_wrong_contexts`, for the first prompt whose wrong contexts do not suffice for `config`."""
    count = num_wrong_contexts(config)
    for prompt in prompts if count else ():
        pick_wrong_contexts(prompt, count, np.random.default_rng(0))
