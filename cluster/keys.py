"""The key of a server, and whether it may go there: over http everyone on the way reads it."""

import ipaddress
import os
from urllib.parse import urlsplit

KEY, OVER_HTTP = "OPENAI_API_KEY", "EDGE_OPD_KEY_OVER_HTTP"
NONE = "none"  # a client wants one


def key_for(url: str) -> str:
    """`KEY`, over https, to this host, or where `OVER_HTTP` is 1; else "none"."""
    key = os.environ.get(KEY, "")
    return key if key and not _is_withheld(url) else NONE


def withheld(url: str, status: int | None) -> str:
    """What a message about an answer of this HTTP status ends in: that the key was not sent, or nothing."""
    if status not in (401, 403) or not os.environ.get(KEY) or not _is_withheld(url):
        return ""
    return " (OPENAI_API_KEY was not sent, since http shows it to everyone on the way: EDGE_OPD_KEY_OVER_HTTP=1 does)"


def _is_withheld(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme != "https" and not _is_here(parts.hostname or "") and os.environ.get(OVER_HTTP) != "1"


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
