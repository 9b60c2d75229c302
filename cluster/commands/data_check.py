"""`edge-opd data check`: what each row of a file becomes, how many tokens, what does not fit, and what is wrong."""

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cluster.commands.data_file import FileCheck, Prompt, check_file
from cluster.config import Recipe, load_recipe, located
from cluster.errors import printable
from cluster.fleet.processes import collect_seldom
from cluster.models import resolve_model
from cluster.requests import renderer_of, window_keys
from cluster.run.lengths import lengths_near
from cluster.typed import build, parse_overrides
from rollout.contrast import check_wrong_contexts, num_wrong_contexts
from rollout.render import Pair, Renderer
from rollout.tasks import ProbePrompt, TaskPrompt
from rollout.tasks.base import Turns
from rollout.tasks.context import CARD, ContextTask, asking_again, check_main_tag, probe_rows, training_rows
from rollout.tasks.notes import SAID_WHOLE, UNREAD, sentence_of
from rollout.tasks.problems import with_wrong_contexts

SHOWN_FAULTS = 20
SHOWN_ROWS, SHOWN_IN_FAULT = 10, 3  # of those that do not fit
WITHOUT = "without context"
SHOWN_CHARS = 400  # of a text of the first row
SPECIAL = "rows have special tokens in their texts, which the model reads as its own"


@dataclass(frozen=True)
class Sizes:
    """Tokens of each prompt of a file under one view; those that exceed `most` do not fit."""

    view: str
    tokens: Sequence[int]
    most: int
    room: str  # the keys that set `most`


@dataclass(frozen=True)
class DataCheck:
    """A file of training rows, and one of probe rows where there is one, each with its sizes."""

    files: Sequence[tuple[FileCheck, Sequence[Sizes]]]
    too_long: Sequence[str] = ()  # questions that a probe asks, a line each: a run refuses one, not only what is drawn

    @property
    def faults(self) -> list[str]:
        """Of all rows, a line each; and of a file of training rows of which none fits."""
        rows = [fault for file, _ in self.files for fault in file.faults]
        return [*rows, *self.too_long, *_fits_nowhere(*self.files[0])]


def print_check(rows: str, probe: str, recipe: str | None, overrides: Sequence[str], row: int | None = None) -> int:
    """The exit status: 2 where a row is at fault. recipe: a file, or None for the defaults. row: as `check_data`."""
    settings = parse_overrides(overrides, {"task": {"name": "context"}})
    given = load_recipe(recipe, overrides) if recipe else build(Recipe, settings, "--set")
    check = check_data(rows, probe, given, row)
    print(printable(to_text(check)))
    for line in fault_lines(check.faults):
        print(f"edge-opd: {printable(line)}", file=sys.stderr)
    return 2 if check.faults else 0


def check_data(rows: str, probe: str, recipe: Recipe, row: int | None = None) -> DataCheck:
    """Reads every row as the recipe's task `context` does, with the template of its model. row: the number of the line
    to show, or of parquet's row; the first prompt without it.

    Raises:
        ValueError: what is wrong with a whole file, the recipe or the model, or too few wrong contexts.
    """
    collect_seldom()  # the rows are as many small objects as rollouts are
    named = replace(recipe.task, name="context", prompts_file=rows, probe_file=probe or recipe.task.probe_file)
    recipe = located(replace(recipe, task=named))
    task, asked, renderer = recipe.task, dict[Turns, str](), renderer_of(recipe, resolve_model(recipe.model.path))
    training = check_file(task.prompts_file, "task.prompts_file", training_rows(task, asked), recipe, renderer, row)
    prompts = [one for one in training.prompts if isinstance(one, TaskPrompt)]
    if num_wrong_contexts(recipe.evidence):
        check_wrong_contexts(with_wrong_contexts(prompts, task.seed), recipe.evidence)

    response = recipe.rollout.max_response_tokens
    room = f"{window_keys(recipe)} = {recipe.window} less rollout.max_response_tokens = {response}"
    views = _sizes(renderer, _views(prompts, recipe), recipe.window - response, room)
    files: list[tuple[FileCheck, Sequence[Sizes]]] = [(training, views)]
    questions: list[tuple[str, ProbePrompt]] = []
    if task.probe_file:
        probes = check_file(task.probe_file, "task.probe_file", probe_rows(task, asked), recipe, renderer)
        questions += zip(probes.places, (one for one in probes.prompts if isinstance(one, ProbePrompt)), strict=True)
        if not probes.faults:  # a row at fault may be the one that has the tag
            check_main_tag(task, [one for _, one in questions])
        x = [(prompt.turns, "") for prompt in probes.prompts]
        window = recipe.student.window
        files.append((probes, _sizes(renderer, {WITHOUT: x}, window - 1, f"student.window = {window} less 1")))
    if task.chat_probes and prompts and task.probe_file:
        again = asking_again(ContextTask(task.name, CARD, tuple(prompts), tuple(one for _, one in questions)))
        questions += ((f"{task.prompts_file}, again with its context", one) for one in again.probes if one.context)
    return DataCheck(files, _too_long_to_ask(questions, recipe, renderer))


def _views(prompts: Sequence[TaskPrompt], recipe: Recipe) -> dict[str, list[Pair]]:
    """What a group of each prompt is scored under; of its wordings and of its wrong contexts the longest."""
    views: dict[str, list[Pair]] = {WITHOUT: [(prompt.turns, "") for prompt in prompts]}
    views["with context"] = [(prompt.turns, max(prompt.contexts, key=len)) for prompt in prompts]
    if num_wrong_contexts(recipe.evidence):
        contrasted = with_wrong_contexts(prompts, recipe.task.seed)
        views["wrong context"] = [(one.turns, max(one.wrong_contexts, key=len, default="")) for one in contrasted]
    return views


def _too_long_to_ask(asked: Sequence[tuple[str, ProbePrompt]], recipe: Recipe, renderer: Renderer) -> list[str]:
    window = recipe.student.window
    lengths = lengths_near(renderer, {(prompt.turns, prompt.context) for _, prompt in asked}, window - 1)
    found = ((where, prompt.question, lengths[prompt.turns, prompt.context]) for where, prompt in asked)
    return [
        f"{where}: found a question of {tokens} tokens ({question[:60]!r}), expected less than "
        f"student.window = {window}"
        for where, question, tokens in found
        if tokens >= window
    ]


def _fits_nowhere(file: FileCheck, sizes: Sequence[Sizes]) -> list[str]:
    if not file.prompts or min(_longest(sizes)) <= sizes[0].most:
        return []
    return [
        f"{file.path}: found {len(file.prompts)} prompts of more than {sizes[0].most} tokens"
        f"{_listed(_oversized(file, sizes), SHOWN_IN_FAULT)}, expected one that fits {sizes[0].room}"
    ]


def _oversized(file: FileCheck, sizes: Sequence[Sizes]) -> list[str]:
    """The places of prompts that do not fit, each with its tokens."""
    longest = zip(file.places, _longest(sizes), strict=True)
    return [f"{where} ({tokens})" for where, tokens in longest if tokens > sizes[0].most]


def _longest(sizes: Sequence[Sizes]) -> list[int]:
    """Tokens of each prompt under the view in which it has most."""
    return [max(tokens) for tokens in zip(*(size.tokens for size in sizes), strict=True)]


def _sizes(renderer: Renderer, views: Mapping[str, Sequence[Pair]], most: int, room: str) -> list[Sizes]:
    lengths = lengths_near(renderer, {pair for pairs in views.values() for pair in pairs}, most)
    return [Sizes(view, [lengths[pair] for pair in pairs], most, room) for view, pairs in views.items()]


def to_text(check: DataCheck) -> str:
    """A paragraph for each file, and its first row as it is read."""
    return "\n\n".join("\n".join(_lines(file, sizes)) for file, sizes in check.files)


def _lines(file: FileCheck, sizes: Sequence[Sizes]) -> list[str]:
    total = len(file.prompts) + len(file.faults)
    lines = [f"{file.path}: {total} rows, read as {file.layout}"]
    lines += [f"  not read: {', '.join(file.unread)}"] if file.unread else []
    lines.append(f"  {len(file.prompts)} prompts, {len(file.faults)} rows at fault")
    if not file.prompts:
        return lines
    return [
        *lines,
        *_contents(file.prompts),
        *_tokens(sizes),
        *_too_long(file, sizes),
        *_rows_with(file.special, SPECIAL),
        *_rows_with(_having(file, lambda row: ", ".join(row.unread)), UNREAD),
        *_rows_with(_having(file, sentence_of), SAID_WHOLE),
        *(f"  {note}" for note in file.notes),
        *_row(file),
    ]


def _contents(prompts: Sequence[Prompt]) -> list[str]:
    judges = Counter(prompt.judge or "none" for prompt in prompts)
    turns = Counter(len(prompt.turns) for prompt in prompts)
    tags = Counter(tag for prompt in prompts if isinstance(prompt, ProbePrompt) for tag in prompt.tags)
    given = [prompt.contexts for prompt in prompts if isinstance(prompt, TaskPrompt)]
    contexts, several = {text for texts in given for text in texts}, sum(len(texts) > 1 for texts in given)
    said = f"  contexts: {len(contexts - {''})} different; {given.count(('',))} rows without"
    drawn = f"; {several} with several, of which each group of rollouts draws one" if several else ""
    return [
        *([f"{said}{drawn}"] if given else []),
        f"  answers by judge: {_counted(judges)}",
        f"  turns: {_counted(dict(sorted(turns.items())))}",
        *([f"  tags: {_counted(tags)}"] if tags else []),
    ]


def _counted(counts: dict[str, int] | dict[int, int]) -> str:
    return ", ".join(f"{name} ({count} rows)" for name, count in counts.items())


def _tokens(sizes: Sequence[Sizes]) -> list[str]:
    """A length far below the limit is an estimate: see `lengths_near`."""
    lines = [f"  {'tokens, about':<18} {'median':>7} {'95%':>7} {'longest':>7}"]
    for size in sizes:
        median, high, longest = np.quantile(size.tokens, [0.5, 0.95, 1.0]).round().astype(int)
        lines.append(f"    {size.view:<16} {median:>7} {high:>7} {longest:>7}")
    return lines


def _too_long(file: FileCheck, sizes: Sequence[Sizes]) -> list[str]:
    found, first = _oversized(file, sizes), sizes[0]
    return [f"  {len(found)} do not fit: more than {first.most} tokens ({first.room}){_listed(found)}"]


def _rows_with(found: Sequence[tuple[str, str]], said: str) -> list[str]:
    """Nothing where no row has any."""
    return [f"  {len(found)} {said}{_listed([f'{where} ({what})' for where, what in found])}"] if found else []


def _listed(found: Sequence[str], most: int = SHOWN_ROWS) -> str:
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return f": {'; '.join(found[:most])}{more}" if found else ""


def _having(file: FileCheck, what: Callable[[Prompt], str]) -> list[tuple[str, str]]:
    """The places of rows that have something, and what."""
    return [(where, had) for where, row in zip(file.places, file.prompts, strict=True) if (had := what(row))]


def _row(file: FileCheck) -> list[str]:
    prompt, name = file.prompts[file.shown], "shown" if file.shown else "first"
    texts = [(role, text) for role, text in prompt.turns]
    if isinstance(prompt, TaskPrompt):
        texts += [("context", text) for text in prompt.contexts]
    if prompt.answer is not None:
        texts.append((f"answer ({prompt.judge})", prompt.answer))
    return [f"  {name}: {file.places[file.shown]}", *(f"    {key}: {_shortened(text)}" for key, text in texts)]


def _shortened(text: str) -> str:
    flat = text.replace("\n", "\\n")
    return flat if len(flat) <= SHOWN_CHARS else f"{flat[:SHOWN_CHARS]}... ({len(text)} characters)"


def fault_lines(faults: Sequence[str]) -> list[str]:
    """The first of them, and how many more there are."""
    more = [f"and {len(faults) - SHOWN_FAULTS} more rows at fault"] if len(faults) > SHOWN_FAULTS else []
    return [*faults[:SHOWN_FAULTS], *more]
