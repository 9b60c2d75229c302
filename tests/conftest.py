"""What several tests share: the default model, prepared once for a session (and cached across sessions)."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cluster.default_model import prepare_default_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The folder of the default model; the first time ever this takes about 25 s and a download."""
    return prepare_default_model()


@pytest.fixture(scope="session")
def tokenizer(default_model: Path) -> "PreTrainedTokenizerBase":
    """The default model's tokenizer. Shared: a test that changes it works on a copy."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(default_model))
