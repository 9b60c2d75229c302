"""Models of the hub: which commit a name means, and that commit's files on this host.

A run settles the commit once, at its first start, and keeps it in its config.toml; every host then has the same files,
whatever becomes of the branch meanwhile.
"""

import re
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cache, partial
from pathlib import Path

from cluster.proxies import through
from evidence.patience import within

HUB_S = 10.0  # for each answer of the hub, as its client waits; without ours that tries for 25 to 47 s
WEIGHTS_S = 60.0  # for an answer that weights wait for which this host has not: nothing else can serve
FILES_S = 300.0  # for a model's files but its weights
COMMIT = re.compile("[0-9a-f]{40}")
MAIN = "main"
CONFIG = "config.json"  # which every model has
BESIDE = ("*.tiktoken", "LICENSE*", "NOTICE*")  # of a model's files, beside those that `learner.folder.SETTLES` names


@dataclass(frozen=True)
class HubId:
    """NAME or NAME@REVISION, a branch or tag, as a recipe has it; each may end in @COMMIT, as a run settles it."""

    name: str
    revision: str = ""
    commit: str = ""

    @classmethod
    def of(cls, path: str) -> "HubId":
        """ValueError for an empty revision, or more than one."""
        name, *rest = path.split("@")
        commit = rest.pop() if rest and COMMIT.fullmatch(rest[-1]) else ""
        if len(rest) > 1 or "" in rest:
            raise ValueError(f"found {path!r}, expected NAME or NAME@REVISION of the hub's")
        return cls(name, "".join(rest), commit)

    def __str__(self) -> str:
        return "@".join(part for part in (self.name, self.revision, self.commit) if part)

    @property
    def asked(self) -> "HubId":
        """Without the commit."""
        return replace(self, commit="")


def name_of(path: str) -> str:
    """The name alone."""
    return path.partition("@")[0]


def at_commit(hub_id: HubId) -> HubId:
    """With the commit that its revision is, by the hub, or by this host's cache where there is no answer. OSError says
    what the hub said where neither has one; it is asked once, and nothing is tried again."""
    return hub_id if hub_id.commit else replace(hub_id, commit=_commit(hub_id.name, hub_id.revision or MAIN))


@cache
def downloaded(hub_id: HubId, weights: bool) -> str:
    """The folder of a commit on this host, with the files that are read of a model, and with `weights` those too: of
    several sets the one that transformers reads. Where the hub does not answer, or has that commit no more, it is the
    cache's folder, whatever else is in it.

    Raises:
        OSError: says what the hub said, or that it gave no answer in time. Weights, which may take hours, have no time
            of their own: a connection that stands still ends by itself.
        ValueError: an index of weights that is none.
    """
    from learner.folder import SETTLES, WEIGHTS, has_weights, mapped

    name, commit = hub_id.name, hub_id.commit
    cached = _cached(name, commit)
    serves = cached is not None and (not weights or has_weights(cached))
    patience = HUB_S if serves or not weights else WEIGHTS_S
    try:
        there = within(patience, partial(_listed, name, commit, patience))
    except OSError as error:
        if serves:
            return str(cached)
        if cached:
            raise OSError(f"this host's cache has no weights of {hub_id}, and the hub: {error}") from error
        raise
    first = next((one for one in WEIGHTS if one in there), "")
    if not first and "adapter_config.json" not in there:
        raise OSError(f"found no weights in {hub_id}, expected {WEIGHTS[0]} or {WEIGHTS[1]}")
    read = [one for one in there if any(_is_of(one, pattern) for pattern in (*SETTLES, *BESIDE))]
    small = [one for one in read if one == first or not one.endswith(".index.json")]
    folder = within(FILES_S, partial(_fetched, name, commit, small, patience))
    files = [first] if first else []  # none of an adapter, which is refused by its name
    if first.endswith(".json"):
        files = sorted({*mapped(Path(folder) / first, str(hub_id)).values()})
        if missing := [file for file in files if file not in there]:
            raise OSError(f"found no {missing[0]} in {hub_id}, expected all {len(files)} shards of its {first}")
    return within(None, partial(_fetched, name, commit, [*small, *files], patience)) if weights else folder


def hub_said(error: OSError) -> str:
    """In one line, with the proxy that it came through."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    cause = error.__cause__ if type(error) is OSError and isinstance(error.__cause__, Exception) else error
    said = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    if isinstance(cause, GatedRepoError):
        said = "the hub gives it to those alone who accepted its terms, whom HF_TOKEN names"
    elif isinstance(cause, RepositoryNotFoundError):
        said = "the hub has no such model, or none that HF_TOKEN may read"
    elif isinstance(cause, RevisionNotFoundError):
        said = "the hub has no such revision of it"
    return said + through(str(constants.ENDPOINT))


@cache
def _commit(name: str, revision: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionResolutionError

    hub = HfApi()
    try:
        found = within(HUB_S, lambda: hub.resolve_revision(name, revision=revision)).resolved
    except TimeoutError as silent:
        try:
            found = hub.resolve_revision(name, revision=revision, local_files_only=True).resolved
        except RevisionResolutionError:
            raise silent from None
    if not COMMIT.fullmatch(found):
        raise OSError(f"found commit {found!r} of revision {revision!r}, expected 40 digits")
    return found


def _listed(name: str, commit: str, patience: float) -> list[str]:
    """The files of a commit, asked once: `list_repo_tree` tries for half a minute, and closes others' connections."""
    from huggingface_hub import HfApi

    return sorted(file.rfilename for file in HfApi().model_info(name, revision=commit, timeout=patience).siblings or ())


def _is_of(path: str, pattern: str) -> bool:
    """As a glob: no * is a slash."""
    return path.count("/") == pattern.count("/") and fnmatch(path, pattern)


def _fetched(name: str, commit: str, wanted: list[str], patience: float) -> str:
    from huggingface_hub import snapshot_download

    return snapshot_download(name, revision=commit, allow_patterns=wanted, etag_timeout=patience)


def _cached(name: str, commit: str) -> str | None:
    """The folder of that commit in this host's cache, whatever is in it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return snapshot_download(name, revision=commit, allow_patterns=[CONFIG], local_files_only=True)
    except LocalEntryNotFoundError:
        return None
