"""Which proxy a request goes through, as HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY say. What fails names it."""

import os
from importlib.util import find_spec
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

KINDS = ("http", "https", "socks5", "socks5h")  # those of the HTTP client


def check_proxies() -> None:
    """
    Raises:
        ValueError: a variable names a kind of proxy that needs a package which is not here, or that nothing knows.
    """
    for kind, proxy in getproxies().items():
        if kind not in ("http", "https", "all") or "://" not in proxy:
            continue
        scheme, variable = proxy.partition("://")[0].lower(), _variable(kind)
        if scheme not in KINDS:
            raise ValueError(f"{variable}: found {_public(proxy)}, expected one of {', '.join(KINDS)} before ://")
        if scheme.startswith("socks") and find_spec("socksio") is None:
            raise ValueError(
                f"{variable}: found {_public(proxy)}, a kind of proxy that needs the package socksio, expected it "
                f"here: pip install socksio, or unset {variable}"
            )


def through(url: str) -> str:
    """What a message about `url` ends in: the proxy that it goes through and how to go without, or nothing."""
    parts, proxies = urlsplit(url), getproxies()
    kind = parts.scheme if proxies.get(parts.scheme) else "all"
    host = parts.hostname or ""
    if not proxies.get(kind) or proxy_bypass(host):
        return ""
    variable = _variable(kind)
    return f" (through the proxy {_public(proxies[kind])} of {variable}; NO_PROXY={host} goes without)"


def _variable(kind: str) -> str:
    """As it is written in the environment: lower case counts more, as for the client."""
    names = [name for name, value in os.environ.items() if name.lower() == f"{kind}_proxy" and value]
    return max(names)  # ASCII has capitals first


def _public(proxy: str) -> str:
    """Without user and password."""
    scheme, mark, rest = proxy.rpartition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"
