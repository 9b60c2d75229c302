"""Where a run is, whose processes are killed: on this host with a Ray of its own, or on three hosts of a cluster."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from tests.chaos.schedule import THREE_HOSTS
from tests.faults import Through, name_of
from tests.hosts import BIN, Host, end_session, hosts, processes_of, start_ray

CORES = 4  # that each host of three says it has: two of them have room for the run, as after a node's end
PORT = 6379


@dataclass(frozen=True)
class Place:
    """through: how a run is started there. second: the host of the cluster whose raylet may be killed."""

    through: Through | None = None
    second: Host | None = None
    options: tuple[str, ...] = ()  # with which Ray is started there
    env: dict[str, str] = field(default_factory=dict)

    def raylets(self) -> dict[str, psutil.Process]:
        """That of the second host, as "raylet"."""
        if self.through is None or self.second is None:
            return {}
        theirs = f"--node_ip_address={self.second.address}"
        found = [one for one in self.through.family() if name_of(one) == "raylet" and theirs in one.cmdline()]
        return {"raylet": found[0]} if found else {}

    def mend(self, raylet: psutil.Process) -> None:
        """As a cluster's manager does: a node whose raylet was killed is started again."""
        assert self.second is not None
        raylet.wait(60)
        start_ray(self.second, self.env, *self.options)

    def end_stopped(self) -> None:
        """As a cluster's manager does: a node that does not answer is ended, with whatever its raylet still held."""
        for raylet in self.raylets().values():
            if raylet.status() == psutil.STATUS_STOPPED:
                raylet.kill()


def can_be(kind: str) -> bool:
    """Whether this user may make what a run of this kind needs."""
    return kind != THREE_HOSTS or (os.geteuid() == 0 and shutil.which("ip") is not None)


@contextmanager
def place_of(kind: str) -> Iterator[Place]:
    """Within it a run of this kind may be started.

    Raises:
        PermissionError: this user may not make hosts.
    """
    if kind != THREE_HOSTS:
        yield Place()
        return
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])
    env = {**os.environ, "PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 2}
    session = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray's socket paths must be short
    common = f"--num-cpus={CORES}", f"--temp-dir={session}", "--disable-usage-stats", "--object-store-memory=200000000"
    with hosts(3) as (head, second, third):
        join = f"--address={head.address}:{PORT}", *common
        try:
            start_ray(head, env, "--head", f"--port={PORT}", *common)
            for host in (second, third):
                start_ray(host, env, *join)
            through = Through(
                head.command, env | {"RAY_ADDRESS": f"{head.address}:{PORT}"}, partial(processes_of, str(session))
            )
            yield Place(through, second, join, env)
        finally:
            end_session(str(session))
            shutil.rmtree(session, ignore_errors=True)
