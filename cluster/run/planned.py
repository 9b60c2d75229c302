"""What a start of a run planned of the machine's memory, typed: RUN/memory.jsonl."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class EnginePlan:
    """What each engine of a pool has of the machine's memory."""

    gpu_memory_utilization: Annotated[float, "", "share of a GPU; 0: on a CPU, or nearly all of a GPU of its own"]
    kv_cache_gib: Annotated[float, "GiB", "of its cache; 0: what the rest leaves of its share"]


@dataclass(frozen=True)
class MemoryPlan:
    """What one start of a run, or one resume of it, gave each of the machine's memory: what the recipe says, and what
    the plan chose where it says nothing.

    Example:
        MemoryPlan(time=1795834800.0, device="cuda", micro_batch_tokens=4096,
                   engines={"student": EnginePlan(gpu_memory_utilization=0.12, kv_cache_gib=3.5)}, engines_sleep=False,
                   said=("memory of NVIDIA H200 (139.8 GiB): learner 2.5 GiB, ...",))
    """

    time: Annotated[float, "s", "Unix time of the start"]
    device: Annotated[str, "", "cpu or cuda"]
    micro_batch_tokens: Annotated[int, "tokens", "of a micro-batch of the learner, at most"]
    engines: Annotated[Mapping[str, EnginePlan], "", "by pool"]
    engines_sleep: Annotated[bool, "", "whether engines sleep while the learner works"]
    said: Annotated[tuple[str, ...], "", "the plan of each card, as the run's output has it"] = ()
    colocated: Annotated[bool, "", "whether engines and ranks share a node's cores, or one GPU"] = False
