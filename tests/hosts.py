"""Hosts of their own on one machine: network namespaces on a bridge, each with an address and processes of its own;
and Ray on them."""

import fcntl
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.listeners import family

BIN = Path(sys.executable).parent
NETWORKS = [f"10.213.{number}" for number in range(256)]  # a bridge takes one that no other has; nothing leaves it


@dataclass(frozen=True)
class Host:
    """A network namespace. `hidden` are folders that are empty on it: it does not share them with the others."""

    name: str
    address: str
    hidden: tuple[Path, ...] = ()

    def command(self, words: Sequence[str]) -> list[str]:
        """`words`, to be run there."""
        inside = ["ip", "netns", "exec", self.name]
        if not self.hidden:
            return [*inside, *words]
        mounts = " && ".join(f"mount -t tmpfs tmpfs '{folder}'" for folder in self.hidden)
        return [*inside, "unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh", *words]

    def run(self, words: Sequence[str], env: Mapping[str, str], timeout: float) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(self.command(words), env=env, capture_output=True, text=True, timeout=timeout)

    def popen(self, words: Sequence[str], env: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(self.command(words), env=env, **quiet)


@contextmanager
def alone() -> Iterator[None]:
    """Within it no other process makes or removes bridges."""
    with (Path(tempfile.gettempdir()) / "edge-opd-bridges.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """`count` hosts that reach each other, and nothing else.

    Raises:
        PermissionError: this user may not make them.
    """
    bridge = f"edge{os.getpid()}"
    with ExitStack() as undo:
        with alone():
            _remove_leftovers()
            taken = _ip("-brief address")
            network = next(network for network in NETWORKS if f" {network}." not in taken)
            _ip(f"link add {bridge} type bridge")
            undo.callback(_ip, f"link delete {bridge}")
            _ip(f"addr add {network}.254/24 dev {bridge}")
        _ip(f"link set {bridge} up")
        made = []
        for number in range(1, count + 1):
            host = Host(f"{bridge}-{number}", f"{network}.{number}")
            _ip(f"netns add {host.name}")
            undo.callback(_ip, f"netns delete {host.name}")
            _ip(f"link add {bridge}v{number} type veth peer name eth0 netns {host.name}")
            _ip(f"link set {bridge}v{number} master {bridge} up")
            _ip(f"-n {host.name} addr add {host.address}/24 dev eth0")
            _ip(f"-n {host.name} link set lo up")
            _ip(f"-n {host.name} link set eth0 up")
            _ip(f"-n {host.name} route add default via {network}.254")
            made.append(host)
        yield made


def _remove_leftovers() -> None:
    """What processes that were killed left behind: a second bridge with the same network swallows its packets."""
    for bridge in set(re.findall(r"^(edge\d+) ", _ip("-brief link"), re.MULTILINE)):
        if psutil.pid_exists(int(bridge.removeprefix("edge"))):
            continue
        for host in re.findall(rf"^{bridge}-\d+", _ip("netns list"), re.MULTILINE):
            _ip(f"netns delete {host}")
        _ip(f"link delete {bridge}")


def _ip(arguments: str) -> str:
    done = subprocess.run(["ip", *arguments.split()], capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise PermissionError(f"ip {arguments}: {done.stderr.strip()}")
    return done.stdout


def processes_of(session: str) -> list[psutil.Process]:
    """Of a Ray session on every host, and what they started."""
    roots = [process for process in psutil.process_iter() if session in " ".join(_command(process))]
    return list({process.pid: process for root in roots for process in family(root.pid)}.values())


def end_session(folder: str) -> None:
    """Ends the processes of this Ray session only: `ray stop` would end every Ray on the machine."""
    mine = [process for process in psutil.process_iter() if folder in " ".join(_command(process))]
    for process in mine:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(mine, timeout=30)


def _command(process: psutil.Process) -> list[str]:
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return list(process.cmdline())
    return []


def start_ray(host: Host, env: dict[str, str], *options: str) -> None:
    done = host.run([str(BIN / "ray"), "start", f"--node-ip-address={host.address}", *options], env, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
