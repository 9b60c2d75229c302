"""The pages of docs/ that are made from the code: what stands below their mark is written by a function. So is the
whole of cluster/examples/monitoring.

    python -m tests.pages

writes them again; tests/unit/test_pages.py fails when that would change one.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from cluster import recipe_page
from cluster.dashboard import panels
from cluster.observe import metrics_page, monitoring
from cluster.sizing import scaling
from tests.chaos import summary
from tests.chaos.outcome import read

DOCS = Path(__file__).parents[1] / "docs"
MONITORING = DOCS.parent / "cluster" / "examples" / "monitoring"
MARK = "<!-- Made by `python -m tests.pages`: change the code, not what follows. -->\n\n"
PAGES: dict[str, Callable[[], str]] = {
    "recipes.md": recipe_page.tables,
    "metrics.md": partial(metrics_page.tables, panels.charts()),
    "scaling.md": scaling.tables,
    "reproduction/chaos.md": lambda: summary.tables(read(DOCS / "reproduction" / "chaos.json")),
}


def made(page: str) -> str:
    """The page as it should be: its own words, the mark, and what the code says."""
    words, mark, _ = (DOCS / page).read_text(encoding="utf-8").partition(MARK)
    if not mark:
        raise ValueError(f"docs/{page}: found no line {MARK.strip()!r}, expected one before the tables")
    return words + MARK + PAGES[page]()


if __name__ == "__main__":
    for name in PAGES:
        (DOCS / name).write_text(made(name), encoding="utf-8")
    for name, text in monitoring.files().items():
        (MONITORING / name).parent.mkdir(parents=True, exist_ok=True)
        (MONITORING / name).write_text(text, encoding="utf-8")
