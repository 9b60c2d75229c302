"""A tokenizer of which transformers loses text: findings/transformers-llama-class-drops-blanks.sh."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rollout.tokenizer import TEXT, load_tokenizer


def published(folder: Path, name: str) -> Path:
    """A byte-level tokenizer, as Llama 3's is, under this class."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=letters, special_tokens=["<s>", "</s>"], show_progress=False
    )
    made.train_from_iterator(["return the x of f 1 + 1"] * 9, trainer)
    made.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": name, "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def test_a_class_that_loses_blanks_is_refused_by_name(tmp_path: Path) -> None:
    folder = published(tmp_path, "LlamaTokenizerFast")
    told = r"tokenizer_config\.json: found tokenizer_class = 'LlamaTokenizerFast', with which transformers makes 'deff"
    with pytest.raises(ValueError, match=told):
        load_tokenizer(str(folder))


def test_a_class_that_reads_the_file_as_it_is_gives_the_text_back(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(published(tmp_path, "PreTrainedTokenizerFast")))
    assert tokenizer.decode(tokenizer.encode(TEXT, add_special_tokens=False)) == TEXT
