"""Token ids as text, with what this machine has: a tokenizer.json needs the small package tokenizers only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.config import DEFAULT_MODEL
from cluster.default_model import default_model_path
from cluster.errors import printable
from cluster.models import resolve_model
from rollout.tokenizer import load_tokenizer

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Decoder:
    """`decode` gives the text of ids, special tokens too; `note` says why where it can only give their numbers."""

    decode: Decode
    note: str = ""


def decoder_of(run: Path, model: str, follow: bool) -> Decoder:
    """Of a run's export, and of its model where there is none yet: the default one, or with `follow` whatever folder or
    hub id the run names.

    Raises:
        ValueError: transformers is here, and `model` is a folder without a model.
    """
    export = run / "export"
    if not (follow or model == DEFAULT_MODEL or (export / "tokenizer_config.json").is_file()):
        named = " ".join(printable(model).split())  # by the run's own recipe, which may be somebody else's
        remedy = f"found no export in {run}; --follow reads the tokenizer of its model, {named}"
        return Decoder(_as_numbers, f"token ids instead of text: {remedy}")
    local = default_model_path() if model == DEFAULT_MODEL else Path(model).expanduser()
    folder = export if (export / "tokenizer_config.json").is_file() else local
    has_json = (folder / "tokenizer.json").is_file()
    by_json = _by_tokenizers(folder) if has_json else None
    return by_json or _by_transformers(export if folder is export else None, model) or _numbers(folder, has_json)


def _by_tokenizers(folder: Path) -> Decoder | None:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return Decoder(lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=False)))


def _by_transformers(export: Path | None, model: str) -> Decoder | None:
    """For what has no tokenizer.json: a hub id, or an older layout."""
    if not _has_transformers():  # before a model is looked for, or downloaded
        return None
    tokenizer = load_tokenizer(resolve_model(model) if export is None else str(export))
    return Decoder(
        lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    )


def _has_transformers() -> bool:
    try:
        import transformers  # noqa: F401
    except ImportError:
        return False
    return True


def _numbers(folder: Path, has_json: bool) -> Decoder:
    missing = "package tokenizers, " if has_json else f"tokenizer.json in {folder}, with which "
    remedy = f"found no {missing}`pip install tokenizers` shows text"
    return Decoder(_as_numbers, f"token ids instead of text: {remedy}")


def _as_numbers(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))
