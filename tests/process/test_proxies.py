"""A proxy in the environment: what fails on its way names it, and never its password."""

import asyncio
from contextlib import AbstractContextManager

import pytest

from cluster.__main__ import main
from cluster.fleet.http_engine import HttpEngine
from cluster.models import resolve_model
from cluster.proxies import check_proxies, through
from rollout.config import EngineConfig
from tests.runs import hub_at
from tests.servers import answering

VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def proxy(status: int, content: bytes, kind: str = "text/html") -> AbstractContextManager[str]:
    """Its host and port; it answers whatever it is asked itself."""
    return answering(lambda path: (status, content, kind))


def probe(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(["probe", "http://localhost:8000/v1", "--timeout", "120"])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "status", "content", "kind", "code"),
    [
        ("HTTP_PROXY", 503, b"<html>closed</html>", "text/html", 1),
        ("all_proxy", 403, b"<html>denied</html>", "text/html", 1),
        ("http_proxy", 404, b"nothing", "text/plain", 2),
        ("HTTP_PROXY", 200, b'{"object": "list", "data": []}', "application/json", 2),
    ],
)
def test_a_proxy_that_answers_for_localhost_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    variable: str, status: int, content: bytes, kind: str, code: int,
) -> None:  # fmt: skip
    with proxy(status, content, kind) as address:
        monkeypatch.setenv(variable, f"http://me:s3cr3t@{address}")
        found, error = probe(capsys)
    told = f"(through the proxy http://{address} of {variable}; NO_PROXY=localhost goes without)"
    assert found == code and error.startswith("edge-opd: http://localhost:8000/v1: ") and error.count("\n") == 1
    assert told in error and "s3cr3t" not in error


def test_no_proxy_is_named_where_none_is_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with proxy(503, b"") as address:
        monkeypatch.setenv("HTTP_PROXY", f"http://{address}")
        monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
        assert "proxy" not in probe(capsys)[1]
    assert through("https://elsewhere/v1") == ""


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        (
            "ALL_PROXY",
            "socks5://me:s3cr3t@h:1080",
            "found socks5://h:1080, a kind of proxy that needs the package socksio",
        ),
        ("https_proxy", "socks5h://h:1080", "found socks5h://h:1080, a kind of proxy that needs the package socksio"),
        ("Http_Proxy", "ftp://h:21", "found ftp://h:21, expected one of http, https, socks5, socks5h before ://"),
        ("HTTP_PROXY", "ftp://h:21", "found ftp://h:21, expected one of http, https, socks5, socks5h before ://"),
    ],
)
def test_a_kind_of_proxy_that_cannot_be_used_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str, value: str, told: str
) -> None:
    monkeypatch.setattr("cluster.proxies.find_spec", lambda name: None)
    monkeypatch.setenv(variable, value)
    code, error = probe(capsys)
    assert code == 2 and error.startswith(f"edge-opd: {variable}: {told}") and error.count("\n") == 1


def test_a_kind_of_proxy_whose_package_is_here_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.proxies.find_spec", lambda name: object())
    monkeypatch.setenv("ALL_PROXY", "socks5://h:1080")
    monkeypatch.setenv("HTTP_PROXY", "h:3128")
    check_proxies()


def test_a_teachers_server_behind_a_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = HttpEngine("teacher-0", "http://localhost:8000/v1", EngineConfig(start_deadline_s=120), "none")
    with proxy(502, b"") as address:
        monkeypatch.setenv("HTTP_PROXY", f"http://{address}")
        with pytest.raises(
            RuntimeError, match=rf"through the proxy http://{address} of HTTP_PROXY; NO_PROXY=localhost g"
        ):
            asyncio.run(engine.start())
    monkeypatch.setenv("HTTP_PROXY", "socks4://h:1")
    with pytest.raises(ValueError, match=r"^HTTP_PROXY: found socks4://h:1, expected one of http, https, socks5"):
        asyncio.run(engine.start())


def test_a_look_up_on_the_hub_names_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with proxy(404, b"") as address:
        monkeypatch.setenv("HTTP_PROXY", f"http://{address}")
        hub_at("http://hub.example", monkeypatch)
        monkeypatch.setattr("cluster.hub.HUB_S", 120.0)
        with pytest.raises(
            ValueError, match=rf"hub id: .*404.* \(through the proxy http://{address} of HTTP_PROXY; NO_"
        ):
            resolve_model("org/model")
