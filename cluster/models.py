"""Which folder a recipe's model is, here and on the other hosts of a run."""

import os
from pathlib import Path
from shlex import quote

from cluster.config import DEFAULT_MODEL
from cluster.hub import HubId, at_commit, downloaded, hub_said, name_of
from cluster.proxies import check_proxies

# Merges an adapter into its base, with the tokenizer that stands beside it, into ADAPTER-merged; the adapter follows.
MERGE = (
    'python -c \'import sys, peft, transformers as t; a = sys.argv[1].rstrip("/"); m = a + "-merged"; '
    'peft.AutoPeftModelForCausalLM.from_pretrained(a, dtype="auto").merge_and_unload().save_pretrained(m); '
    "t.AutoTokenizer.from_pretrained(a).save_pretrained(m)'"
)
# Writes the text model of one that also takes images, and its tokenizer, into MODEL-text; the model follows.
TEXT_PART = (
    'python -c \'import sys, torch, transformers as t; w = sys.argv[1].rstrip("/"); m = w + "-text"; '
    'whole = t.AutoModelForImageTextToText.from_pretrained(w, dtype="auto"); torch.set_default_device("meta"); '
    "text = t.AutoModelForCausalLM.from_config(whole.config.get_text_config(), dtype=whole.dtype); "
    'torch.set_default_device("cpu"); setattr(text, text.base_model_prefix, whole.get_decoder()); '
    "text.set_output_embeddings(whole.get_output_embeddings()); text.generation_config = whole.generation_config; "
    "text.save_pretrained(m); t.AutoTokenizer.from_pretrained(w).save_pretrained(m)'"
)


def resolve_model(path: str, key: str = "model.path", weights: bool = False) -> str:
    """A model as a folder of this host: the default one is prepared, and one of the hub is downloaded, as far as it is
    not there yet. weights: with those of a model of the hub, which are then looked at.

    Raises:
        ValueError: names `key` and a folder without a model, or what is neither a folder here nor on the hub.
    """
    if path == DEFAULT_MODEL:
        from cluster.default_model import prepare_default_model

        return str(prepare_default_model())
    of_hub = is_hub_id(path)
    folder = Path(_from_hub(path, key, weights)) if of_hub else Path(path).expanduser()
    if not folder.exists():
        raise ValueError(f"{key}: found no folder {path!r} here, expected a Hugging Face model folder")
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"{key}: found a LoRA adapter in {path}, expected a model: `{MERGE} {quote(path)}` writes one")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{key}: found no config.json in {path}, expected a Hugging Face model folder")
    if of_hub and weights:
        from learner.folder import check_model_folder

        check_model_folder(str(folder), f"{key}: {path}")
    return str(folder) if of_hub else str(folder.resolve())


def _from_hub(path: str, key: str, weights: bool) -> str:
    settled = hub_id(pinned(path, key), key)
    try:
        return downloaded(settled, weights)
    except OSError as error:
        raise _neither(path, key, error) from error
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def pinned(path: str, key: str = "model.path") -> str:
    """A model of the hub with its commit, which is the same model on every host and on every day; others as they are.

    Raises:
        ValueError: names `key`, and what is neither a folder here nor on the hub.
    """
    if not is_hub_id(path):
        return path
    try:
        return str(at_commit(hub_id(path, key)))
    except OSError as error:
        raise _neither(path, key, error) from error


def hub_id(path: str, key: str) -> HubId:
    """ValueError names `key` and what is no revision."""
    try:
        return HubId.of(path)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def _neither(path: str, key: str, error: OSError) -> ValueError:
    check_proxies()  # a variable that names none is said instead
    return ValueError(
        f"{key}: found no folder {path!r} here, and as a hub id: {hub_said(error)}; expected a Hugging Face model "
        "folder, or the id of a model"
    )


def is_hub_id(path: str) -> bool:
    """Whether `path` names a model of the hub, NAME or NAME@REVISION, as `resolve_model` reads it: it may be an id, and
    is no folder here."""
    name = name_of(path)
    is_place = path.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1
    is_here = os.path.exists(path)  # no error for a text that is too long for a path
    return not is_place and path != DEFAULT_MODEL and not is_here


def called(path: str) -> str:
    """What a run's lines and shards call a model: a folder by its place on this host."""
    return path if is_hub_id(path) else resolve_model(path)


def for_every_host(path: str) -> str:
    """What another host resolves to the same model: the default one and one of the hub it gets itself."""
    if path == DEFAULT_MODEL:
        return path
    return pinned(path) if is_hub_id(path) else resolve_model(path)
