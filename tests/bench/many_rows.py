"""Seconds and memory of 100,000 rows of one's own: `edge-opd data check`, and what the start of a run does with them
before Ray. Each in a process of its own.

    python -m tests.bench.many_rows

A row is a question of 12 words and a context of 60, all different. Memory is what a process holds at most, beside what
it holds at most with 100 rows.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.figures import Figure
from tests.bench.learner_step import ROOT, resource_peak

ROWS, FEW = 100_000, 100
PROSE = """the harbour keeps its own archive of letters which the keeper reads aloud on the first evening of spring when
boats return from northern water with salt fish and news"""
WORDS = PROSE.split()


def written(folder: Path, rows: int) -> Path:
    draw, file = random.Random(0), folder / f"{rows}.jsonl"

    def sentence(words: int) -> str:
        return " ".join(draw.choices(WORDS, k=words)).capitalize()

    with file.open("w") as out:
        for place in range(rows):
            row = {"question": f"{sentence(12)} {place}?", "context": f"{sentence(60)}.", "answer": str(place)}
            out.write(json.dumps(row) + "\n")
    return file


def start(file: Path) -> tuple[float, int]:
    """Seconds and the most bytes of what a run looks at before it starts Ray."""
    from cluster.config import load_recipe
    from cluster.run.checks import check_recipe
    from cluster.run.inputs import pins_of
    from rollout.tasks import build_task

    begun = time.perf_counter()
    given = [f"task.prompts_file={file}", f"task.probe_file={file.with_name('probe.jsonl')}", "task.name=context"]
    recipe = load_recipe("cluster/recipes/local-smoke.toml", [*given, "task.ordinary_questions=false"])
    task = build_task(recipe.task)
    inputs, _ = check_recipe(recipe, task)
    pins_of(recipe, inputs.model, task)
    return time.perf_counter() - begun, resource_peak()


def timed(*command: str) -> tuple[float, str]:
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True, capture_output=True, text=True)
    return time.perf_counter() - begun, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", type=Path, metavar="FILE", help="the start with these rows, in this process")
    arguments = parser.parse_args()
    if arguments.one:
        return print(json.dumps(start(arguments.one)))
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "probe.jsonl").write_text('{"question": "Who keeps the lamp?", "answer": "Ada"}\n')
        few, many = (written(Path(place), rows) for rows in (FEW, ROWS))
        seconds, _ = timed("cluster", "data", "check", str(many))
        Figure("data check of 100,000 rows, s", seconds, "<= 20").say()
        found = [
            json.loads(timed("tests.bench.many_rows", "--one", str(file))[1].splitlines()[-1]) for file in (few, many)
        ]
        Figure("a start's look at 100,000 rows, s", found[1][0], "<= 15").say()
        Figure("memory beyond that of 100 rows, GB", (found[1][1] - found[0][1]) / 1e9, "<= 1").say()
    return None


if __name__ == "__main__":
    main()
