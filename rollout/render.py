"""From a question, with or without its context, to token ids, by the model's chat template."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from evidence.records import Ids
from rollout.arrival import (
    MARK,
    NO_TEXT,
    Difference,
    OwnText,
    difference,
    own_end,
    own_text,
    require_context,
    require_defined,
    require_place,
    require_rendered,
    require_texts,
)
from rollout.end_of_turn import end_token_ids
from rollout.placement import POSITIONS, placed
from rollout.tasks.base import Turns
from rollout.template import ChatTemplate, messages
from rollout.thinking import TAGS, answer_of, opened_by
from rollout.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

USER = "user"
REMEMBERED = 4096  # prompts, the latest: a step's rollouts share theirs, and a small task's come back every epoch

Question = str | Turns  # the user's only turn, or a conversation that ends with one of the user's
Pair = tuple[Question, str]  # a question, and its context or ""


class Renderer:
    """Renders x and (x, r) with one tokenizer and one place for r.

    Args:
        tokenizer: of the model.
        context_position: a key of `rollout.placement.POSITIONS`.
        model: the model's folder in messages; without it, the tokenizer's own record of where it came from.
        variables, day: as `ChatTemplate` takes them.
        ends: ids that end a response, beside the tokenizer's own and the template's: those of generation_config.

    Raises:
        ValueError: unknown position; no chat template, or one that does not render x, does not show r, or has no end of
            a turn; a variable that it does not take.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        context_position: str,
        model: str = "",
        variables: Mapping[str, Any] | None = None,
        day: str = "",
        ends: Collection[int] = (),
    ) -> None:
        if context_position not in POSITIONS:
            raise ValueError(f"context_position: found {context_position!r}, expected one of {', '.join(POSITIONS)}")
        self.context_position = context_position
        self._tokenizer, self._day, self._own_ends = tokenizer, day, ends
        self.template = ChatTemplate(tokenizer, model or str(tokenizer.name_or_path), variables, day)
        self._ids = lru_cache(REMEMBERED)(self._tokenize)
        self._x = lru_cache(1)(self._whole)  # of a row with several contexts, which are looked at one by one
        require_rendered(self.template)
        require_place(self.template, context_position)
        self._defined: set[tuple[str, ...]] = set()  # the roles of conversations in which every variable has a value
        self._require_defined(self._placed(MARK, MARK))
        own = [token for token in (tokenizer.eos_token_id, *ends) if token is not None]
        self.eos_token_ids = end_token_ids(self.template, tokenizer, own)
        self._require_defined(((USER, MARK), ("assistant", MARK), (USER, MARK)))
        self.opened = opened_by(self.template.text(((USER, MARK),)).rpartition(MARK)[2])
        # Whether a text without special tokens would have lost where its thought ends.
        self.keeps_special = any(
            token in tag for token in tokenizer.all_special_tokens for tags in TAGS for tag in tags
        )

    def given(self, variables: Mapping[str, Any]) -> "Renderer":
        """The same with other variables; ValueError as for a new one."""
        where = self.context_position, self.template.model
        return Renderer(self._tokenizer, *where, variables, self._day, self._own_ends)

    def prompt_ids(self, question: Question) -> Ids:
        """x: [P] ids of a conversation, ready for the assistant's answer. Read-only, as all prompts are."""
        return self._ids(question, "")

    def context_prompt_ids(self, question: Question, context: str) -> Ids:
        """(x, r): [P'] ids, with r at the renderer's place; a blank r gives x."""
        return self._ids(question, context)

    def text_ids(self, text: str) -> Ids:
        """[T] ids of a text as it is, without template or special tokens."""
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False), np.int32)

    def answer(self, text: str) -> str:
        """What follows the thinking in the text of a response, as `plain` text."""
        return self.plain(answer_of(text, self.opened))

    def plain(self, text: str) -> str:
        """The text without special tokens, which `keeps_special` may have left in it."""
        for token in self._tokenizer.all_special_tokens if self.keeps_special else ():
            text = text.replace(token, "")
        return text

    def response_text(self, ids: Sequence[int] | Ids) -> str:
        """The text of a response's [T] ids, as an engine gives it."""
        return str(self._tokenizer.decode(list(map(int, ids)), skip_special_tokens=not self.keeps_special))

    def answer_of_ids(self, ids: Sequence[int] | Ids) -> str:
        """`answer` of a response's [T] ids."""
        return self.answer(self.response_text(ids))

    def text_lengths(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text as it is, without template or special tokens: all at once, on every core."""
        return (
            [len(ids) for ids in self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []
        )

    def lengths(self, pairs: Sequence[Pair]) -> list[int]:
        """The tokens of each prompt, as `context_prompt_ids` has them: all at once, on every core."""
        return [len(ids) for ids in self.template.ids([messages(self._placed(*pair)) for pair in pairs])]

    def difference(self, question: Question, context: str) -> Difference | None:
        """What tells (x, r) from x beside r, None without an r; ValueError as `require_arrival`."""
        x, with_r = self.require_arrival(question, context)
        return difference(x, with_r, context) if context.strip() else None

    def require_arrival(self, question: Question, context: str) -> tuple[str, str]:
        """x and (x, r) as texts.

        Raises:
            ValueError: the template does not render a prompt, does not show one of its texts as it was written, or
                prints a variable there that has no value; or r changes nothing, or what follows the question. What is
                wrong with r begins with its place.
        """
        turns = _turns(question)
        x = self._x(turns)
        if not context.strip():
            return x, x
        try:
            with_r = self._shown(self._placed(question, context))
            # What says r beside r itself is asked only where something does: it takes another rendering.
            without = self._shown(self._placed(question, NO_TEXT)) if context.strip() in x else x
            require_context(x, with_r, without, context, turns[-1][1])
        except ValueError as error:
            raise ValueError(f"rollout.context_position = {self.context_position!r}: {error}") from error
        return x, with_r

    def special_tokens_in(self, texts: Iterable[str]) -> set[str]:
        """The special tokens that texts have: the tokenizer makes of them what it makes of the template's own."""
        return {token for text in texts for token in self._special.findall(text)}

    @cached_property
    def _special(self) -> re.Pattern[str]:
        added = {str(token) for token in self._tokenizer.added_tokens_decoder.values() if token.special}
        longest_first = sorted({*added, *self._tokenizer.all_special_tokens}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"\Z.")

    @cached_property
    def doubled_start(self) -> str:
        """The beginning-of-sequence token, where the template writes it twice at the beginning of x."""
        twice = self.prompt_ids(MARK)[:2].tolist() == [self._tokenizer.bos_token_id] * 2
        return str(self._tokenizer.bos_token) if twice else ""

    @cached_property
    def own_text(self) -> OwnText:
        """What the chat template says in x itself before the question, where x has no system message."""
        return own_text(self.template, self.context_position, self._marks)

    @cached_property
    def own_end(self) -> OwnText:
        """What it says after the question, in the user's turn."""
        return own_end(self.template, self._marks)

    @property
    def _marks(self) -> set[str]:
        return {*self._tokenizer.all_special_tokens, *self._tokenizer.get_added_vocab()}

    @property
    def identity(self) -> tuple[str, ...]:
        """All that a prompt's ids depend on beside its texts: the place of r, the template, and the tokenizer."""
        return self.context_position, *self.template.identity

    def _tokenize(self, question: Question, context: str) -> Ids:
        ids = np.asarray(self.template.ids([messages(self._placed(question, context))])[0], dtype=np.int32)
        ids.flags.writeable = False  # whoever asks again gets the same array
        return ids

    def _whole(self, turns: Turns) -> str:
        """x as text, with every one of its texts."""
        x = self._shown(turns)
        require_texts(x, turns)
        return x

    def _shown(self, turns: Turns) -> str:
        text = self.template.text(turns)
        self._require_defined(turns)
        return text

    def _require_defined(self, turns: Turns) -> None:
        """Once for each sequence of roles: it takes the template's compilation."""
        roles = tuple(role for role, _ in turns)
        if roles not in self._defined:
            require_defined(self.template, turns)
            self._defined.add(roles)

    def _placed(self, question: Question, context: str) -> Turns:
        return placed(_turns(question), context, self.context_position)


def _turns(question: Question) -> Turns:
    return ((USER, question),) if isinstance(question, str) else question


def require_same_token_ids(student: str, teacher: str) -> None:
    """A teacher scores the student's token ids: both folders' tokenizers must give each token the same one.

    Raises:
        ValueError: they do not; names the first token, in the order of its id, that differs.
    """
    if student == teacher:
        return
    ours, theirs = (load_tokenizer(path).get_vocab() for path in (student, teacher))
    differing = sorted(ours.items() ^ theirs.items(), key=lambda item: item[1])
    if differing:
        token = differing[0][0]
        raise ValueError(
            f"teacher.path: {teacher}: found id {theirs.get(token)} for the token {token!r}, expected "
            f"{ours.get(token)} as in {student}: a teacher needs the student's tokenizer"
        )
