"""Pages that are made from the code are what the code makes now."""

from pathlib import Path

import pytest

from cluster.config import Recipe
from cluster.observe import metrics_page
from cluster.recipe_page import rows, tables

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(("page", "made"), [("recipes.md", tables), ("metrics.md", metrics_page.tables)], ids=str)
def test_a_generated_page_is_up_to_date(page: str, made: object) -> None:
    text = made()  # type: ignore[operator]
    module = "cluster.recipe_page" if page == "recipes.md" else "cluster.observe.metrics_page"
    assert text.strip() in (DOCS / page).read_text(), f"docs/{page}: python -m {module} makes other tables"


def test_every_key_of_a_recipe_has_a_meaning() -> None:
    tables_of = {name: type(getattr(Recipe(), name)) for name in Recipe.__dataclass_fields__}
    unclear = [f"{name}.{row[0]}" for name, cls in tables_of.items() for row in rows(cls) if not row[-1]]
    assert not unclear


def test_ranges_are_those_of_the_checks() -> None:
    found = {row[0]: row[3] for row in rows(type(Recipe().run))}
    assert found["steps"] == "at least 1" and found["require_selfname"] == "0 to 1"
    kinds = {row[0]: row[3] for row in rows(type(Recipe().teacher))}
    assert kinds["kind"] == "`frozen`, `live`, `snapshot`, `ema`"
    assert kinds["kv_cache_gib"] == "more than 0"  # inherited from the engines' settings
