"""What several tests of this tier share: a browser, and an object store."""

from collections.abc import Iterator

import pytest

from tests.browser import Page, chromium
from tests.s3 import CREDENTIALS, s3_server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """One tab of a Chromium."""
    with chromium(tmp_path_factory.mktemp("browser")) as page:
        page.size(1280, 900)
        yield page


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Of an S3 server."""
    with s3_server() as port:
        yield port


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of that server, in the environment."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
