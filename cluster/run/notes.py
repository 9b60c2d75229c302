"""What the start of a run says of its prompts: on the terminal, on the page, and in the model card that others read."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cluster.config import Recipe
from rollout.arrival import Difference, OwnText
from rollout.config import TemplateVariables
from rollout.render import Renderer
from rollout.requests import StepRequests
from rollout.tasks.base import TaskPrompt
from rollout.template import NAMED
from rollout.thinking import SWITCHES

SHOWN, KEPT = 3, 200  # differences between x and (x, r): on the terminal, and on the page, which is written again
ITS_OWN = ", a text of the chat template itself"  # of what the context replaces


@dataclass(frozen=True)
class Notes:
    """Lines. shown: on the terminal. kept: in RUN/inputs.json, for the page, with more of the differences from
    x to (x, r). card: of the chat template alone, without paths, r, or texts that it was given and the card does not
    show."""

    shown: Sequence[str] = ()
    kept: Sequence[str] = ()
    card: Sequence[str] = ()

    def among(self, before: Sequence[str], after: Sequence[str]) -> "Notes":
        """With lines of the user's own rows, which may name files and quote questions: the card has none of them."""
        return replace(self, shown=[*before, *self.shown, *after], kept=[*before, *self.kept, *after])


def prompt_notes(recipe: Recipe, requests: StepRequests) -> Notes:
    """What the chat template says itself, what tells (x, r) from x, and what a model that thinks spends its tokens on.

    Raises:
        ValueError: names a prompt in which r does not arrive, or changes more than it may.
    """
    found = requests.differences(recipe.run.steps)
    own, differing, last = said_of(recipe, requests.renderer, requests.prompts, found)
    shown, kept = (
        [*own, *differing[:most], *others(len(differing) - most, where), *last]
        for most, where in ((SHOWN, ", which a run keeps in inputs.json"), (KEPT, ""))
    )
    card = [*own, *differing[:SHOWN], *last]
    return Notes(shown, kept, _of_the_rest(recipe, requests) if unshown(recipe) else card)


def said_of(
    recipe: Recipe, renderer: Renderer, prompts: Sequence[TaskPrompt], found: Counter[Difference]
) -> tuple[list[str], list[str], list[str]]:
    """What the template says itself in these prompts, what tells (x, r) from x in how many, and what else to know.
    A text that a difference shows is not said again."""
    bare = any("system" not in dict(prompt.before) for prompt in prompts)  # as `own_text` is rendered
    ranked, begins = found.most_common(), renderer.own_text if bare else OwnText("", stays=True)
    is_shown = any(begins.is_replaced(one) for one, _ in ranked[:SHOWN])
    own = [str(said) for said in (*([begins] * (not is_shown)), renderer.own_end) if said.text]
    differing = [
        f"in {count} of {found.total()} prompts with a context, {one}{ITS_OWN * begins.is_replaced(one)}"
        for one, count in ranked
    ]
    doubled, twice = renderer.doubled_start, "the chat template writes {} twice where a prompt begins, expected once"
    return own, differing, [*([twice.format(doubled)] if doubled else []), *thinking_note(recipe, renderer)]


def others(count: int, where: str = "") -> list[str]:
    """A line on differences that are not shown."""
    return [f"{count} other differences that the context makes{where}"] if count > 0 else []


def thinking_note(recipe: Recipe, renderer: Renderer) -> list[str]:
    """A line where the prompt opens a thinking block."""
    opened = renderer.opened
    if not opened.ends:
        return []
    switches = [name for name in SWITCHES if name in renderer.template.own_variables]
    turned = f"; the template takes {', '.join(f'template.{name}' for name in switches)}" if switches else ""
    return [
        f"a prompt ends inside a thinking block ({opened.begins}): the {recipe.rollout.max_response_tokens} tokens of "
        f"rollout.max_response_tokens and the {recipe.probe.max_tokens} of probe.max_tokens are spent on the thought "
        f"first, and rates are over what follows {opened.ends}{turned}"
    ]


def unshown(recipe: Recipe) -> list[str]:
    """The template's variables that may hold a text, such as one on who the model is, where the card shows no such
    text. A number, true and false may not; of a word nobody can tell."""
    if recipe.export.card_context:
        return []
    return [name for name, value in recipe.template.items() if not isinstance(value, (bool, int, float))]


def _of_the_rest(recipe: Recipe, requests: StepRequests) -> Sequence[str]:
    """Notes on the first step's prompts as the template renders them without those texts; none where it does not."""
    hidden = {*unshown(recipe)} - {NAMED}  # of which none is a text: it says which template is looked at
    given = TemplateVariables({name: value for name, value in recipe.template.items() if name not in hidden})
    export = replace(recipe.export, card_context=True)
    silent = replace(recipe, template=given, run=replace(recipe.run, steps=1), export=export)
    try:
        return prompt_notes(silent, requests.rendered_by(requests.renderer.given(given))).card
    except ValueError:
        return []
