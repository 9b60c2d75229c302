"""One engine in a command's own process, without a cluster."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from cluster.fleet.network import keep_gloo_on_this_host
from cluster.fleet.processes import end_processes, own_processes
from cluster.sizing.cards import beside_others, own_cards, settle_devices
from cluster.sizing.claims import Look
from rollout.config import EngineConfig

if TYPE_CHECKING:
    from rollout.engine import Engine


@contextmanager
def one_engine(model: str, config: EngineConfig, late: str) -> Iterator["Engine"]:
    """Within it the engine runs, on the event loop that is running.

    late: what is said of it where it has not started in time.

    Raises:
        TimeoutError: it has not started within its deadline; what it had started is ended.
        ValueError: CUDA_VISIBLE_DEVICES names a GPU that this machine lacks, or others leave nothing of a card.
    """
    import torch

    from rollout.engine import Engine

    keep_gloo_on_this_host()
    settle_devices(os.environ)
    try:
        with alarm(config.start_deadline_s, late):
            on_gpu = torch.cuda.is_available()
            config = _with_a_share(config) if on_gpu else config
            engine = Engine(model, config, "cuda" if on_gpu else "cpu")
    except TimeoutError:
        end_processes(own_processes()[:-1])  # which this process's end would wait for
        raise
    try:
        yield engine
    finally:
        engine.shutdown()


def _with_a_share(config: EngineConfig) -> EngineConfig:
    """Of its cards, which nobody else counts on from now on."""
    with Look() as look:
        cards = own_cards(look.left)[: config.tensor_parallel_size]
        config = beside_others(config, cards)
        look.claim({card: config.gpu_memory_utilization * card.total for card in cards})
    return config


@contextmanager
def alarm(seconds: float, late: str) -> Iterator[None]:
    """TimeoutError "`late` within ... s" for what is inside, after `seconds`, also where it holds up the event loop.
    For a process's main thread, and for waits of Python's own: a system call or a library's is ended once it returns.
    """

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"{late} within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
