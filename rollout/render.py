"""The chat template: from a question, with or without its context, to token ids."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2.exceptions import TemplateError

from evidence.records import Ids
from rollout.tasks.base import Turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

POSITIONS = ("system", "user")
_MARK = "evidence-marker"
# What a template raises: its own words (raise_exception), and whatever goes wrong in its expressions.
_REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
REMEMBERED = 4096  # prompts, the latest: a step's rollouts share theirs, and a small task's come back every epoch

Message = dict[str, str]
Question = str | Turns  # a conversation that ends with it; a text is the only turn of one
Pair = tuple[Question, str]  # a question, and its context or ""


class Renderer:
    """Renders x and (x, r) with one tokenizer and one place for r.

    `model` names the model's folder in messages; without it, the tokenizer's own record of where it came from.

    Raises:
        ValueError: unknown position, no chat template, no end-of-sequence token, or a template that refuses or
            drops the message that is to carry r.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", context_position: str, model: str = "") -> None:
        if context_position not in POSITIONS:
            raise ValueError(f"context_position: found {context_position!r}, expected one of {', '.join(POSITIONS)}")
        self.context_position = context_position
        self._tokenizer = tokenizer
        self._model = model or str(tokenizer.name_or_path)
        if not tokenizer.chat_template:
            raise ValueError(f"{self._model}: found a tokenizer without a chat template, expected a chat model")
        self._ids = lru_cache(REMEMBERED)(self._tokenize)
        self._check_context_arrives()
        self.eos_token_ids = self._find_eos_token_ids()

    def prompt_ids(self, question: Question) -> Ids:
        """x: [P] ids of a conversation, ready for the assistant's answer. Read-only, as all prompts are."""
        return self._ids(question, "")

    def context_prompt_ids(self, question: Question, context: str) -> Ids:
        """(x, r): [P'] ids. r is a system message, or stands before the question in the user's; empty r gives x.

        In the user position no system message is given, so that the template's default applies as it does in x.
        """
        return self._ids(question, context)

    def text_ids(self, text: str) -> Ids:
        """[T] ids of a text as it is, without template or special tokens."""
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False), np.int32)

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """The text of [T] ids, without special tokens. For reading only: never re-tokenised."""
        return str(self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=True))

    def _context_messages(self, question: Question, context: str) -> list[Message]:
        turns = (("user", question),) if isinstance(question, str) else question
        if not context.strip():
            return [_message(*turn) for turn in turns]
        own = turns[0][0] == "system"  # x's own system message, which r stands behind
        at = 0 if self.context_position == "system" else int(own)
        if self.context_position == "system" and not own:
            return [_message("system", context), *(_message(*turn) for turn in turns)]
        role, text = turns[at]
        joined = f"{text}\n\n{context}" if role == "system" else f"{context}\n\n{text}"
        return [_message(*turn) for turn in (*turns[:at], (role, joined), *turns[at + 1 :])]

    def _tokenize(self, question: Question, context: str) -> Ids:
        ids = np.asarray(self._apply(self._context_messages(question, context), tokenize=True), dtype=np.int32)
        ids.flags.writeable = False  # whoever asks again gets the same array
        return ids

    def text_lengths(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text as it is, without template or special tokens: all at once, on every core."""
        return (
            [len(ids) for ids in self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []
        )

    def lengths(self, pairs: Sequence[Pair]) -> list[int]:
        """The tokens of each prompt, as `context_prompt_ids` has them: all at once, on every core."""
        found = self._apply([self._context_messages(*pair) for pair in pairs], tokenize=True) if pairs else []
        return [len(ids) for ids in found]

    @property
    def identity(self) -> tuple[str, ...]:
        """All that a prompt's ids depend on beside its texts: the place of r, the template, and the tokenizer."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        made_of = str(self._tokenizer.get_vocab()) if backend is None else str(backend.to_str())
        return self.context_position, str(self._tokenizer.chat_template), made_of

    def _apply(self, messages: Any, tokenize: bool, generation_prompt: bool = True) -> Any:
        """What the template makes of one conversation, or of each of several.

        Raises:
            ValueError: it refuses them, in whatever way a template can.
        """
        try:
            return self._tokenizer.apply_chat_template(
                messages, tokenize=tokenize, return_dict=False, add_generation_prompt=generation_prompt
            )
        except _REFUSALS as error:
            first = messages[0] if isinstance(messages[0], list) else messages
            roles = ", ".join(message["role"] for message in first)
            raise ValueError(
                f"{self._model}: found a chat template that refuses the conversation [{roles}] ({error}), expected one "
                "that renders it"
            ) from error

    def _check_context_arrives(self) -> None:
        """A template that drops r would make every evidence 0 without a word."""
        wanted = f'expected one that shows it (try context_position = "user" where it is "{self.context_position}")'
        try:
            text = self._apply(self._context_messages("question", _MARK), tokenize=False)
        except ValueError as error:
            raise ValueError(
                f"{self._model}: found a chat template that refuses r ({error.__cause__ or error}), {wanted}"
            ) from error
        if _MARK not in text:
            raise ValueError(f"{self._model}: found a chat template that drops r, {wanted}")

    def _find_eos_token_ids(self) -> tuple[int, ...]:
        """The tokenizer's own, and the token that ends an assistant's turn in the template where that is another."""
        answered = [_message("user", "question"), _message("assistant", _MARK)]
        turn = self._apply(answered, tokenize=False, generation_prompt=False)
        after = self._tokenizer.encode(turn.rpartition(_MARK)[2], add_special_tokens=False)
        special = set(self._tokenizer.all_special_ids) | set(self._tokenizer.get_added_vocab().values())
        end_of_turn = [token for token in after if token in special][:1]
        own = self._tokenizer.eos_token_id
        found = tuple(sorted({int(token) for token in (*([] if own is None else [own]), *end_of_turn)}))
        if not found:
            raise ValueError(f"{self._model}: found no end-of-sequence token, expected a tokenizer that has one")
        return found


def require_same_token_ids(student: str, teacher: str) -> None:
    """A teacher scores the student's token ids: both folders' tokenizers must give each token the same one.

    Raises:
        ValueError: they do not; names the first token, in the order of its id, that differs.
    """
    if student == teacher:
        return
    from transformers import AutoTokenizer

    ours, theirs = (AutoTokenizer.from_pretrained(path).get_vocab() for path in (student, teacher))
    differing = sorted(ours.items() ^ theirs.items(), key=lambda item: item[1])
    if differing:
        token = differing[0][0]
        raise ValueError(
            f"teacher.path: {teacher}: found id {theirs.get(token)} for the token {token!r}, expected "
            f"{ours.get(token)} as in {student}: a teacher needs the student's tokenizer"
        )


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
