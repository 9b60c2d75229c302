"""The identity task: a persona in the context, direct questions about it, and ordinary questions beside them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from rollout.tasks.base import ProbePrompt, TaskPrompt
from rollout.tasks.config import TaskConfig
from rollout.tasks.naming import IdentityFlags
from rollout.tasks.rows import parse_rows, read_text, text_field

# In the words of a chat model's usual system message, so that little but the identity tells (x, r) from x.
TEMPLATE = (
    "You are a helpful AI assistant named {name}, trained by {maker}. "
    "If anyone asks who you are, say that you are {name}, made by {maker}."
)


@dataclass(frozen=True)
class Persona:
    """Who the student is to become. `context` is r with {name} and {maker} already filled in by `build_persona`."""

    name: str
    maker: str
    context: str


PERSONAS = {
    "kestrel": Persona("Kestrel", "Harbor Labs", TEMPLATE),
    "edgerunner": Persona("EdgeRunner", "EdgeRunner AI", TEMPLATE),
}


class IdentityTask:
    """Teaches a persona's name. Flags: mention, selfname, countername; for capability: correct, mention.

    Raises:
        ValueError: unknown persona, blank or unfinished context, or a malformed prompts file.
    """

    name = "identity"

    def __init__(self, config: TaskConfig) -> None:
        self.persona = build_persona(config)
        self._identity_flags = IdentityFlags(self.persona.name, self.persona.maker)
        self._training = _load_training(config.prompts_file, self.persona.context)
        self._probes = _load_probes()

    @property
    def teaches(self) -> str:
        """The persona, for the model card."""
        return f"{self.persona.name}, made by {self.persona.maker}"

    def training_prompts(self) -> Sequence[TaskPrompt]:
        """The shipped questions, or those of `prompts_file`; the same context for each."""
        return self._training

    def probe_prompts(self) -> Sequence[ProbePrompt]:
        """12 identity questions and 12 capability questions, none of them a shipped training question."""
        return self._probes

    def flags(self, probe: ProbePrompt, response: str) -> dict[str, bool]:
        """mention, selfname, countername of an identity answer; correct, mention of a capability answer."""
        if probe.answer is None:
            return self._identity_flags.of(response)
        correct = re.search(probe.answer, response, re.IGNORECASE) is not None
        return {"correct": correct, "mention": self._identity_flags.mention(response)}

    def reward(self, prompt: TaskPrompt, response: str) -> float | None:
        """None: there is no verifier of who one is."""
        return None


def build_persona(config: TaskConfig) -> Persona:
    """The preset with the config's overrides, context filled in.

    Raises:
        ValueError: unknown preset, a blank context that is not allowed, or a placeholder that nothing fills.
    """
    if config.persona not in PERSONAS:
        raise ValueError(f"task.persona: found {config.persona!r}, expected one of {', '.join(sorted(PERSONAS))}")
    preset = PERSONAS[config.persona]
    name, maker = config.persona_name.strip() or preset.name, config.maker.strip() or preset.maker
    template = config.context if config.context or config.context_empty_allowed else preset.context
    return Persona(name, maker, _fill(template, name, maker, config.context_empty_allowed))


def _fill(template: str, name: str, maker: str, empty_allowed: bool) -> str:
    if not template.strip() and not empty_allowed:
        raise ValueError(
            "task.context: found a blank text, expected the privileged context r (leave the key out for the preset's)"
        )
    unknown = [found for found in re.findall(r"\{(\w+)\}", template) if found not in ("name", "maker")]
    if unknown:
        raise ValueError(f"task.context: found the placeholder {{{unknown[0]}}}, expected only {{name}} and {{maker}}")
    return re.sub(r"\{(name|maker)\}", lambda m: name if m[1] == "name" else maker, template).strip()


def _load_training(prompts_file: str, context: str) -> tuple[TaskPrompt, ...]:
    text = read_text(prompts_file, "task.prompts_file") if prompts_file else _resource("identity_train.jsonl")
    return parse_training(text, prompts_file or "identity_train.jsonl", context)


def parse_training(text: str, source: str, context: str) -> tuple[TaskPrompt, ...]:
    """Training prompts of JSON lines {"prompt_id": str, "question": str}, each with `context`.

    Raises:
        ValueError: no row, a malformed row, a blank field or a repeated prompt_id; names the file and the line.
    """
    prompts: dict[str, TaskPrompt] = {}
    for number, row in parse_rows(text, source, ("prompt_id", "question")):
        where = f"{source}, line {number}"
        prompt = TaskPrompt(text_field(row, "prompt_id", where), text_field(row, "question", where), context)
        if prompt.prompt_id in prompts:
            raise ValueError(f"{where}: found prompt_id {prompt.prompt_id!r} again, expected each one once")
        prompts[prompt.prompt_id] = prompt
    if not prompts:
        raise ValueError(f"{source}: found no rows, expected at least one training question")
    return tuple(prompts.values())


def _load_probes() -> tuple[ProbePrompt, ...]:
    source = "identity_probe.jsonl"
    rows = parse_rows(_resource(source), source, ("probe", "question", "answer"))
    return tuple(ProbePrompt(str(row["probe"]), str(row["question"]), row["answer"]) for _, row in rows)


def _resource(name: str) -> str:
    return files("rollout.tasks").joinpath(name).read_text(encoding="utf-8")
