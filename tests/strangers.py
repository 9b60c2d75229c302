"""What a listening socket gives to a stranger: somebody who can connect, and has no token and no secret."""

import re
import socket
import time
from contextlib import suppress

TOKEN = "Ray's token"  # it refuses a call without
METRICS = "nothing, and gives metrics"
SILENCE = "a handshake of its own: it says nothing"
GONE = "nothing any more: it was gone before it answered"
UNREACHED = "nobody from here can ask"
SILENT_S = 5.0  # without a word by then is silence, also of what is gone afterwards
WAIT_S = 60.0  # for an answer; that a process ends is one
SERVICES_S = 60.0  # in which a server of gRPC's has its services
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
HTTP2 = b"\x00\x00.\x04"  # how a server of gRPC's begins, whatever it is told: with its settings
# One harmless call, without arguments, of each service of Ray's that listens.
CALLS = (
    "ray.rpc.NodeInfoGcsService/GetAllNodeInfo", "ray.rpc.NodeManagerService/GetNodeStats",
    "ray.rpc.ObjectManagerService/Pull", "ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "ray.rpc.RayletDriver/ClusterInfo", "ray.rpc.ReporterService/HealthCheck", "ray.rpc.LogService/ListLogs",
    "ray.rpc.events.EventAggregatorService/AddEvents",
)  # fmt: skip


def asks_for(address: str, port: int) -> str:
    """What who connects there is asked for, by the answers to a plain HTTP request and to calls of Ray's."""
    if not address:
        return UNREACHED
    begun = time.monotonic()
    said = _said(address, port)
    if not said and time.monotonic() < begun + SILENT_S and not _listens(address, port):
        return GONE
    if re.match(HTTP2, said, re.DOTALL):
        codes = _codes(address, port)
        if "UNAVAILABLE" in codes and not _listens(address, port):  # it ended amid the calls
            codes.remove("UNAVAILABLE")
            if not codes:
                return GONE
        return TOKEN if codes == {"UNAUTHENTICATED"} else f"gRPC that answers {sorted(codes)}"
    if said.startswith(b"HTTP/1.1 401 "):
        return TOKEN
    if re.match(rb"HTTP/1.[01] 200 .*\n# HELP ", said, re.DOTALL):
        return METRICS
    return f"it answers {said[:40]!r}" if said else SILENCE


def call_without_token(address: str, port: int, method: str) -> str:
    """The status with which a server of gRPC's answers an empty call."""
    import grpc

    with grpc.insecure_channel(f"{address}:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(method)(b"", timeout=WAIT_S)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def _codes(address: str, port: int) -> set[str]:
    """The statuses of all calls that the server knows. One of Python's has its services a moment after it listens."""
    end, codes = time.monotonic() + SERVICES_S, set[str]()
    while not codes and time.monotonic() < end:
        codes = {call_without_token(address, port, f"/{call}") for call in CALLS} - {"UNIMPLEMENTED"}
        time.sleep(0.2)
    return codes


def _listens(address: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((address, port), timeout=WAIT_S):
        return True
    return False


def _said(address: str, port: int) -> bytes:
    """The first that comes, until it closes or a while has passed."""
    said = b""
    with suppress(OSError), socket.create_connection((address, port), timeout=WAIT_S) as connection:
        connection.sendall(REQUEST)
        while len(said) < 4096 and (more := connection.recv(4096)):
            said += more
            if re.match(HTTP2, said, re.DOTALL):
                break
    return said
