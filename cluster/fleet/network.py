"""Which of a host's addresses and interfaces others see."""

import os
import socket

import psutil

LOOPBACK = "127.0.0.1"


def own_address(address: str, port: int) -> str:
    """The address by which the host at `address` sees this one. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, port))
        return str(probe.getsockname()[0])


def open_door(address: str) -> socket.socket:
    """Takes connections at a free port of `address` from now on, and at no other address of this host."""
    return socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)


def interface_towards(address: str, port: int) -> str:
    """The name of the interface with that address.

    Raises:
        OSError: none has it, or no way leads there.
    """
    own = own_address(address, port)
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address == own for found in addresses):
            return str(name)
    raise OSError(f"found no network interface with the address {own}, expected one that leads to {address}")


def keep_gloo_on_this_host() -> None:
    """For an engine, whose workers are on one host: gloo would otherwise listen at the address of the host's name."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface_towards(LOOPBACK, 9))
