"""To which servers a key is sent."""

import pytest

from cluster.keys import key_for, withheld

HERE = ["http://localhost:8000/v1", "http://127.0.0.1:8000/v1", "http://127.9.9.9/v1", "http://[::1]:8000/v1"]
FAR = [
    "http://teacher:8000/v1",
    "http://10.0.0.5:8000/v1",
    "http://localhost.example/v1",
    "http://127.0.0.1@teacher/v1",
]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "planted")
    monkeypatch.delenv("EDGE_OPD_KEY_OVER_HTTP", raising=False)


@pytest.mark.parametrize("url", [*HERE, "https://teacher/v1", "https://10.0.0.5:8000/v1"])
def test_a_key_is_sent_over_https_and_to_this_host(url: str) -> None:
    assert key_for(url) == "planted" and withheld(url, 401) == ""


@pytest.mark.parametrize("url", FAR)
def test_over_http_it_is_sent_to_another_host_when_that_was_said(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert key_for(url) == "none"
    assert "OPENAI_API_KEY was not sent" in withheld(url, 401) and "EDGE_OPD_KEY_OVER_HTTP=1" in withheld(url, 403)
    assert withheld(url, 500) == withheld(url, None) == ""
    monkeypatch.setenv("EDGE_OPD_KEY_OVER_HTTP", "1")
    assert key_for(url) == "planted" and withheld(url, 401) == ""


def test_where_there_is_no_key_nothing_is_said_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    assert key_for(FAR[0]) == "none" and withheld(FAR[0], 401) == ""
