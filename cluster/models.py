"""Which folder a recipe's model is, here and on the other hosts of a run."""

from functools import cache
from pathlib import Path

from cluster.config import DEFAULT_MODEL
from cluster.proxies import check_proxies, through
from evidence.patience import within

# Merges an adapter into its base, with the tokenizer that stands beside it, into ADAPTER-merged.
MERGE = (
    "python -c \"import peft, transformers as t; a = '{adapter}'; m = a.rstrip('/') + '-merged'; "
    "peft.AutoPeftModelForCausalLM.from_pretrained(a, dtype='auto').merge_and_unload().save_pretrained(m); "
    't.AutoTokenizer.from_pretrained(a).save_pretrained(m)"'
)
HUB_S = 5.0  # for the hub's answer whether it has a model; without ours transformers tries for 47 s


def resolve_model(path: str, key: str = "model.path") -> str:
    """A model as a folder of this host, or a hub id as it is. The default model is prepared when it is not there yet.

    Raises:
        ValueError: names `key` and a folder without a model, or what is neither a folder here nor on the hub.
    """
    if path == DEFAULT_MODEL:
        from cluster.default_model import prepare_default_model

        return str(prepare_default_model())
    folder = Path(path).expanduser()
    if folder.exists():
        if (folder / "adapter_config.json").is_file():
            raise ValueError(
                f"{key}: found a LoRA adapter in {path}, expected a model: `{MERGE.format(adapter=path)}` writes one"
            )
        if not (folder / "config.json").is_file():
            raise ValueError(f"{key}: found no config.json in {path}, expected a Hugging Face model folder")
        return str(folder.resolve())
    if not is_hub_id(path):
        raise ValueError(f"{key}: found no folder {path!r} here, expected a Hugging Face model folder")
    try:
        _look_up(path)
    except OSError as error:
        said = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(
            f"{key}: found no folder {path!r} here, and as a hub id: {said}{through(_hub())}; expected "
            "a Hugging Face model folder, or the id of a model"
        ) from error
    return path


def is_hub_id(path: str) -> bool:
    """Whether `path` names a model of the hub, as `resolve_model` reads it: it may be an id, and is no folder here."""
    is_place = path.startswith((".", "/", "~")) or path.endswith("/") or path.count("/") > 1
    return not is_place and path != DEFAULT_MODEL and not Path(path).exists()


@cache
def _look_up(hub_id: str) -> None:
    """OSError unless the hub, or its cache here, has a model of that id; asked once, and nothing is tried again."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if within(HUB_S, lambda: isinstance(try_to_load_from_cache(hub_id, "config.json"), str)):
        return
    check_proxies()
    within(HUB_S, lambda: get_hf_file_metadata(hf_hub_url(hub_id, "config.json"), timeout=HUB_S))


def _hub() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def for_every_host(path: str) -> str:
    """What another host resolves to the same model: it prepares the default one itself."""
    return path if path == DEFAULT_MODEL else resolve_model(path)
