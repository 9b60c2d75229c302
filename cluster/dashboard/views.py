"""The token views in a run's folder, which `edge-opd view RUN --all` writes: a page of the run links to them.

A page that was written before they were reads their list beside them, LIST, when it is opened.
"""

import json
from pathlib import Path
from urllib.parse import quote

from evidence.files import write_whole

FOLDER = "view"  # of a run's
LIST = f"{FOLDER}/steps.js"


def views_of(run: Path, prefix: str) -> dict[int, str]:
    """The addresses of a run's views, by the number of their step from 1, each from where `prefix` leads to the run.
    Other files there are none of them."""
    found = {path.stem.removeprefix("step-"): path.name for path in sorted((run / FOLDER).glob("step-*.html"))}
    return {int(step) + 1: quote(f"{prefix}{FOLDER}/{name}") for step, name in found.items() if step.isdecimal()}


def list_views(run: Path) -> None:
    """Writes LIST anew."""
    write_whole(run / LIST, f"edgeOpdViews({json.dumps(views_of(run, ''))})\n", on_disk=False)
