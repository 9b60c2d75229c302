"""A model folder's tokenizer, and the ids that the folder itself says end a response."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evidence.require import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Writes a folder's tokenizer.json from its tekken.json, with the ends that mistral-common gives a text.
WRITE_TOKENIZER = (
    'python -c "import sys, transformers as t; k = t.AutoTokenizer.from_pretrained(sys.argv[1], mistral_format=False); '
    "k.add_special_tokens({'bos_token': '<s>', 'eos_token': '</s>'}); k.save_pretrained(sys.argv[1])\""
)

TEXT = "def f(x):\n    return x + 1"  # which a tokenizer of blanks and line breaks gives back


def load_tokenizer(model: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a Hugging Face folder.

    Beside a tekken.json transformers prefers mistral-common's own tokenizer (seen in 5.19), which has no chat template:
    a folder with a tokenizer.json is read as every other.

    Raises:
        ValueError: there is none, or one whose chat template would not be read, with the command that writes a
            tokenizer.json: to read a tekken.json takes a minute, each time; or one of which transformers loses text.
    """
    from transformers import AutoTokenizer

    folder = Path(model)
    plain = (folder / "tokenizer.json").is_file()
    if not plain and (folder / "tekken.json").is_file() and any(folder.glob("chat_template*")):
        raise ValueError(
            f"{model}: found a chat template beside tekken.json, which transformers then does not read, expected a "
            f"tokenizer.json there: `{WRITE_TOKENIZER} {shlex.quote(model)}` writes one"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, **({"mistral_format": False} if plain else {}))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # the last three of a damaged file
        why = first_line(error).rstrip(": ")
        if not isinstance(error, (OSError, ValueError)):
            why = f"{type(error).__name__}: {why}"
        raise ValueError(f"{model}: found no tokenizer ({why}), expected one that transformers reads") from error
    if plain:
        _require_whole_text(tokenizer, folder)
    return tokenizer


def _require_whole_text(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """ValueError where blanks are lost that the folder's own tokenizer.json keeps: transformers 5 builds some classes
    anew, such as LlamaTokenizerFast, with which byte-level tokenizers have been published."""
    from tokenizers import Tokenizer

    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    kept = own.decode(own.encode(TEXT, add_special_tokens=False).ids).strip()
    read = tokenizer.decode(tokenizer.encode(TEXT, add_special_tokens=False), clean_up_tokenization_spaces=False)
    if kept == TEXT and str(read).strip() != TEXT:
        file = folder / "tokenizer_config.json"
        named = _object(file).get("tokenizer_class") if file.is_file() else None
        raise ValueError(
            f"{file}: found tokenizer_class = {named!r}, with which transformers makes "
            f"{str(read)!r} of {TEXT!r}, expected 'PreTrainedTokenizerFast', which reads tokenizer.json as it is"
        )


def generation_ends(model: str) -> tuple[int, ...]:
    """eos_token_id of generation_config.json, of config.json where there is none, as an engine reads them.

    Raises:
        ValueError: the file is no JSON object, or has something else there than token ids.
    """
    file = Path(model) / "generation_config.json"
    if file.is_file():
        return _ends(file, _object(file).get("eos_token_id"))
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, GenerationConfig

    try:
        of_config = GenerationConfig.from_model_config(AutoConfig.from_pretrained(model))
    except (OSError, ValueError, TypeError, LookupError, StrictDataclassError) as error:
        said = " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__
        raise ValueError(
            f"{model}: found a config.json that transformers does not read ({said}), expected one"
        ) from error
    return _ends(Path(model) / "config.json", of_config.eos_token_id)


def _object(file: Path) -> dict[str, Any]:
    """What a file of the model holds."""
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file}: found no valid JSON ({first_line(error)}), expected the file as it was published with the model"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"{file}: found a {type(found).__name__}, expected a JSON object")
    return found


def _ends(file: Path, found: Any) -> tuple[int, ...]:
    ends = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(end) is int and end >= 0 for end in ends):
        raise ValueError(f"{file}: found eos_token_id = {found!r}, expected a token id or a list of them")
    return tuple(ends)
