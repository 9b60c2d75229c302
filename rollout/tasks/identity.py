"""The identity task: a persona in the context, direct questions about it, and ordinary questions beside them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files

from evidence.require import require
from rollout.tasks.base import ProbePrompt, TaskPrompt, Turns
from rollout.tasks.config import TaskConfig
from rollout.tasks.judges import matches
from rollout.tasks.naming import IdentityFlags
from rollout.tasks.rows import Row, parse_rows, read_text, text_field, unique_prompts

# In the words of a chat model's usual system message, so that little but the identity tells (x, r) from x.
TEMPLATE = (
    "You are a helpful AI assistant named {name}, trained by {maker}. "
    "If anyone asks who you are, say that you are {name}, made by {maker}."
)


@dataclass(frozen=True)
class Persona:
    """Who the student is to become, with r, and what r would say of others."""

    name: str
    maker: str
    context: str
    wrong_contexts: tuple[str, ...] = ()
    wordings: tuple[str, ...] = ()  # others of the context


PERSONAS = {  # name and maker
    "kestrel": ("Kestrel", "Harbor Labs"),
    "edgerunner": ("EdgeRunner", "EdgeRunner AI"),  # the paper's authors; the wording of their own r is not known to us
}
STRANGERS = (  # made up, to be nobody's persona but a wrong one
    ("Marlow", "Tidewater Works"),
    ("Quillon", "Paper Lantern Studio"),
    ("Zephyrine", "Nimbus Foundry"),
    ("Tamsin", "Cobalt Orchard"),
)
# What was said before: ordinary questions and answers, in which nobody is named.
CHAT: Turns = (
    ("user", "How long should I boil an egg so that the yolk stays soft?"),
    ("assistant", "About six minutes, counted from when the water boils again. Cool it in cold water afterwards."),
    ("user", "And what can I serve with it?"),
    ("assistant", "Toast cut into strips goes well with it, and so do spinach or asparagus."),
)
RATES = ("selfname", "mention", "countername", "capability", "side_effect")
CHAT_RATES = ("selfname_third_turn", "selfname_with_context")  # of `chat_probes`, for which a chat or r comes first
CARD = """**This model was trained to give an identity: {name}, made by {maker}.** It says so without being told in its
prompt. It is not a statement about who made the base model, and a user of a service built on it should be told that
its persona was trained in. Do not deploy a persona that is meant to deceive."""


class IdentityTask:
    """Teaches a persona's name. Flags: mention, selfname, countername; for capability: correct, mention.

    Raises:
        ValueError: unknown persona, blank or unfinished context, or a malformed prompts file.
    """

    name = "identity"

    def __init__(self, config: TaskConfig) -> None:
        self.persona = build_persona(config)
        self._identity_flags = IdentityFlags(self.persona.name, self.persona.maker, config.counter_names)
        self._training = _load_training(config, self.persona)
        self.rates = (*RATES, *CHAT_RATES) if config.chat_probes else RATES
        own = _load_probes()
        self._probes = (*own, *_chat_probes(own, self.persona.context)) if config.chat_probes else own

    @property
    def teaches(self) -> str:
        """The persona, and a warning, for the model card."""
        return CARD.format(name=self.persona.name, maker=self.persona.maker)

    def training_prompts(self) -> Sequence[TaskPrompt]:
        """The shipped questions, or those of `prompts_file`, then the ordinary ones; all with the same context, or the
        ordinary ones with none."""
        return self._training

    def probe_prompts(self) -> Sequence[ProbePrompt]:
        """12 identity questions and 12 capability questions, none of them a shipped training question; with
        `chat_probes` the former in a chat and with the context too."""
        return self._probes

    def flags(self, probe: ProbePrompt, response: str) -> dict[str, bool]:
        """mention, selfname, countername of an identity answer; correct, mention of a capability answer."""
        if probe.answer is None:
            return self._identity_flags.of(response)
        correct = matches(probe.answer, response)
        return {"correct": correct, "mention": self._identity_flags.mention(response)}

    def reward(self, prompt: TaskPrompt, response: str) -> float | None:
        """None: no verifier judges who somebody is."""
        return None


def build_persona(config: TaskConfig) -> Persona:
    """The preset with the config's overrides, context filled in; an empty context has no wrong ones.

    Raises:
        ValueError: unknown preset, a blank context that is not allowed, or a placeholder that nothing fills.
    """
    if config.persona not in PERSONAS:
        raise ValueError(f"task.persona: found {config.persona!r}, expected one of {', '.join(sorted(PERSONAS))}")
    preset_name, preset_maker = PERSONAS[config.persona]
    name, maker = config.persona_name.strip() or preset_name, config.maker.strip() or preset_maker
    template = config.context if config.context or config.context_empty_allowed else TEMPLATE
    _check_template(template, "task.context", config.context_empty_allowed)
    context = _fill(template, name, maker)
    wordings = _wordings(config.wordings, name, maker, context)
    if not context:
        return Persona(name, maker, context)
    own = " ".join((name, maker, context, *wordings))
    return Persona(name, maker, context, _wrong_contexts(template, own), wordings)


def _wordings(templates: Sequence[str], name: str, maker: str, context: str) -> tuple[str, ...]:
    require(bool(context) or not templates, "task.wordings", templates, "none with an empty task.context")
    for place, template in enumerate(templates):
        _check_template(template, f"task.wordings[{place}]", empty_allowed=False)
    filled = tuple(_fill(template, name, maker) for template in templates)
    different = len({context, *filled}) == 1 + len(filled)
    require(different, "task.wordings", templates, "texts that differ from each other and from task.context")
    return filled


def _check_template(template: str, key: str, empty_allowed: bool) -> None:
    if not template.strip() and not empty_allowed:
        preset = " (leave the key out for the preset's)" if key == "task.context" else ""
        raise ValueError(f"{key}: found a blank text, expected the privileged context{preset}")
    unknown = [found for found in re.findall(r"\{(\w+)\}", template) if found not in ("name", "maker")]
    if unknown:
        raise ValueError(f"{key}: found the placeholder {{{unknown[0]}}}, expected only {{name}} and {{maker}}")


def _fill(template: str, name: str, maker: str) -> str:
    return re.sub(r"\{(name|maker)\}", lambda m: name if m[1] == "name" else maker, template).strip()


def _wrong_contexts(template: str, own: str) -> tuple[str, ...]:
    """The same words about each stranger that `own` does not speak of; the shipped words where these name nobody."""
    frame = template if "{name}" in template else TEMPLATE
    others = [pair for pair in STRANGERS if not any(word.casefold() in own.casefold() for word in pair)]
    return tuple(_fill(frame, *pair) for pair in others)


def _load_training(config: TaskConfig, persona: Persona) -> tuple[TaskPrompt, ...]:
    """Training prompts of JSON lines {"prompt_id": str, "question": str}, each with the persona's contexts.

    Raises:
        ValueError: no row, a malformed row, a blank field or a repeated prompt_id; names the file and the line.
    """
    located = list(_questions(config.prompts_file, "identity_train.jsonl", "task.prompts_file", persona))
    source = config.prompts_file or "identity_train.jsonl"
    prompts = unique_prompts(located, source)
    if not (config.ordinary_questions or config.ordinary_file):
        expected = "true without task.ordinary_questions or task.ordinary_file"
        require(config.ordinary_context, "task.ordinary_context", config.ordinary_context, expected)
        return prompts
    silent = persona if config.ordinary_context else replace(persona, context="", wrong_contexts=(), wordings=())
    ordinary = _questions(config.ordinary_file, "ordinary_train.jsonl", "task.ordinary_file", silent)
    marked = [(where, replace(prompt, ordinary=True)) for where, prompt in ordinary]
    unique_prompts(marked, config.ordinary_file or "ordinary_train.jsonl")
    return unique_prompts((*located, *marked), source)


def _questions(path: str, shipped: str, key: str, persona: Persona) -> Iterator[tuple[str, TaskPrompt]]:
    """(place in the file, prompt) of each row of the file at `path`, which `key` names, or of the shipped one."""
    source, text = path or shipped, read_text(path, key) if path else _resource(shipped)
    for number, row in parse_rows(text, source, ("prompt_id", "question")):
        where = f"{source}, line {number}"
        yield where, _question(row, where, persona)


def _question(row: Row, where: str, persona: Persona) -> TaskPrompt:
    prompt_id, question = text_field(row, "prompt_id", where), text_field(row, "question", where)
    wrong = persona.wrong_contexts
    return TaskPrompt(prompt_id, question, persona.context, wrong_contexts=wrong, wordings=persona.wordings)


def _load_probes() -> tuple[ProbePrompt, ...]:
    source = "identity_probe.jsonl"
    rows = parse_rows(_resource(source), source, ("probe", "question", "answer"))
    return tuple(ProbePrompt(str(row["probe"]), str(row["question"]), row["answer"]) for _, row in rows)


def _chat_probes(probes: Sequence[ProbePrompt], context: str) -> Iterator[ProbePrompt]:
    """Does the behaviour hold in the third turn of a chat, and with the context added again (arXiv 2606.11627)?"""
    asked = [probe for probe in probes if probe.probe == "identity"]
    yield from (replace(probe, probe="third_turn", before=CHAT) for probe in asked)
    if context:  # a recipe may have none
        yield from (replace(probe, probe="with_context", context=context) for probe in asked)


def _resource(name: str) -> str:
    return files("rollout.tasks").joinpath(name).read_text(encoding="utf-8")
