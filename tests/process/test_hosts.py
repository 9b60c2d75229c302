"""The hosts of their own that tests of several hosts stand on."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.hosts import alone, hosts

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2")
GREET = """
import socket, sys
server = socket.create_server((sys.argv[1], 5000))
server.accept()[0].send(b"hello")
"""
HEAR = """
import socket, sys, time
for _ in range(600):
    try:
        print(socket.create_connection((sys.argv[1], 5000), 10).recv(5).decode())
        break
    except OSError:
        time.sleep(0.1)
"""


def interfaces() -> str:
    return subprocess.run(["ip", "-brief", "address"], capture_output=True, text=True, check=True).stdout


def test_hosts_reach_each_other_whatever_a_killed_process_left_and_another_bridge_holds() -> None:
    gone, other = f"edge{2**22}", "elsewhere0"  # no process has that number; no test has that name
    with alone():
        for name, address in ((gone, "10.213.0.254/24"), (other, "10.213.1.254/24")):
            subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True)
            subprocess.run(["ip", "addr", "add", address, "dev", name], check=True)
    try:
        with hosts(2) as (first, second):
            assert gone not in interfaces() and other in interfaces()
            assert not first.address.startswith("10.213.1.")
            server = first.popen([sys.executable, "-c", GREET, first.address], os.environ)
            try:
                heard = [second.run([sys.executable, "-c", HEAR, first.address], os.environ, 120).stdout]
            finally:
                server.kill()
                server.wait(10)
        assert heard == ["hello\n"]
        assert first.name not in interfaces()
    finally:
        subprocess.run(["ip", "link", "delete", other], check=True)
