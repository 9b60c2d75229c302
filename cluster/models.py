"""Which folder a recipe's model is, here and on the other hosts of a run."""

from pathlib import Path

from cluster.config import DEFAULT_MODEL


def resolve_model(path: str, key: str = "model.path") -> str:
    """A model as a folder of this host, or a hub id as it is. The default model is prepared when it is not there yet.

    Raises:
        ValueError: names `key` and a folder without a model.
    """
    if path == DEFAULT_MODEL:
        from cluster.default_model import prepare_default_model

        return str(prepare_default_model())
    folder = Path(path).expanduser()
    if (path.startswith((".", "/", "~")) or folder.exists()) and not (folder / "config.json").is_file():
        raise ValueError(f"{key}: found no config.json in {path}, expected a Hugging Face model folder")
    return str(folder.resolve()) if folder.exists() else path


def for_every_host(path: str) -> str:
    """What another host resolves to the same model: it prepares the default one itself."""
    return path if path == DEFAULT_MODEL else resolve_model(path)
