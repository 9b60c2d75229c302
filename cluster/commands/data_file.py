"""One file of a user's rows: what each becomes, and what its prompts show under the model's chat template."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from cluster.config import Recipe
from cluster.forks import in_parts
from cluster.run.notes import SHOWN, others, said_of
from rollout.arrival import Difference
from rollout.contrast import num_wrong_contexts
from rollout.render import Renderer
from rollout.tasks.base import ProbePrompt, TaskPrompt
from rollout.tasks.notes import idle_note
from rollout.tasks.placed import P, Placed, columns_of

Prompt = TaskPrompt | ProbePrompt


@dataclass(frozen=True)
class FileCheck:
    """One file: how its rows are read, the prompts with their places, and what is wrong with the others."""

    path: str
    layout: str
    unread: Sequence[str]
    places: Sequence[str]
    prompts: Sequence[Prompt]
    faults: Sequence[str]
    special: Sequence[tuple[str, str]]  # places of rows whose texts have special tokens, and these
    notes: Sequence[str]  # what the chat template says itself, and makes of r
    shown: int  # the prompt to show, from 0


def check_file(
    path: str, key: str, rows: Iterable[Placed[P]], recipe: Recipe, renderer: Renderer, shown: int | None = None
) -> FileCheck:
    """shown: the number of the row to show; the first prompt without it. ValueError for the whole file's faults."""
    layout, unread = columns_of(path, key, recipe.task)
    read = list(rows)
    looked = in_parts(partial(_look, read, recipe, renderer), len(read))
    faults = {where: str(row) for where, row in read if isinstance(row, ValueError)}
    for part in looked:
        faults |= part.faults
    fitting = [(where, row) for where, row in read if not isinstance(row, ValueError) and where not in faults]
    training = [row for _, row in fitting if isinstance(row, TaskPrompt)]
    found = sum((part.found for part in looked), Counter[Difference]())
    return FileCheck(
        path=path,
        layout=layout.name,
        unread=unread,
        places=(places := [where for where, _ in fitting]),
        prompts=[row for _, row in fitting],
        faults=[faults[where] for where, _ in read if where in faults],
        special=[one for part in looked for one in part.special],
        notes=_notes(found, training, recipe, renderer) if key == "task.prompts_file" else [],
        shown=_place(places, shown, path),
    )


@dataclass
class _Looked:
    """What the renderer has to say of a part of a file's rows. faults, special: by or with the row's place."""

    faults: dict[str, str] = field(default_factory=dict)
    special: list[tuple[str, str]] = field(default_factory=list)
    found: Counter[Difference] = field(default_factory=Counter)


def _look(rows: Sequence[Placed[P]], recipe: Recipe, renderer: Renderer, part: range) -> _Looked:
    looked = _Looked()
    for where, row in rows[part.start : part.stop]:
        if isinstance(row, ValueError):
            continue
        try:
            differing = [renderer.difference(row.turns, context) for context in _contexts(row, recipe)]
        except ValueError as error:
            looked.faults[where] = f"{where}: {error}"
            continue
        looked.found.update(one for one in differing[:1] if one is not None)
        if tokens := renderer.special_tokens_in(row.texts):
            looked.special.append((where, " ".join(sorted(tokens))))
    return looked


def _place(places: Sequence[str], row: int | None, path: str) -> int:
    """Of the prompt to show among all."""
    if row is None:
        return 0
    found = [place for place, where in enumerate(places) if where.endswith(f" {row}")]
    if not found:
        raise ValueError(f"--row: found {row}, expected the number of a row of {path} that is a prompt")
    return found[0]


def _notes(found: Counter[Difference], prompts: Sequence[TaskPrompt], recipe: Recipe, renderer: Renderer) -> list[str]:
    own, differing, last = said_of(recipe, renderer, prompts, found)
    told = [*own, *differing[:SHOWN], *others(len(differing) - SHOWN), *last]
    return [*told, *idle_note(recipe.task, prompts)]


def _contexts(prompt: Prompt, recipe: Recipe) -> tuple[str, ...]:
    """What a run may put into the prompt."""
    if isinstance(prompt, ProbePrompt):
        return (prompt.context,)
    return (*prompt.contexts, *(prompt.wrong_contexts if num_wrong_contexts(recipe.evidence) else ()))
