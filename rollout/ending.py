"""A process that ends with the one that started it, and without delay."""

import atexit
import ctypes
import gc
import multiprocessing
import os
import signal

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent() -> None:
    """A child of multiprocessing's is killed by the kernel once the process that started it is no more, however that
    ended, and whatever the child is doing. Elsewhere nothing changes."""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        end_with(parent.pid)


def end_with(parent: int) -> None:
    """This process is killed by the kernel once the one with that number, which started it, is no more: with the
    thread that did."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os._exit(1)


def end_forks_with_their_parents() -> None:
    """Whatever this process forks from now on, and what that forks in turn, is killed once the process that forked it
    is no more: also one that ends before its fork has come to anything."""
    forking = [os.getpid()]

    def begin() -> None:
        forking[0] = os.getpid()

    os.register_at_fork(before=begin, after_in_child=lambda: end_with(forking[0]))


def end_uncollected() -> None:
    """When this process ends, Python does not look for garbage among all it has, three times over: beside torch and
    vLLM that is seconds of a processor, and the memory is given back whatever was found."""
    atexit.register(gc.freeze)
