"""Models of the hub: which commit a name means, and that commit's files on this host.

A run settles the commit once, at its first start, and writes it into its config.toml as NAME@COMMIT; every host then
has the same files, whatever becomes of the branch meanwhile.
"""

from functools import cache
from pathlib import Path

from cluster.proxies import through
from evidence.patience import within

HUB_S = 5.0  # for the hub's answer whether it has a model; without ours transformers tries for 47 s
FILES_S = 300.0  # for a model's files but its weights
MAIN = "main"


def name_of(hub_id: str) -> str:
    """A hub id without its revision, which stands behind an @."""
    return hub_id.partition("@")[0]


def at_commit(hub_id: str) -> str:
    """NAME@COMMIT of NAME or NAME@REVISION, a branch, tag or commit: the hub's, or this host's cache's where there is
    no answer. OSError says what the hub said where neither has one; it is asked once, and nothing is tried again."""
    name, _, revision = hub_id.partition("@")
    return f"{name}@{_commit(name, revision or MAIN)}"


def downloaded(hub_id: str, weights: bool) -> str:
    """The folder of NAME@COMMIT on this host, with every file but the weights, or with those too: where there are
    safetensors no others.

    Raises:
        OSError: says what the hub said, or that it gave no answer in time. Weights, which may take hours, have no time
            of their own: whoever starts an engine or a rank gives it one.
    """
    name, _, commit = hub_id.partition("@")
    folder = within(FILES_S, lambda: _snapshot(name, commit, weights=False))
    if weights:
        _snapshot(name, commit, weights=True)
    return folder


def hub_said(error: OSError) -> str:
    """In one line, with the proxy that it came through."""
    from huggingface_hub import constants

    said = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return said + through(str(constants.ENDPOINT))


@cache
def _commit(name: str, revision: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionResolutionError

    hub = HfApi()
    try:
        return within(HUB_S, lambda: hub.resolve_revision(name, revision=revision)).resolved
    except TimeoutError as silent:
        try:
            return hub.resolve_revision(name, revision=revision, local_files_only=True).resolved
        except RevisionResolutionError:
            raise silent from None


@cache
def _snapshot(name: str, commit: str, weights: bool) -> str:
    from huggingface_hub import snapshot_download

    from learner.folder import ANY_WEIGHTS, INDICES, STATES

    if not weights:
        return snapshot_download(name, revision=commit, ignore_patterns=[*ANY_WEIGHTS], etag_timeout=HUB_S)
    elsewhere = ["*/*", "consolidated*", *STATES]  # another layout's, and a trainer's
    for kind in ("*.safetensors", "*.bin"):
        wanted = [kind, *INDICES]
        folder = snapshot_download(name, revision=commit, allow_patterns=wanted, ignore_patterns=elsewhere)
        if any(Path(folder).glob(kind)):
            break
    return folder
