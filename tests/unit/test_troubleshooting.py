"""Each message of docs/troubleshooting.md is one that the code still has."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
SOURCES = [path for name in ("cluster", "evidence", "learner", "rollout") for path in (ROOT / name).rglob("*.*")]
# What the code says, with the borders of its strings taken away, so that a message may span lines.
CODE = re.sub(
    r'"\s*\n\s*f?"', "", "\n".join(path.read_text() for path in SOURCES if path.suffix in (".py", ".sbatch", ".sh"))
)
MESSAGES = [
    piece
    for row in re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
    for quoted in re.findall(r"`([^`]+)`", row)
    for piece in quoted.split("...")
    if piece.strip()
]


@pytest.mark.parametrize("message", MESSAGES)
def test_the_code_says_it(message: str) -> None:
    assert message.strip() in CODE


def test_there_are_messages() -> None:
    assert len(MESSAGES) > 40
