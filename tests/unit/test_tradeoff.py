"""The picture of a sweep: self-name against the name in capability answers, and against capability."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

import pytest

from cluster.report.sweep import Key, Whole
from cluster.report.tradeoff import FAMILIES, curves, draw, write_tradeoff
from cluster.run.record import ProbeRecord
from rollout.probe import Rate

SVG = "{http://www.w3.org/2000/svg}"


def whole(selfname: int, side_effect: int, capability: int) -> Whole:
    """Its last probe's rates, of 100 answers."""
    rates = {"selfname": selfname, "side_effect": side_effect, "capability": capability}
    return Whole([ProbeRecord(32, 0.0, "identity", {name: Rate(k, 100) for name, k in rates.items()}, 4, 25)], {}, 0.0)


RUNS: Mapping[Key, Whole] = {
    (("plain", "2"), 0): whole(40, 10, 44),
    (("plain", "10"), 0): whole(60, 30, 40),
    (("held", "2"), 0): whole(38, 1, 45),
    (("plain", "2"), 1): whole(50, 20, 42),
    (("held", "2"), 1): whole(36, 3, 43),
}  # fmt: skip


def test_a_curve_is_of_the_first_value_and_its_cells_are_in_the_files_order() -> None:
    found = curves(["method", "scale"], RUNS)
    assert {name: [cell.names for cell in cells] for name, cells in found.items()} == {
        "plain": ["2", "10"], "held": ["2"],
    }  # fmt: skip
    plain, _ = found["plain"]
    assert [*plain.shares] == [0, 1] and plain.mean("selfname") == pytest.approx(0.45)
    assert plain.line() == "self-name 0.45, name in capability answers 0.15, capability 0.43"


def test_the_picture_has_a_point_for_each_seed_and_mean_in_both_panels(tmp_path: Path) -> None:
    page = write_tradeoff(tmp_path, ["method", "scale"], RUNS)
    assert page == tmp_path / "sweep.html"
    svg = ET.fromstring((tmp_path / "sweep.svg").read_text())
    titles = [title.text for title in svg.iter(f"{SVG}title")]
    assert len(titles) == 2 * (5 + 3)
    assert "plain 2, seed 1: self-name 0.50, name in capability answers 0.20" in titles
    assert "held 2, mean of 2: self-name 0.37, capability 0.44" in titles
    shown = {text.text for text in svg.iter(f"{SVG}text")}
    assert {"plain", "held", "a run", "the mean over seeds", "self-name (more is better)", "10"} <= shown
    assert {"name in capability answers (less is better)", "capability (more is better)"} <= shown
    assert svg.get("role") == "img" and svg.get("aria-label") == (
        "self-name against name in capability answers and against capability, 5 runs. Means over seeds: "
        "plain 2: self-name 0.45, name in capability answers 0.15, capability 0.43; "
        "plain 10: self-name 0.60, name in capability answers 0.30, capability 0.40; "
        "held 2: self-name 0.37, name in capability answers 0.02, capability 0.44."
    )


def test_the_page_takes_its_colours_from_light_or_dark_and_has_the_means_as_a_table(tmp_path: Path) -> None:
    write_tradeoff(tmp_path, ["method", "scale"], RUNS)
    page = (tmp_path / "sweep.html").read_text()
    picture = page[page.index("<svg") : page.index("</svg>")]
    assert f"var(--c-{FAMILIES[0]})" in picture and not re.search("#[0-9a-f]{6}", picture)
    assert "prefers-color-scheme: dark" in page
    assert "<td>held</td><td>2</td><td>2</td><td>self-name 0.37, name in capability answers 0.02, cap" in page


def test_a_sweep_over_seeds_alone_and_one_of_many_values_are_drawn() -> None:
    alone = curves([], {((), seed): whole(50 + seed, 1, 40) for seed in range(3)})
    assert {name: cell.names for name, (cell,) in alone.items()} == {"all": ""}
    many = curves(["name"], {((f"n{index}",), 0): whole(index, index, index) for index in range(12)})
    text = draw(many, "").standalone
    assert all(f">n{index}</text>" in text for index in range(12))


def test_values_are_text_whatever_they_hold(tmp_path: Path) -> None:
    write_tradeoff(tmp_path, ["a<b"], {(("x&y",), 0): whole(1, 2, 3)})
    ET.fromstring((tmp_path / "sweep.svg").read_text())
    assert "a&lt;b" in (tmp_path / "sweep.html").read_text()


def test_runs_without_these_rates_make_no_picture(tmp_path: Path) -> None:
    facts = Whole([ProbeRecord(32, 0.0, "facts", {"correct": Rate(1, 2)}, 4, 25)], {}, 0.0)
    assert write_tradeoff(tmp_path, ["method"], {(("a",), 0): facts}) is None and not [*tmp_path.iterdir()]
    assert write_tradeoff(tmp_path, ["method"], {}) is None
