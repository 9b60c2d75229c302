"""A model's chat template: what it makes of messages, and what it says where it makes nothing of them.

`_compile_jinja_template` and `chat_template_utils` are transformers' own (seen in 5.19): `tests/unit/test_template.py`
holds what is read from them.
"""

from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jinja2 import Template, Undefined, meta
from jinja2.exceptions import TemplateError, TemplateSyntaxError
from jinja2.utils import missing

from rollout.tasks.base import Turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
PRIVATE_USE = 0x10F000  # of Unicode: characters that no text has
NAMED = "chat_template"  # the variable that chooses one of a folder's named templates
# What transformers gives a template itself.
GIVEN = frozenset({"messages", "tools", "documents", "add_generation_prompt", "strftime_now", "raise_exception"})
# What a template raises: its own words (raise_exception), and whatever goes wrong in its expressions.
_REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


class Refusal(ValueError):
    """A conversation that the template of a model does not render; `said`: the template's own words, on one line."""

    def __init__(self, model: str, conversation: Sequence[Message], error: BaseException) -> None:
        roles, self.said = ", ".join(message["role"] for message in conversation), " ".join(str(error).split())
        super().__init__(
            f"{model}: found a chat template that refuses the conversation [{roles}] ({self.said}), expected one that "
            "renders it"
        )


class ChatTemplate:
    """The template of one tokenizer, with the recipe's `[template]` variables and, given a date, one clock.

    Args:
        tokenizer: of the model.
        model: its folder, for messages.
        variables: what the recipe gives the template, by name; `chat_template` chooses a named template.
        day: the date that the template's clock shows, as 2026-11-28; empty: the machine's own clock.

    Raises:
        ValueError: no template, none of that name, a syntax error, or a variable that the template does not read.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        model: str,
        variables: Mapping[str, Any] | None = None,
        day: str = "",
    ) -> None:
        self.model, self._tokenizer = model, tokenizer
        self.variables = {name: value for name, value in (variables or {}).items() if name != NAMED}
        self.source = self._source_of((variables or {}).get(NAMED))
        self._template = self._compiled()
        self._clock = {"strftime_now": datetime.combine(date.fromisoformat(day), time()).strftime} if day else {}
        self._check_variables()

    def texts(self, conversations: Sequence[Sequence[Message]], generation_prompt: bool = True) -> list[str]:
        """What the template makes of each. `Refusal` for one that it does not render."""
        return [self._rendered(conversation, generation_prompt) for conversation in conversations]

    def _rendered(self, conversation: Sequence[Message], generation_prompt: bool) -> str:
        """As transformers' `apply_chat_template`, which takes twice as long: it looks up anew what is always the same,
        and of many rows each is rendered by itself."""
        given = self._given | {"messages": list(conversation), "add_generation_prompt": generation_prompt}
        try:
            return "".join(self._template.root_render_func(self._template.new_context(given, shared=True)))
        except _REFUSALS as error:
            raise Refusal(self.model, conversation, error) from error

    @cached_property
    def _given(self) -> dict[str, Any]:
        """Every name that the template may ask for, but for those of a conversation."""
        always = {**self._template.globals, **self._tokenizer.special_tokens_map, "tools": None, "documents": None}
        return always | self._clock | self.variables

    def ids(self, conversations: Sequence[Sequence[Message]]) -> list[list[int]]:
        """The token ids of each, with the generation prompt, all at once on every core; `Refusal` as in `texts`."""
        return list(self._apply(conversations, tokenize=True, add_generation_prompt=True)) if conversations else []

    def text(self, turns: Turns, generation_prompt: bool = True) -> str:
        """`texts` of one conversation."""
        return self.texts([messages(turns)], generation_prompt)[0]

    def renders(self, conversation: Sequence[Message], shows: str = "", **given: Any) -> bool:
        """Whether it renders the conversation, with `shows` in it, when it is given more than a run gives it."""
        try:
            (text,) = self._apply([conversation], tokenize=False, add_generation_prompt=True, **given)
        except Refusal:
            return False
        return shows in text

    def printed_as_nothing(self, conversation: Sequence[Message]) -> frozenset[str]:
        """Variables that the template prints and nobody gave a value: nothing stands in their place. One that it only
        asks about, as in `mode|upper == 'STRICT'`, is not printed."""
        marks: dict[str, str] = {}

        class Marked(Undefined):
            def __str__(self) -> str:
                if self._undefined_obj is not missing or not self._undefined_name:
                    return ""  # a field of a message
                return marks.setdefault(self._undefined_name, chr(PRIVATE_USE + len(marks)))

        template = self._template.environment.overlay(undefined=Marked).from_string(self.source)
        given = self._tokenizer.special_tokens_map | self._clock | self.variables
        try:
            text = template.render(
                messages=list(conversation), tools=None, documents=None, add_generation_prompt=True, **given
            )
        except _REFUSALS:  # of a mark, by a template that checks what the variable is: it may print it as well
            text = "".join(marks.values())
        found = {name for name, mark in marks.items() if mark in text}
        return frozenset(name for name in found if not name.endswith("_token"))  # a tokenizer may have no such token

    @cached_property
    def own_variables(self) -> frozenset[str]:
        """The names that the template takes from outside, but for those that every template is given."""
        read = meta.find_undeclared_variables(self._template.environment.parse(self.source))
        return frozenset(read - GIVEN - self._tokenizer.special_tokens_map.keys())

    @property
    def identity(self) -> tuple[str, ...]:
        """All that a conversation's ids depend on beside its texts."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        made_of = str(self._tokenizer.get_vocab()) if backend is None else str(backend.to_str())
        now = str(self._clock["strftime_now"]("%c")) if self._clock else ""
        return self.source, str(sorted(self.variables.items())), now, made_of

    def _apply(self, conversations: Sequence[Sequence[Message]], **settings: Any) -> Any:
        chats = [list(conversation) for conversation in conversations]
        given = self._clock | self.variables | settings
        try:
            return self._tokenizer.apply_chat_template(chats, chat_template=self.source, return_dict=False, **given)
        except _REFUSALS as error:
            for chat in chats if len(chats) > 1 else ():
                self._apply([chat], **settings)  # raises for the one at fault
            raise Refusal(self.model, chats[0], error) from error

    def _source_of(self, name: Any) -> str:
        known = self._tokenizer.chat_template
        if not known:
            raise ValueError(f"{self.model}: found a tokenizer without a chat template, expected a chat model")
        if isinstance(known, str) and name is None:
            return known
        names = sorted(known) if isinstance(known, dict) else []
        chosen = "default" if name is None else name
        if chosen not in names:
            found = repr(name) if name is not None else "none, and a model with several"
            expected = f"one of {', '.join(names)}" if names else "none: the model has one template, without a name"
            raise ValueError(f"template.{NAMED}: found {found}, expected {expected}")
        return str(known[chosen])

    def _compiled(self) -> Template:
        from transformers.utils.chat_template_utils import _compile_jinja_template

        try:
            return _compile_jinja_template(self.source)
        except TemplateSyntaxError as error:
            raise ValueError(
                f"{self.model}: found a chat template with a syntax error in line {error.lineno} ({error.message}), "
                "expected one that jinja2 can read"
            ) from error
        except (SyntaxError, RecursionError) as error:  # of the Python that jinja2 makes of it
            raise ValueError(
                f"{self.model}: found a chat template that cannot be compiled ({error}), "
                "expected one that jinja2 can read"
            ) from error

    def _check_variables(self) -> None:
        odd = sorted(self.variables.keys() - self.own_variables)
        if odd:
            known = ", ".join(sorted(self.own_variables))
            raise ValueError(
                f"template.{odd[0]}: found a variable that the chat template of {self.model} does not take, expected "
                + (f"one of {known}" if known else "none: it takes no variable")
            )


def messages(turns: Turns) -> list[Message]:
    """Turns as a template takes them."""
    return [{"role": role, "content": content} for role, content in turns]
