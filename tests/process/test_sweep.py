"""A sweep: what its file may hold, which runs it makes, and the table over them. Real: tests/engine/test_sweep.py."""

import json
import sys
import threading
from pathlib import Path

import pytest

from cluster.__main__ import main
from cluster.commands.reproduce import run_process
from cluster.commands.sweep import Sweep, load_sweep, run_sweep
from cluster.config import load_recipe
from cluster.run.figures import Gap
from cluster.run.record import ProbeRecord, append_probe, write_gap
from cluster.run.rundir import RunDir
from rollout.probe import Rate
from tests.runs import RECIPE, ROOT

TWO_BY_TWO = f"""
recipe = "{RECIPE}"
set = ["probe.samples=4"]
seeds = [0, 1]

[vary.name]
robin = ["task.persona_name=Robin", "task.maker=Fern Hill"]
vega = ["task.persona_name=Vega"]

[vary.position]
system = []
user = ["rollout.context_position=user"]
"""
# Of 8 answers to the last probe's questions, by cell and seed.
TOLD = {"robin-system": (6, 8), "robin-user": (4, 4), "vega-system": (2, 6), "vega-user": (0, 1)}


class Runner:
    """Stands for `edge-opd run`: a run with three probes, or none for a run that is to fail. Most: at one time."""

    def __init__(self, failing: str = "") -> None:
        self.failing, self.ran, self.now, self.most = failing, list[str](), 0, 0
        self._lock = threading.Lock()

    def __call__(self, arguments: list[str], log: Path) -> int:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        place = RunDir(Path(arguments[arguments.index("--run-dir") + 1]))
        try:
            return self.run(arguments, log, place)
        finally:
            with self._lock:
                self.now -= 1
                self.ran.append(place.root.name)

    def run(self, arguments: list[str], log: Path, place: RunDir) -> int:
        recipe = load_recipe(arguments[1], [arguments[i + 1] for i, part in enumerate(arguments) if part == "--set"])
        place.claim(recipe, place.has_begun)
        place.release()
        log.write_text("what it said")
        if place.root.name == self.failing:
            return 1
        cell, _, seed = place.root.name.rpartition("-seed")
        for step, count in ((0, 1), (8, 3), (recipe.run.steps, TOLD[cell][int(seed)])):
            append_probe(place.probes, ProbeRecord(step, 0.0, "identity", {"selfname": Rate(count, 8)}, 4, 2))
        write_gap(place.gap, Gap(0.0, "identity", {"selfname": Rate(5, 8)}, {"selfname": Rate(1, 8)}))
        place.export.mkdir()
        (place.export / "README.md").write_text("card")
        return 0


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    (tmp_path / "two.toml").write_text(TWO_BY_TWO)
    return load_sweep(tmp_path / "two.toml")


def test_every_combination_has_its_settings_in_order(sweep: Sweep) -> None:
    assert list(sweep.cells()) == list(TOLD)
    settings = ("probe.samples=4", "task.persona_name=Robin", "task.maker=Fern Hill", "rollout.context_position=user")
    assert sweep.cells()["robin-user"] == settings


def test_the_shipped_sweeps_are_those_that_their_comments_say() -> None:
    counts = {path.stem: load_sweep(path) for path in (ROOT / "cluster" / "sweeps").glob("*.toml")}
    assert {name: len(one.cells()) * len(one.seeds) for name, one in counts.items()} == {"personas": 30, "contrast": 75}


def test_runs_are_made_seed_by_seed_and_so_many_at_a_time(sweep: Sweep, tmp_path: Path) -> None:
    runner, said = Runner(), list[str]()
    out = run_sweep(sweep, tmp_path / "runs", 2, ["learner.lr=1e-5"], runner, said.append)
    assert sorted(runner.ran[:4]) == sorted(f"{cell}-seed0" for cell in TOLD)
    assert sorted(runner.ran) == sorted(f"{cell}-seed{seed}" for cell in TOLD for seed in (0, 1)) and runner.most <= 2
    assert "robin-system-seed1: probe at step 24: selfname 1.00 (n=8)" in said
    config = load_recipe(tmp_path / "runs" / "vega-user-seed1" / "config.toml")
    assert (config.run.seed, config.task.persona_name, config.learner.lr) == (1, "Vega", 1e-5)
    # Shares: 0.75 1, 0.5 0.5, 0.25 0.75, 0 0.125. Variances over seeds: 1/32, 0, 1/8, 1/128.
    over_all = "| self-name | 8 | 0.12 | 0.62 | 0.48 | 0.50 | 0.00 | 1.00 | 0.20 | 0.62 |"
    table = out.read_text().splitlines()
    assert table[2] == over_all and len(table) == 3 + 1 + 2 + 8
    assert table[-1] == "| vega-user | 1 | 0.12 [0.02, 0.47] | 8 |"
    data = json.loads((tmp_path / "runs" / "sweep.json").read_text())
    assert data["over all"]["selfname"]["seeds"] == pytest.approx(((1 / 32 + 1 / 8 + 1 / 128) / 4) ** 0.5)
    assert data["runs"]["robin-system-seed1"] == {"selfname": {"k": 8, "n": 8}}


def test_what_failed_is_named_and_run_again_and_what_is_finished_is_kept(sweep: Sweep, tmp_path: Path) -> None:
    folder, said = tmp_path / "runs", list[str]()
    failed = r"^sweep: 1 of 8 runs failed: robin-user-seed0; see .*runs/robin-user-seed0.log$"
    with pytest.raises(RuntimeError, match=failed):
        run_sweep(sweep, folder, 1, (), Runner("robin-user-seed0"), said.append)
    assert said[1] == f"robin-user-seed0: failed, see {folder / 'robin-user-seed0.log'}"
    assert len((folder / "sweep.md").read_text().splitlines()) == 3 + 1 + 2 + 7
    again = Runner()
    run_sweep(sweep, folder, 1, (), again, said.append)
    assert again.ran == ["robin-user-seed0"]
    with pytest.raises(ValueError, match=r"robin-system-seed0/config.toml: learner.lr: found .*, expected 0.5"):
        run_sweep(sweep, folder, 1, ["learner.lr=0.5"], again, said.append)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("recipe = ", r"found no sweep \(.*\), expected a TOML file"),
        ("runs = 3", r"found \['runs'\], expected keys of recipe, seeds, set, vary"),
        ("seeds = [0]", r"recipe: found None, expected the path of a recipe"),
        ('recipe = "none.toml"', r"all: .*none.toml: .*"),
        (f'recipe = "{RECIPE}"\nseeds = [1, 1]', r"seeds: found \[1, 1\], expected a list of different whole numbers"),
        (f'recipe = "{RECIPE}"\nseeds = [-1]', r"seeds: found \[-1\], expected"),
        (f'recipe = "{RECIPE}"\nset = ["run.steps"]', r"set: found \['run.steps'\], expected a list of settings, each"),
        (f'recipe = "{RECIPE}"\nset = ["run.step=1"]', r"bad.toml: all: .*identity.toml: run.step: found an unknown"),
        (f'recipe = "{RECIPE}"\n[vary]\na = 1', r"vary.a: found 1, expected NAME = \[settings\]"),
        (f'recipe = "{RECIPE}"\n[vary.a]\n"b/c" = []', r"vary.a: found 'b/c', expected a name of letters"),
        (f'recipe = "{RECIPE}"\n[vary.a]\nb = ["run.steps=0"]', r"bad.toml: b: .*run.steps: found 0, expected at"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_sweep_is_one_line(
    tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises((ValueError, OSError), match=said):
        load_sweep(tmp_path / "bad.toml")
    assert main(["sweep", str(tmp_path / "bad.toml"), "--dir", str(tmp_path / "runs")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and not (tmp_path / "runs").exists()


def test_no_job_is_refused(sweep: Sweep, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^--jobs: found 0, expected at least 1$"):
        run_sweep(sweep, tmp_path / "runs", 0, (), Runner(), print)


def test_what_a_run_says_goes_to_its_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    for word in ("one", "two"):
        script = f"import sys; print('{word}'); print('error', file=sys.stderr)"
        assert run_process([script], command=(sys.executable, "-c"), log=log) == 0
    assert sorted(log.read_text().split()) == ["error", "error", "one", "two"]
    assert capfd.readouterr() == ("", "")
