"""A model folder's tokenizer, and the ids that the folder itself says end a response."""

from pathlib import Path
from typing import TYPE_CHECKING

from evidence.require import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(model: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a Hugging Face folder.

    Beside a tekken.json transformers prefers mistral-common's own tokenizer (seen in 5.19), which has no chat template:
    a folder with a tokenizer.json is read as every other.

    Raises:
        ValueError: there is none, or one whose chat template would not be read.
    """
    from transformers import AutoTokenizer

    folder = Path(model)
    plain = (folder / "tokenizer.json").is_file()
    if not plain and (folder / "tekken.json").is_file() and any(folder.glob("chat_template*")):
        raise ValueError(
            f"{model}: found a chat template beside tekken.json, which transformers then does not read, expected a "
            "tokenizer.json there"
        )
    try:
        return AutoTokenizer.from_pretrained(model, **({"mistral_format": False} if plain else {}))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # the last three of a damaged file
        why = first_line(error).rstrip(": ")
        if not isinstance(error, (OSError, ValueError)):
            why = f"{type(error).__name__}: {why}"
        raise ValueError(f"{model}: found no tokenizer ({why}), expected one that transformers reads") from error


def generation_ends(model: str) -> tuple[int, ...]:
    """eos_token_id of generation_config.json, of config.json where there is none, as an engine reads them."""
    from transformers import AutoConfig, GenerationConfig

    try:
        found = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:
        found = GenerationConfig.from_model_config(AutoConfig.from_pretrained(model)).eos_token_id
    return tuple(found) if isinstance(found, list) else () if found is None else (int(found),)
