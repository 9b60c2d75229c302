"""A sweep: what its file may hold, which runs it makes, and the table over them. Real: tests/engine/test_sweep.py."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from cluster.__main__ import main
from cluster.commands import reproduce
from cluster.commands.reproduce import run_process
from cluster.commands.sweep import Sweep, cards_of, dealt, load_sweep, name_of, run_sweep
from cluster.config import load_recipe
from cluster.errors import Preempted
from cluster.report.sweep import Whole, write_summary
from cluster.run.figures import Gap
from cluster.run.record import ProbeRecord, append_probe, write_gap
from cluster.run.rundir import RunDir
from cluster.sizing.cards import Card, own_cards
from rollout.probe import Rate
from tests.runs import RECIPE, ROOT

TWO_BY_TWO = f"""
recipe = "{RECIPE}"
set = ["probe.require=0.25"]
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
    """Stands for `edge-opd run`: a run with probes at these steps and its last, or what becomes of the run `odd`.

    together: so many have to be under way before one goes on.
    """

    def __init__(self, odd: str = "", becomes: int | Exception = 1, probes: tuple[int, ...] = (0, 8, 16)) -> None:
        self.odd, self.becomes, self.probes, self.ran = odd, becomes, probes, list[str]()
        self.shares: list[Mapping[str, str]] = []
        self.together = threading.Barrier(1)

    def __call__(self, arguments: list[str], log: Path, told: Callable[[], int], environment: Mapping[str, str]) -> int:
        place = RunDir(Path(arguments[arguments.index("--run-dir") + 1]))
        self.ran.append(place.root.name)
        self.shares.append(environment)
        self.together.wait(timeout=300)
        recipe = load_recipe(arguments[1], [arguments[i + 1] for i, part in enumerate(arguments) if part == "--set"])
        place.claim(recipe, place.has_begun)
        place.release()
        log.write_text("what it said")
        if place.root.name == self.odd:
            if isinstance(self.becomes, Exception):
                raise self.becomes
            return self.becomes
        cell, _, seed = place.root.name.rpartition("-seed")
        for step, count in (*zip(self.probes, (1, 2, 3), strict=False), (recipe.run.steps, TOLD[cell][int(seed)])):
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
    assert [*map(name_of, sweep.cells())] == list(TOLD)
    settings = (
        "probe.require=0.25",
        "task.persona_name=Robin",
        "task.maker=Fern Hill",
        "rollout.context_position=user",
    )
    assert sweep.cells()["robin", "user"] == settings


def test_the_shipped_sweeps_are_those_that_their_comments_say() -> None:
    counts = {path.stem: load_sweep(path) for path in (ROOT / "cluster" / "sweeps").glob("*.toml")}
    assert {name: len(one.cells()) * len(one.seeds) for name, one in counts.items()} == {
        "personas": 30,
        "contrast": 75,
        "facts": 6,
        "lag": 21,
    }


def test_runs_are_made_seed_by_seed_and_the_table_is_over_all_and_over_each_value(sweep: Sweep, tmp_path: Path) -> None:
    runner, said, folder = Runner(), list[str](), tmp_path / "runs"
    out = run_sweep(sweep, folder, 1, ["learner.lr=1e-5"], runner, said.append)
    assert runner.ran == [f"{cell}-seed{seed}" for seed in (0, 1) for cell in TOLD]
    assert "robin-system-seed1: probe at step 24: selfname 1.00 (n=8)" in said
    assert "vega-user-seed1: probe at step 24: selfname 0.12 (n=8)  below the 0.25 required" in said
    config = load_recipe(folder / "vega-user-seed1" / "config.toml")
    assert (config.run.seed, config.task.persona_name, config.learner.lr) == (1, "Vega", 1e-5)
    over, _, each = out.read_text().partition("\n\n")
    # Shares: 0.75 1, 0.5 0.5, 0.25 0.75, 0 0.125. Variances over seeds: 1/32, 0, 1/8, 1/128. Changes from 3/8.
    assert over.splitlines()[2:] == [
        "| all | self-name | 8 | 0.12 | 0.62 | 0.48 | 0.50 | 0.00 | 1.00 | 0.20 | 0.62 |",
        "| name robin | self-name | 4 | 0.12 | 0.62 | 0.69 | 0.62 | 0.50 | 1.00 | 0.12 | 0.62 |",
        "| name vega | self-name | 4 | 0.12 | 0.62 | 0.28 | 0.19 | 0.00 | 0.75 | 0.26 | 0.38 |",
        "| position system | self-name | 4 | 0.12 | 0.62 | 0.69 | 0.75 | 0.25 | 1.00 | 0.28 | 0.62 |",
        "| position user | self-name | 4 | 0.12 | 0.62 | 0.28 | 0.31 | 0.00 | 0.50 | 0.06 | 0.38 |",
    ]
    assert each.splitlines()[-1] == "| vega | user | 1 | 0.12 [0.02, 0.47] | 8 | 0.25, not met |"
    data = json.loads((folder / "sweep.json").read_text())
    assert data["over"]["all"]["selfname"]["seeds"] == pytest.approx(((1 / 32 + 1 / 8 + 1 / 128) / 4) ** 0.5)
    (robin,) = (run for run in data["runs"] if run["cell"] == {"name": "robin", "position": "system"} and run["seed"])
    assert robin["probes"]["24"] == {"selfname": {"k": 8, "n": 8}} and robin["required"] == 0.25


def test_so_many_run_at_a_time(sweep: Sweep, tmp_path: Path) -> None:
    runner = Runner()
    runner.together = threading.Barrier(2)
    run_sweep(sweep, tmp_path / "runs", 2, (), runner, lambda _: None, cards=("4", "6"))
    assert len(runner.ran) == 8
    shares = [share["CUDA_VISIBLE_DEVICES"] for share in runner.shares]
    assert all({*pair} == {"4", "6"} for pair in zip(shares[::2], shares[1::2], strict=True))


@pytest.mark.parametrize(
    ("cards", "jobs", "shares", "runs"),
    [
        ("", 2, ["", ""], ""), ("3", 2, ["3", "3"], "2"), ("01", 1, [""], ""), ("3", 1, [""], ""),
        ("0123", 2, ["0,1", "2,3"], ""), ("012", 2, ["0", "1"], ""), ("57", 3, ["5", "7", "5"], "2"),
    ],
)  # fmt: skip
def test_runs_beside_each_other_share_the_cards(cards: str, jobs: int, shares: list[str], runs: str) -> None:
    """runs: how many a card has, where it has several."""
    assert [share.get("CUDA_VISIBLE_DEVICES", "") for share in dealt(cards, jobs)] == shares
    assert {share.get("EDGE_OPD_RUNS_A_CARD", "") for share in dealt(cards, jobs)} == {runs}


def test_runs_that_share_a_card_plan_with_a_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """They start at the same time: none holds yet what it will take."""
    free = [Card(index, "H200", 100, left, "580.65.06", (9, 0)) for index, left in ((0, 99), (1, 10))]
    monkeypatch.setattr("cluster.sizing.cards.find_cards", lambda: free)
    (share, _) = dealt("0", 2)
    for name, value in share.items():
        monkeypatch.setenv(name, value)
    assert [(card.index, card.free, card.total) for card in own_cards()] == [(0, 50, 100)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [card.free for card in own_cards()] == [10]
    monkeypatch.delenv("EDGE_OPD_RUNS_A_CARD")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert [card.free for card in own_cards()] == [99]


def test_the_cards_are_those_that_the_environment_leaves_whatever_it_calls_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = [Card(index, "H200", 1, 1, "580.65.06", (9, 0)) for index in (0, 1)]
    monkeypatch.setattr("cluster.commands.sweep.find_cards", lambda: found)
    assert cards_of({}) == cards_of({"CUDA_VISIBLE_DEVICES": ""}) == ["0", "1"]
    assert cards_of({"CUDA_VISIBLE_DEVICES": "GPU-1a, GPU-2b"}) == ["GPU-1a", "GPU-2b"]
    assert cards_of({"CUDA_VISIBLE_DEVICES": "1, -1, 0"}) == ["1"]  # where CUDA's list ends
    assert cards_of({"CUDA_VISIBLE_DEVICES": "-1"}) == []
    assert cards_of({"RAY_ADDRESS": "10.0.0.1:6379"}) == []


def test_a_run_has_its_share_of_the_cards_in_its_environment(tmp_path: Path) -> None:
    script = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], 'PATH' in os.environ)"
    log = tmp_path / "log"
    assert run_process([script], command=(sys.executable, "-c"), log=log, environment=dealt("01", 2)[1]) == 0
    assert log.read_text() == "1 True\n"


def test_a_change_that_nothing_shows_is_none(sweep: Sweep, tmp_path: Path) -> None:
    out = run_sweep(sweep, tmp_path / "runs", 1, (), Runner(probes=(0,)), lambda _: None)
    assert out.read_text().splitlines()[2].endswith("| 0.20 | - |")


def test_rates_that_some_runs_have_are_over_those(tmp_path: Path) -> None:
    def whole(rates: dict[str, Rate]) -> Whole:
        return Whole([ProbeRecord(step, 0.0, "identity", rates, 4, 2) for step in (0, 24)], {}, 0.0)

    one, both = {"selfname": Rate(1, 2)}, {"selfname": Rate(1, 2), "selfname_third_turn": Rate(3, 4)}
    for first, second in ((one, both), (both, one)):
        out = write_summary(tmp_path, ["name"], {(("a",), 0): whole(first), (("b",), 0): whole(second)})
        rows = out.read_text().splitlines()
        assert "| all | self-name in the third turn | 1 | 0.75 | - | 0.75 | 0.75 | 0.75 | 0.75 | - | - |" in rows
        assert sorted("| - |" in row for row in rows[-2:]) == [False, True]


@pytest.mark.parametrize("becomes", [1, RuntimeError("its process has written nothing"), OSError("no room")])
def test_what_failed_is_named_and_run_again_and_what_is_finished_is_kept(
    sweep: Sweep, tmp_path: Path, becomes: int | Exception
) -> None:
    folder, said = tmp_path / "runs", list[str]()
    failed = r"^sweep: 1 of 8 runs failed: robin-user-seed0; see .*runs/robin-user-seed0.log$"
    with pytest.raises(RuntimeError, match=failed):
        run_sweep(sweep, folder, 1, (), Runner("robin-user-seed0", becomes), said.append)
    assert f"robin-user-seed0: failed, see {folder / 'robin-user-seed0.log'}" in said
    assert becomes == 1 or f"robin-user-seed0: {becomes}" in said
    assert len((folder / "sweep.md").read_text().splitlines()) == 2 + 5 + 1 + 2 + 7
    again = Runner()
    run_sweep(sweep, folder, 1, (), again, said.append)
    assert again.ran == ["robin-user-seed0"]
    with pytest.raises(ValueError, match=r"robin-system-seed0/config.toml: learner.lr: found .*, expected 0.5"):
        run_sweep(sweep, folder, 1, ["learner.lr=0.5"], again, said.append)


@pytest.mark.parametrize("status", [75, -15, 15])
def test_a_sweep_that_is_told_to_end_tells_its_runs_and_begins_no_other(
    status: int, sweep: Sweep, tmp_path: Path
) -> None:
    """A run that does not heed the signal yet ends by it."""

    class Stopped(Runner):
        def __call__(
            self, arguments: list[str], log: Path, told: Callable[[], int], environment: Mapping[str, str]
        ) -> int:
            if len(self.ran) < 2:
                return super().__call__(arguments, log, told, environment)
            self.ran.append("told")
            os.kill(os.getpid(), signal.SIGTERM)
            while not told():
                time.sleep(0.01)
            return status

    runner, said, before = Stopped(), list[str](), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match=r"^sweep: stopped as asked; 2 of 8 runs are finished$"):
        run_sweep(sweep, tmp_path / "runs", 1, (), runner, said.append)
    assert len(runner.ran) == 3 and said[2:] == ["vega-system-seed0: stopped"]
    assert (tmp_path / "runs" / "sweep.md").is_file() and signal.getsignal(signal.SIGTERM) is before


def test_a_run_is_told_as_often_as_the_sweep_and_out_of_reach_of_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce, "LOOK_S", 0.1)
    script = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"told\\n"))  # print may be under way as it is called
print("leads", os.getpid() == os.getsid(0), flush=True)
end = time.monotonic() + 120
while open(LOG).read().count("told") < 2 and time.monotonic() < end:
    time.sleep(0.05)
""".replace("LOG", repr(str(tmp_path / "log")))
    log = tmp_path / "log"

    def told() -> int:
        """Twice in all: a third signal may meet an interpreter that is ending, and has given its handler back."""
        said = log.read_text()
        return min(1 + said.count("told"), 2) if "leads" in said else 0

    assert run_process([script], command=(sys.executable, "-c"), log=log, told=told) == 0
    assert log.read_text().split()[:2] == ["leads", "True"] and log.read_text().count("told") >= 2


def test_cells_that_are_the_same_run_and_a_seed_among_the_settings_are_refused(sweep: Sweep, tmp_path: Path) -> None:
    same = r"two.toml: found the same settings in robin-system and robin-user, expected others"
    with pytest.raises(ValueError, match=same):
        run_sweep(sweep, tmp_path / "runs", 1, ["rollout.context_position=user"], Runner(), print)
    with pytest.raises(ValueError, match=r"^--set run.seed=3: found a seed, expected it in the list `seeds` of .*two"):
        run_sweep(sweep, tmp_path / "runs", 1, ["run.seed=3"], Runner(), print)
    assert not (tmp_path / "runs").exists()


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
        (f'recipe = "{RECIPE}"\nset = ["run.seed=1"]', r"set: found \['run.seed=1'\], expected seeds in the list"),
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


def test_a_sweep_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^.*none\.toml: found no such file, expected a sweep in TOML$"):
        load_sweep(tmp_path / "none.toml")


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
