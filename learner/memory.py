"""The memory of a rank of the learner: the most that it has held, in bytes by kind, and what it gives back.

host: of its process, since its start. device: of torch's tensors on its GPU, since `forget_peak`; absent on a CPU.
"""

import ctypes
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


def give_back() -> None:
    """What was freed goes back to the system, from amid the heap too: glibc keeps it, in pieces that a larger tensor
    does not fit. Any other C library is left alone."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
