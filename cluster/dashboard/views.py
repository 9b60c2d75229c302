"""The token views in a run's folder, which `edge-opd view RUN --all` writes: a page of the run links to them.

A page that was written before they were reads their list beside them, LIST, when it is opened.
"""

import json
from pathlib import Path

from evidence.files import write_whole

FOLDER = "view"  # of a run's
LIST = f"{FOLDER}/steps.js"


def views_of(run: Path, prefix: str) -> dict[int, str]:
    """The views of a run, by the number of their step from 1, each from where `prefix` leads to the run."""
    found = sorted((run / FOLDER).glob("step-*.html"))
    return {int(path.stem.removeprefix("step-")) + 1: f"{prefix}{FOLDER}/{path.name}" for path in found}


def list_views(run: Path) -> None:
    """Writes LIST anew."""
    write_whole(run / LIST, f"edgeOpdViews({json.dumps(views_of(run, ''))})\n", on_disk=False)
