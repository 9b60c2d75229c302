"""`edge-opd report`: finished runs as one page, its tables as Markdown, and every number as JSON."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.report.claims import Verdict, judge_claims
from cluster.report.figures import Chart
from cluster.report.findings import Fact, headline
from cluster.report.gallery import curve_charts, headline_charts
from cluster.report.groups import Group, Pool, group_runs
from cluster.report.pages import render
from cluster.report.published import Published, load_published
from cluster.report.runs import read_runs
from cluster.report.settings import RunLine, Settings, run_lines, settings
from cluster.report.tables import Table, group_tables
from cluster.report.text import cell_json, number_json

_CURVES = ("kept", "mean_evidence", "k1", "mean_response_length")


@dataclass(frozen=True)
class GroupPage:
    """All that the report says of one task."""

    group: Group
    headline: list[tuple[Chart, list[Fact]]]
    verdicts: list[Verdict]
    tables: list[Table]
    curves: list[Chart]
    runs: list[RunLine]
    settings: Settings

    @property
    def summary(self) -> str:
        """How much there is, in a few words."""
        models = ", ".join(sorted({run.model for run in self.runs}))
        return f"Task {self.group.task}: runs {len(self.runs)}, arms {len(self.group.pools)}, model {models}"

    @property
    def charts(self) -> list[Chart]:
        """Of the headline and the curves."""
        return [chart for chart, _ in self.headline] + self.curves


def write_report(folders: Sequence[Path], out: Path, follow: bool = False) -> Path:
    """Writes report.html, report.md, summary.json, figures/ and runs/ under `out`; returns the page.

    The same runs give the same bytes, in whatever order they are named. runs/ holds of each run what the report was
    made from, as a run directory: a later report takes those beside new runs. follow: as `read_runs`.

    Raises:
        ValueError: what `read_runs` and `group_runs` refuse, or `out` is something else than a report.
    """
    published = load_published()
    pages = [_page(group, published) for group in group_runs(read_runs(folders, follow))]
    _clear(out)
    for page in pages:
        for chart in page.charts:
            _write(out / "figures" / f"{chart.key}.svg", chart.picture.standalone)
        for line, run in zip(page.runs, page.group.runs, strict=True):
            for name, text in run.record.items():
                _write(out / line.record / name, text)
    _write(out / "report.md", render("report.md.jinja", pages=pages, published=published))
    _write(out / "summary.json", json.dumps(_summary(pages, published), indent=1, ensure_ascii=False) + "\n")
    _write(out / "report.html", render("report.html.jinja", pages=pages, published=published))
    return out / "report.html"


def _page(group: Group, published: Published) -> GroupPage:
    return GroupPage(
        group=group,
        headline=list(zip(headline_charts(group, published), headline(group), strict=True)),
        verdicts=judge_claims(group, published.claims) if group.axis == "identity" else [],
        tables=group_tables(group, published),
        curves=curve_charts(group, published),
        runs=run_lines(group),
        settings=settings(group),
    )


def _clear(out: Path) -> None:
    """An older report makes room; anything else is left alone."""
    if (out.exists() and not out.is_dir()) or (out.is_dir() and any(out.iterdir()) and not _is_report(out)):
        raise ValueError(f"{out}: found something that is not a report, expected a new or an empty folder")
    for folder in ("runs", "figures"):
        shutil.rmtree(out / folder, ignore_errors=True)


def _is_report(out: Path) -> bool:
    return (out / "summary.json").is_file() and (out / "report.html").is_file()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _summary(pages: Sequence[GroupPage], published: Published) -> dict[str, Any]:
    return {
        "published": {"paper": published.paper, "model": published.model, **published.tables},
        "runs": [{"task": page.group.task, **asdict(line)} for page in pages for line in page.runs],
        "tasks": [_summarise(page) for page in pages],
    }


def _summarise(page: GroupPage) -> dict[str, Any]:
    return {
        "task": page.group.task,
        "headline": [_fact_json(fact) for _, facts in page.headline for fact in facts],
        "claims": [_verdict_json(verdict) for verdict in page.verdicts],
        "tables": [_table_json(table) for table in page.tables],
        "probes": {pool.arm.code: _probes_json(pool) for pool in page.group.pools},
        "curves": {pool.arm.code: _curves_json(pool) for pool in page.group.pools},
        "settings": {key: str(value) for key, value in page.settings.shared.items()},
    }


def _fact_json(fact: Fact) -> dict[str, Any]:
    return {"label": fact.label, "number": number_json(fact.number)}


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    arms = [{"arm": arm.arm.code, "verdict": arm.verdict, "number": number_json(arm.number)} for arm in verdict.arms]
    return {**asdict(verdict.claim), "verdict": verdict.verdict, "arms": arms}


def _table_json(table: Table) -> dict[str, Any]:
    rows = [{column.key: cell_json(row.get(column.key), column) for column in table.columns} for row in table.rows]
    return {"key": table.key, "title": table.title, "note": table.note, "rows": rows}


def _probes_json(pool: Pool) -> dict[str, list[Any]]:
    """Rate -> its figure at every probe."""
    found = {name: [pool.rate(name, step) for step in pool.probe_steps()] for name in pool.rates}
    return {name: [number_json(rate) for rate in rates if rate] for name, rates in found.items() if any(rates)}


def _curves_json(pool: Pool) -> dict[str, Any]:
    """Diagnostic -> [step, value] at every training step; all from metrics.jsonl of the arm's runs."""
    return {
        name: [[step, number.value] for step in pool.train_steps() if (number := pool.diagnostic(name, step=step))]
        for name in _CURVES
    }
