"""The most memory that a rank of the learner has held, in bytes by kind.

host: of its process, since its start. device: of torch's tensors on its GPU, since `forget_peak`; absent on a CPU.
"""

import resource

import torch


def forget_peak() -> None:
    """What is held of the GPU now is the most so far."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> dict[str, int]:
    """As the module says."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux has KiB
    return {"host": host} | ({"device": torch.cuda.max_memory_allocated()} if torch.cuda.is_available() else {})
