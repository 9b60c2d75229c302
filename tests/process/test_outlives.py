"""The whole loop over stand-ins for engines and learner, on a clock of its own: driver, rollout service, fleet, shards
and manifest are the real ones. Its engines die and hang while it runs."""

import asyncio
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cluster.config import Recipe, load_recipe
from cluster.default_model import prepare_default_model
from cluster.fleet.assembly import Services
from cluster.fleet.calls import Died
from cluster.fleet.canary import CanaryText
from cluster.fleet.fleet import Fleet
from cluster.fleet.rollout_actor import Rollouts
from cluster.fleet.services import RolloutService
from cluster.observe.sinks import MetricsSink
from cluster.requests import renderer_of
from cluster.run.choice import Choice
from cluster.run.pipeline import Pipeline
from cluster.run.replay import Resumed, catch_up, learned_groups
from cluster.run.rundir import RunDir
from cluster.run.start import shard_metadata
from cluster.run.stop import heeding
from cluster.weights.parts import Sent
from evidence.manifest import Manifest
from evidence.records import Floats, Ids, ShardInfo
from evidence.shards import read_shard
from learner.report import LearnedStep
from rollout.tasks import build_task
from rollout.tokenizer import load_tokenizer
from tests.fakes import fake_logprobs
from tests.runs import RECIPE, SMALL
from tests.unit.test_fleet_machine import Mortal
from tests.virtual_time import run_virtual

STEPS = 8
START_S = 5.0  # of an engine


@pytest.fixture(autouse=True, scope="module")
def read_once() -> Iterator[None]:
    """One tokenizer for the runs of this file, of which each would read it twice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cluster.requests.load_tokenizer", cache(load_tokenizer))
        yield


class Local:
    """A handle of an object in this process, as Ray's of an actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: asyncio.ensure_future(getattr(self._actor, name)(*arguments)))


class Learner:
    """A learner whose weights are called after their version, and whose step takes 2 s. Its transport opens in 3 s, and
    breaks where an engine is lost while it opens or carries."""

    def __init__(self, actor: Any) -> None:
        self._actor, self.opened = actor, list[int]()

    def engine(self, name: str) -> Mortal:
        """Who has this name now."""
        return next(seat.engine for seat in self._actor._fleet.roster.everyone() if seat.name == name)

    async def open_transport(self, pool: str, transport: str, rollout: Any, workers: int) -> None:
        self.opened.append(workers)
        await asyncio.sleep(3.0)
        self._require(pool, workers)

    def _require(self, pool: str, workers: int) -> None:
        if len(self._actor._fleet.roster.enlisted(pool)) < workers:
            raise RuntimeError("the connection is closed")

    async def push(self, pool: str, version: int) -> Sent:
        workers = len(self._actor._fleet.roster.enlisted(pool))
        verbs = {"start_weight_update": (), "update_weights": (f"weights {version}",), "finish_weight_update": ()}
        for verb, arguments in {**verbs, "update_weight_version": (version,)}.items():
            await self._actor.tell(pool, verb, arguments, 20.0)
            self._require(pool, workers)
        return Sent(f"weights {version}")

    async def score(self, what: str, prompt: Ids, text: Ids) -> Floats:
        return fake_logprobs(prompt, text, "base")

    async def learn(self, shard: ShardInfo) -> LearnedStep:
        await asyncio.sleep(2.0)
        return LearnedStep(0.5, {}, 1.0, shard.tokens, 0, [], {})


Acts = dict[float, Callable[[], Any]]


def run(
    folder: Path, faults: dict[float, list[tuple[str, str]]], *overrides: str, acts: Acts | None = None
) -> tuple[list[str], Learner, str]:
    """A run with faults at these seconds: ("died" or "hung", an engine's name), and with these acts. What it learned
    from, the learner, and what was said."""
    recipe = load_recipe(
        RECIPE,
        [
            *SMALL,
            f"run.steps={STEPS}",
            "student.num_engines=2",
            "faults.silent_s=5.0",
            "probe.gap=false",
            f"model.path={prepare_default_model()}",
            *overrides,
        ],
    )
    return run_virtual(drive(recipe, RunDir(folder), faults, acts or {}))


async def drive(recipe: Recipe, folder: RunDir, faults: Any, acts: Acts) -> Any:
    """The services start again with what stands, as in `cluster.run.start`."""
    for part in (folder.shards, folder.student, folder.answers):
        part.mkdir(parents=True)
    made: dict[str, Mortal] = {}

    def make(pool: str, place: int) -> Mortal:
        engine = Mortal(pool, place, "base")
        made[engine.name] = engine
        return engine

    for seconds, hit in faults.items():
        for fault, name in hit:
            begin(seconds, lambda name=name, fault=fault: made[name].suffer(fault))
    for seconds, act in acts.items():
        begin(seconds, act)
    said, resumes = list[str](), False
    while True:
        actor = actor_of(recipe, folder, make)
        learner, sink = Learner(actor), MetricsSink(STEPS)
        sink.say = said.append  # type: ignore[method-assign]
        try:
            await actor.start()
            await serve(recipe, folder, actor, learner, sink, resumes)
        except Died as death:
            said.append(f"{death}; the services start again")
            resumes = True
        else:
            return learned_groups(folder), learner, "\n".join(said)
        finally:
            await actor.stop()


def begin(seconds: float, act: Callable[[], Any]) -> None:
    """So long after the engines have started."""
    asyncio.get_running_loop().call_later(START_S + seconds, act)


def actor_of(recipe: Recipe, folder: RunDir, make: Callable[[str, int], Mortal]) -> Any:
    makers = {pool: [partial(make, pool, place) for place in range(size)] for pool, size in SIZES.items()}
    return Rollouts(recipe, makers, recipe.model.path, str(folder.shards), shard_metadata(recipe, "run"))


async def serve(recipe: Recipe, folder: RunDir, actor: Any, learner: Learner, sink: MetricsSink, resumes: bool) -> None:
    services, resumed = Services(RolloutService(Local(actor), recipe), learner), Resumed()  # type: ignore[arg-type]
    choice = Choice(recipe, services.learner, {})
    if resumes:
        resumed = await catch_up(services.learner, folder, sink, recipe, choice)
        if resumed.version and recipe.run.max_policy_lag:
            await services.rollout.resume(learned_groups(folder))
    with heeding(0.0) as stop:
        task = build_task(recipe.task)
        renderer = renderer_of(recipe, recipe.model.path)
        await Pipeline(recipe, services, folder, sink, renderer, task, stop, choice).run(resumed)


SIZES = {"student": 2, "teacher": 1}
GROUPS = [f"{step:06d}-{slot:03d}" for step in range(STEPS) for slot in range(2)]
EVERYONE = ("student engine 0", "student engine 1", "teacher engine 0")


@pytest.mark.parametrize("lag", [0, 1])
def test_an_undisturbed_run_opens_its_transport_once(tmp_path: Path, lag: int) -> None:
    groups, learner, said = run(tmp_path, {}, f"run.max_policy_lag={lag}")
    assert sorted(groups) == GROUPS and learner.opened == [2] and "replaced" not in said


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("fault", ["died", "hung"])
@pytest.mark.parametrize("hit", [EVERYONE[:2], EVERYONE[2:], EVERYONE], ids=len)
@pytest.mark.parametrize("seconds", [1.0, 8.5])
def test_each_group_is_learned_once_whoever_is_lost(
    tmp_path: Path, lag: int, fault: str, hit: tuple[str, ...], seconds: float
) -> None:
    groups, learner, said = run(tmp_path, {seconds: [(fault, name) for name in hit]}, f"run.max_policy_lag={lag}")
    assert sorted(groups) == GROUPS
    assert all(name in said for name in hit) and said.count("; it is replaced") == len(hit)
    back = re.findall(r"^(.+) serves again, \d+\.\d s after it was lost$", said, re.MULTILINE)
    assert sorted(back) == sorted(hit)
    assert len(learner.opened) > 1 or not any("student" in name for name in hit)


@pytest.mark.parametrize("hit", [EVERYONE[:1], EVERYONE[:2]], ids=len)
def test_an_engine_that_is_lost_while_the_transport_opens_is_replaced(tmp_path: Path, hit: tuple[str, ...]) -> None:
    groups, learner, said = run(tmp_path, {1.0: [("died", name) for name in hit]})
    assert sorted(groups) == GROUPS and said.count("; it is replaced") == len(hit)
    assert len(learner.opened) > 1 and learner.opened[0] == 2 == learner.opened[-1]


@pytest.mark.parametrize(("seconds", "hit"), [(0.0, ()), (10.5, EVERYONE[:1]), (13.0, EVERYONE[2:])], ids=str)
def test_a_group_whose_engine_is_lost_has_its_time_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, hit: tuple[str, ...]
) -> None:
    """Sampled for 3 s, scored for 2; a successor starts for 5, and a student's has weights after 7 more."""
    monkeypatch.setitem(SIZES, "student", 1)
    only = "student.num_engines=1", "rollout.deadline_s=8.0"
    groups, _, said = run(tmp_path, {seconds: [("died", name) for name in hit]}, *only)
    assert sorted(groups) == GROUPS and said.count("; it is replaced") == len(hit)


@pytest.mark.parametrize("hit", [(), EVERYONE[:1]], ids=len)
def test_so_has_a_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hit: tuple[str, ...]) -> None:
    own = Mortal.texts

    async def texts(engine: Mortal, *arguments: Any) -> list[list[str]]:
        await engine._work(2.0)
        return await own(engine, *arguments)

    monkeypatch.setattr(Mortal, "texts", texts)
    monkeypatch.setitem(SIZES, "student", 1)
    only = "student.num_engines=1", "rollout.deadline_s=10.0"
    groups, _, said = run(tmp_path, {10.5: [("died", name) for name in hit]}, *only)
    assert sorted(groups) == GROUPS and said.count("; it is replaced") == len(hit)


def test_a_push_waits_for_as_many_starts_as_the_fleet_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only engine is lost before a push, and the next two hang while they start."""
    start, learn, started = Mortal.start, Learner.learn, list[str]()

    async def learn_and_lose(learner: Learner, shard: ShardInfo) -> LearnedStep:
        learned = await learn(learner, shard)
        if shard.step == 1:
            learner.engine(EVERYONE[0]).suffer("died")
        return learned

    async def hangs(engine: Mortal) -> str:
        started.extend([engine.name] * ("student" in engine.name))
        if len(started) in (2, 3):
            engine.suffer("hung")
        return await start(engine)

    monkeypatch.setattr(Mortal, "start", hangs)
    monkeypatch.setattr(Learner, "learn", learn_and_lose)
    monkeypatch.setitem(SIZES, "student", 1)
    groups, _, said = run(tmp_path, {}, "student.num_engines=1", "student.start_deadline_s=10.0")
    assert sorted(groups) == GROUPS and len(started) == 4
    assert said.count("start of student engine 0: no answer within 10 s; it is replaced") == 2


def test_services_start_once_more_where_an_engine_hangs_as_they_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, learn, started = Mortal.start, Learner.learn, list[str]()

    async def dies_once(learner: Learner, shard: ShardInfo) -> LearnedStep:
        if shard.step == 1 and len(started) == 1:
            raise Died("learner rank 0 died")
        return await learn(learner, shard)

    async def hangs_once(engine: Mortal) -> str:
        started.extend([engine.name] * (engine.name == EVERYONE[0]))
        if len(started) == 2:
            engine.suffer("hung")
        return await start(engine)

    monkeypatch.setattr(Mortal, "start", hangs_once)
    monkeypatch.setattr(Learner, "learn", dies_once)
    groups, _, said = run(tmp_path, {}, "student.start_deadline_s=10.0")
    assert sorted(groups) == GROUPS and len(started) == 3
    assert [line for line in said.splitlines() if "start again" in line] == [
        "learner rank 0 died; the services start again",
        "start of student engine 0: no answer within 10 s; the services start again",
    ]


@pytest.mark.parametrize(("kind", "lag", "amid", "starts"), [
    ("ema", 0, 1, 1), ("ema", 1, 1, 2), ("snapshot", 0, 1, 2), ("snapshot", 1, 1, 2),
    ("ema", 0, STEPS - 1, 1), ("ema", 1, STEPS - 1, 1), ("snapshot", 1, STEPS - 1, 1),
])  # fmt: skip
def test_a_teacher_that_follows_is_lost_while_the_learner_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, lag: int, amid: int, starts: int
) -> None:
    """Where nothing is to be scored with what it held it waits for what it takes next; amid the last step for nothing,
    though the probe takes its time."""
    learn, ask, left = Learner.learn, Mortal.texts, [EVERYONE[2]]

    async def learn_and_lose(learner: Learner, shard: ShardInfo) -> LearnedStep:
        if shard.step == amid and left:
            learner.engine(left.pop()).suffer("died")
        return await learn(learner, shard)

    async def texts(engine: Mortal, *arguments: Any) -> list[list[str]]:
        await engine._work(2.0)
        return await ask(engine, *arguments)

    monkeypatch.setattr(Learner, "learn", learn_and_lose)
    monkeypatch.setattr(Mortal, "texts", texts)
    settings = f"run.max_policy_lag={lag}", f"teacher.kind={kind}", "teacher.snapshot_every=4"
    groups, _, said = run(tmp_path, {}, *settings)
    assert not left and sorted(groups) == GROUPS
    assert said.count("; the services start again") == starts - 1


@pytest.mark.parametrize("kind", ["live", "ema", "snapshot"])
def test_no_rollout_is_scored_by_a_teacher_that_is_older_than_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """With a lag rollouts go on while the canary is scored, and while a long probe is asked between two steps: time
    enough to be sampled and scored."""
    ask, score, every = Mortal.texts, Learner.score, 2 if kind == "snapshot" else 1

    async def texts(engine: Mortal, *arguments: Any) -> list[list[str]]:
        await engine._work(20.0)
        return await ask(engine, *arguments)

    async def canary(learner: Learner, *asked: Any) -> Floats:
        await asyncio.sleep(20.0)
        return await score(learner, *asked)

    monkeypatch.setattr(Mortal, "texts", texts)
    monkeypatch.setattr(Learner, "score", canary)
    settings = f"teacher.kind={kind}", f"teacher.snapshot_every={every}", "run.probe_every=1", "faults.silent_s=60.0"
    run(tmp_path, {}, "run.max_policy_lag=1", *settings)
    shards = Manifest(RunDir(tmp_path).manifest).written().values()
    held = [(shard.step, row) for shard in shards for row in read_shard(shard.uri).to_pylist()]
    assert {row["teacher_version"] for _, row in held} == set(range(0, STEPS - 1, every))  # each step is sampled ahead
    for step, row in held:
        oldest = row["policy_version_min"]
        assert oldest // every * every <= row["teacher_version"] <= step and step - 1 <= oldest


def test_engines_that_are_lost_in_one_push_after_another_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, left = Learner.push, [*EVERYONE[:2], *EVERYONE[:1]]

    async def push(learner: Learner, pool: str, version: int) -> Sent:
        if version == 2 and left:
            asyncio.get_running_loop().call_later(0.5, learner.engine(left.pop(0)).suffer, "died")
        return await own(learner, pool, version)

    monkeypatch.setattr(Learner, "push", push)
    groups, learner, said = run(tmp_path, {})
    assert not left and sorted(groups) == GROUPS and said.count("; it is replaced") == 3
    assert learner.opened[0] == 2 == learner.opened[-1]


def test_who_says_the_adapters_base_for_the_first_time_has_weights_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student's engines are the teacher: all of them are lost while they score the text of the first start."""
    own, left = Fleet.teacher_scores, list(EVERYONE[:2])

    async def scores(fleet: Fleet, *text: Ids) -> Floats:
        for seat in fleet.roster.seats["student"] if left else ():
            seat.engine.suffer("died")  # type: ignore[attr-defined]
            left.remove(seat.name)
        return await own(fleet, *text)

    monkeypatch.setattr(Fleet, "teacher_scores", scores)
    monkeypatch.setitem(SIZES, "teacher", 0)
    groups, _, said = run(tmp_path, {}, "learner.lora_rank=8", "student.dtype=float32")
    assert not left and sorted(groups) == GROUPS and said.count("serves again") == 2
    assert "the services start again" not in said


def test_engines_that_hang_as_they_wake_and_as_they_are_checked_are_replaced(tmp_path: Path) -> None:
    """One after the other, each for as long as it may."""
    recipe = load_recipe(RECIPE, [*SMALL, "student.num_engines=2", "weights.deadline_s=20.0"])
    made: dict[str, Mortal] = {}

    def make(pool: str, place: int) -> Mortal:
        return made.setdefault(f"{pool} {place} {len(made)}", Mortal(pool, place, "base"))

    async def drive() -> tuple[float, str]:
        actor = actor_of(recipe, RunDir(tmp_path), make)
        await actor._fleet.roster.start()
        ids = np.arange(3, dtype=np.int32)
        actor._fleet.roster.reference = CanaryText(ids, ids, fake_logprobs(ids, ids, "base")), 0.1
        service, loop = RolloutService(Local(actor), recipe), asyncio.get_running_loop()
        begun, (student, _, teacher) = loop.time(), list(made.values())
        student.suffer("hung")
        loop.call_later(1.5, teacher.suffer, "hung")
        await service.wake_up()
        lines = (await service.news(0.0, 0, {})).lines
        took = loop.time() - begun
        await actor._fleet.stop()
        return took, "\n".join(lines)

    took, said = run_virtual(drive())
    assert 40.0 <= took < 50.0 and all(f"from {name} (of" in said for name in (EVERYONE[0], EVERYONE[2]))


def test_who_waits_for_an_engine_that_hangs_while_the_transport_opens_is_not_lost_with_it(tmp_path: Path) -> None:
    """As over gloo, where all meet: the others' rendezvous fails. They stay, and one that fails alone is told."""

    class Meeting(Mortal):
        async def tell(self, verb: str, *arguments: Any) -> None:
            await self._work(20.0)
            raise RuntimeError("not everybody came")

    async def drive() -> tuple[list[bool], list[str]]:
        actor = actor_of(load_recipe(RECIPE, list(SMALL)), RunDir(tmp_path), lambda *place: Meeting(*place, "base"))
        roster = actor._fleet.roster
        await roster.start()
        await roster.enlist("student")
        first, second = [seat.engine for seat in roster.seats["student"]]
        first.suffer("hung")
        await actor.tell("student", "init_weight_transfer_engine", ({},), 30.0)
        kept = [seat.has(engine) for seat, engine in zip(roster.seats["student"], (first, second), strict=True)]
        assert await roster.enlist("student")  # the transport is to be opened to it alone
        with pytest.raises(RuntimeError, match="not everybody came"):
            await actor.tell("student", "init_weight_transfer_engine", ({},), 30.0)
        await actor.stop()
        return kept, roster._lines

    kept, lines = run_virtual(drive())
    assert kept == [False, True] and len(lines) == 1 and "from student engine 0 (of 2)" in lines[0]


def test_a_transport_that_does_not_open_to_engines_that_stand_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object) -> None:
        raise RuntimeError("the port is taken")

    monkeypatch.setattr(Learner, "open_transport", fails)
    with pytest.raises(RuntimeError, match="the port is taken"):
        run(tmp_path, {})


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(("every", "found"), [(2, 1), (0, 0)])
def test_a_frozen_teacher_that_loses_its_weights_amid_a_run_is_named_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, found: int
) -> None:
    own = Learner.learn

    async def learn(learner: Learner, shard: ShardInfo) -> LearnedStep:
        if shard.step == 2:
            learner.engine(EVERYONE[2]).model = "lost"
        return await own(learner, shard)

    monkeypatch.setattr(Learner, "learn", learn)
    groups, _, said = run(tmp_path, {}, f"faults.teacher_check_every={every}")
    what = r"check of the frozen teacher: teacher engine 0 differs from the first one by .*; it is replaced"
    assert sorted(groups) == GROUPS and len(re.findall(what, said)) == found


@pytest.mark.parametrize(("bound", "ends"), [(STEPS - 1, True), (STEPS, False)])
def test_updates_that_are_skipped_end_a_run_beyond_their_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: int, ends: bool
) -> None:
    async def learn(learner: Learner, shard: ShardInfo) -> LearnedStep:
        return LearnedStep(0.5, {}, 1.0, shard.tokens, 0, [], {}, nonfinite_updates=1)

    monkeypatch.setattr(Learner, "learn", learn)
    settings = "faults.nonfinite=skip", f"faults.max_nonfinite={bound}"
    if not ends:
        assert sorted(run(tmp_path, {}, *settings)[0]) == GROUPS
        return
    with pytest.raises(RuntimeError, match=f"found {STEPS} rollouts and updates that are not finite, expected at most"):
        run(tmp_path, {}, *settings)


@pytest.mark.parametrize("seconds", [0.0, 8.5, 12.0])
def test_a_disk_that_is_read_only_for_a_while_ends_no_run(disk: Path, seconds: float) -> None:
    def mount(how: str) -> Callable[[], Any]:
        return partial(subprocess.run, ["mount", "-o", f"remount,{how}", str(disk)], check=True)

    groups, _, _ = run(disk, {}, acts={seconds: mount("ro"), seconds + 100.0: mount("rw")})
    assert sorted(groups) == GROUPS


def test_a_disk_that_stays_read_only_ends_it_within_the_deadline_with_one_line(disk: Path) -> None:
    mount = partial(subprocess.run, ["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(OSError, match=r"Read-only file system: .*") as caught:
        run(disk, {}, "faults.store_s=20.0", acts={8.5: mount})
    assert "\n" not in str(caught.value)
    learned_groups(RunDir(disk))  # what stood before still opens
