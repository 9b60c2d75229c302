"""Ray's head, the process `gcs_server`. Without it Ray ends a driver by its own hand, a minute later, with lines of its
own and before anything here could say what was lost. Nor does a call of Ray's return then that needs the head.
"""

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray

LOOK_S = 2.0  # between two looks, and for an answer
OWN_S = 10.0  # without an answer from the head of a run's own Ray, which nobody starts again
HANGS_S = 30.0  # of one that is there, and may be slow on a busy host
RAYS_S = 60.0  # after which Ray ends a driver, unless told otherwise
TOLD = "RAY_gcs_rpc_server_reconnect_timeout_s"
OPENING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # RFC 9113, 3.4, with no settings
OURS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EADDRNOTAVAIL}  # errors of this host, which say nothing of it


def patience_s() -> float:
    """Seconds without an answer after which the head is gone. That of a cluster may be started again, as KubeRay does
    with one whose state is kept outside: it has two thirds of Ray's own patience."""
    rays = float(os.environ.get(TOLD, RAYS_S))
    return 2 / 3 * rays if os.environ.get("RAY_ADDRESS") else min(OWN_S, 2 / 3 * rays)


def answers(address: str) -> bool | None:
    """Whether a server of HTTP/2 answers there, which gRPC is on, as far as this host can tell; None for one that takes
    a connection and says nothing: of a process that was stopped the system itself takes them."""
    host, _, port = address.rpartition(":")
    try:
        opened = socket.create_connection((host.strip("[]"), int(port)), timeout=LOOK_S)
    except OSError as error:
        return error.errno in OURS
    with opened:
        try:
            if os.environ.get("RAY_USE_TLS") != "1":  # a server of TLS has nothing to say to this
                opened.sendall(OPENING)
                opened.recv(1)
        except OSError:
            return None
    return True


@contextmanager
def watched_head(gone: Callable[[str], object], address: str = "") -> Iterator[None]:
    """Within it `gone` is called once, in a thread of its own, when the head has not answered for its patience: with a
    line that says so. The event loop may be held up by then. address: by default that of the connected Ray."""
    address = address or str(ray.get_runtime_context().gcs_address)
    seconds, ended = patience_s(), threading.Event()

    def watch() -> None:
        answered, missed = time.monotonic(), 0
        while not ended.wait(LOOK_S):
            found = answers(address)
            if found:
                answered, missed = time.monotonic(), 0
                continue
            missed += 1  # counted too, since this process may have been stopped for a while
            limit, why = seconds, "it died or was killed"
            if found is None:
                limit, why = max(HANGS_S, seconds), "it hangs or was stopped"
            if time.monotonic() - answered >= limit and missed * 2 * LOOK_S >= limit:
                gone(f"Ray's head (gcs_server) at {address} does not answer for {limit:g} s: {why}")
                return

    thread = threading.Thread(target=watch, name="head", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
