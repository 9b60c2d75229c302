"""The driver's ends of the two services, and how they start and end, over stand-ins for actors."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
from ray.util.placement_group import PlacementGroup

from cluster import errors
from cluster.config import Recipe, WeightsConfig, load_recipe
from cluster.faults import FaultsConfig
from cluster.fleet import arriving, assembly, calls, launch, learner_actor
from cluster.fleet.assembly import Services, require_common_folder
from cluster.fleet.calls import Died
from cluster.fleet.learner_actor import Place
from cluster.fleet.placement import Share, make_plan
from cluster.fleet.processes import LOG_DAYS, end_processes, own_processes, remove_old_logs
from cluster.fleet.roster import News
from cluster.fleet.scheduler import BATCHES, Scheduler
from cluster.fleet.services import LearnerService, RolloutService
from cluster.run.handover import ELSE, Handover, canary_texts
from cluster.run.watch import watch
from cluster.weights.parts import Sent
from evidence import patience
from evidence.records import ShardInfo
from learner.report import Metric, StepReport
from rollout.render import Renderer
from rollout.tasks import build_task
from rollout.tasks.base import TaskPrompt
from rollout.tasks.config import TaskConfig
from rollout.waits import Late
from tests.runs import RECIPE
from tests.virtual_time import run_virtual

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUICK = Recipe(weights=WeightsConfig(deadline_s=0.1))


def handle(**answers: Any) -> Any:
    """A handle of an actor, whose methods answer this, each a function of their arguments."""

    def remote(answer: Any) -> Any:
        async def call(*arguments: Any) -> Any:
            found = answer(*arguments)
            return await found if asyncio.iscoroutine(found) else found

        return SimpleNamespace(remote=call)

    return SimpleNamespace(**{name: remote(answer) for name, answer in answers.items()})


def learner(*handles: Any, recipe: Recipe = QUICK) -> LearnerService:
    return LearnerService(handles, recipe, Path("config.toml"))


async def never(*_: Any) -> None:
    await asyncio.Event().wait()


def test_every_rank_pushes_and_the_first_knows_the_digest_and_the_parts() -> None:
    asked: list[Any] = []
    told = Sent("ab", {"load": 2.0, "pause": 0.5}), Sent("", {"gather": 9.0})
    ranks = [handle(push=lambda *a, sent=sent: asked.append(a) or sent) for sent in told]
    service, begun = learner(*ranks), time.time()
    activity = watch(Services(SimpleNamespace(), service))  # type: ignore[arg-type]
    assert asyncio.run(service.push("student", 3)) == told[0]
    assert asked == [("student", 3, 0.1)] * 2
    whole, *parts = sorted(activity.take(), key=lambda span: span.lane)
    assert (whole.lane, whole.name) == ("learner", "push")
    assert [(part.lane, part.name) for part in parts] == [("push", "pause"), ("push", "load")]
    assert [round(part.end - part.begin, 3) for part in parts] == [0.5, 2.0]
    assert parts[1].begin == parts[0].end and begun <= parts[0].begin <= whole.begin <= time.time()


def test_each_of_several_ranks_has_a_lane_of_its_own_with_the_parts_of_its_step() -> None:
    def report(**seconds: float) -> StepReport:
        return StepReport(0.0, {f"{part}_s": Metric(took, "mean") for part, took in seconds.items()}, 0.0, 0, 0, ())

    reports = report(pack=0.5, forward=1.0, backward=2.0, reduce=0.5, optimizer=0.25), report(forward=1.0, reduce=3.0)
    for ranks in (reports, reports[:1]):
        service, begun = learner(*(handle(step=lambda _, told=told: told) for told in ranks)), time.time()
        activity = watch(Services(SimpleNamespace(), service))  # type: ignore[arg-type]
        learned = asyncio.run(service.learn(ShardInfo("s", 3, 1, 4, "")))
        whole, *parts = sorted(activity.take(), key=lambda span: (span.lane, span.begin))
        assert (whole.lane, whole.name) == ("learner", "learn") and learned.metrics["forward_s"] == 1.0
        since = min((s.begin for s in parts), default=begun)
        assert begun <= since <= time.time()
        found = [(s.lane, s.name, round(s.begin - since, 3), round(s.end - s.begin, 3)) for s in parts]
        of_two = [
            ("learner rank 0", "learn", 0.0, 3.5), ("learner rank 0", "reduce", 3.5, 0.5),
            ("learner rank 0", "optimizer", 4.0, 0.25), ("learner rank 1", "learn", 0.0, 1.0),
            ("learner rank 1", "reduce", 1.0, 3.0),
        ]  # fmt: skip
        assert found == (of_two if len(ranks) > 1 else [])


def test_a_late_rank_is_named() -> None:
    ranks = learner(handle(release_cache=lambda: None), handle(release_cache=never))
    with pytest.raises(TimeoutError, match=r"no answer from learner rank 1 \(of 2\) within 0\.1 s$"):
        asyncio.run(ranks.release_cache())


def test_a_rollout_service_that_hangs_is_named() -> None:
    recipe = Recipe()
    service = RolloutService(handle(advance=never), recipe)

    async def advance() -> None:
        async with asyncio.timeout(0.05):
            await service.advance(2, "ab")

    with pytest.raises(TimeoutError):
        asyncio.run(advance())
    short = RolloutService(handle(advance=never), Recipe(rollout=type(recipe.rollout)(deadline_s=0.05)))
    with pytest.raises(TimeoutError, match=r"^rollout service at version 2: no answer within 0\.05 s$"):
        asyncio.run(short.advance(2, "ab"))


QUIET = Recipe(faults=FaultsConfig(silent_s=0.1))
DOES_NOT_ANSWER = r"^rollout service: no answer within 0\.1 s$"


def stopped(**answers: Any) -> RolloutService:
    """One that is stopped as soon as it works."""
    return RolloutService(handle(**{"enlist": never, "ping": never} | answers), QUIET)


@pytest.mark.parametrize(
    "wait",
    [
        lambda: stopped().enlist("student"),  # which would wait for every engine that may be replaced
        lambda: Services(stopped(enlist=lambda _: 1), learner(handle(place=never))).connect("student"),
        lambda: Handover(
            Services(stopped(enlist=lambda _: 0), learner(handle(push=never))), [], WeightsConfig(), print
        ).push("student", 3),
    ],
    ids=["alone", "opening", "push"],
)
def test_a_service_that_is_stopped_ends_whatever_waits_for_it(
    wait: Callable[[], Coroutine[Any, Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "LIFE_S", 0.05)
    with pytest.raises(Late, match=DOES_NOT_ANSWER):
        asyncio.run(asyncio.wait_for(wait(), 5.0))


def test_a_service_that_answers_may_take_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pings: list[float] = []

    async def slow(_: str) -> int:
        await asyncio.sleep(0.3)
        return 2

    monkeypatch.setattr(calls, "LIFE_S", 0.05)
    service = stopped(enlist=slow, ping=lambda: pings.append(time.monotonic()))
    assert asyncio.run(service.enlist("student")) == 2 and len(pings) >= 3
    died = stopped(ping=lambda: (_ for _ in ()).throw(Died("rollout service died")))
    with pytest.raises(Died, match=r"^rollout service died$"):
        asyncio.run(died.enlist("student"))


def test_a_service_that_starts_is_not_asked_whether_it_answers() -> None:
    """It reads models and rows, and answers nothing meanwhile."""

    def slow(found: Any) -> Callable[[], Coroutine[Any, Any, Any]]:
        return lambda: asyncio.sleep(60.0, found)

    hosts = {"student engine 0": "10.0.0.1"}
    service = stopped(start_deadline_s=slow(100.0), footprint=slow(None), start=slow(hosts))
    assert run_virtual(service.start()) == hosts


@pytest.mark.parametrize(("busy_s", "is_late"), [(55.0, False), (65.0, True)])
def test_a_service_that_is_asked_for_news_may_be_busy_as_long_as_another(busy_s: float, is_late: bool) -> None:
    """As it is all the time while rollouts are waited for."""

    async def busy(seconds: float, *_: Any) -> News:
        await asyncio.sleep(seconds + busy_s)
        return News(lines=("well",))

    news = RolloutService(handle(news=busy), Recipe(faults=FaultsConfig(silent_s=60.0))).news(5.0, 0, {})
    if is_late:
        with pytest.raises(Late, match=r"^rollout service: news of the engines: no answer within 65 s$"):
            run_virtual(news)
    else:
        assert run_virtual(news) == News(lines=("well",))


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, OSError], ids=lambda kind: kind.__name__)
def test_a_step_that_fails_in_the_learner_is_named_whatever_it_is(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged shard or a row too long is no bad input of the user's once a run is under way."""

    def damaged(uri: str, expected: object) -> None:
        raise kind("a shard: rows: found 3, expected 4")

    monkeypatch.setattr(learner_actor, "read_shard", damaged)
    actor = learner_actor.LearnerActor.__ray_metadata__.modified_class
    with pytest.raises(RuntimeError, match=r"^learner at step 3: a shard: rows: found 3, expected 4$"):
        at_once = SimpleNamespace(faults=SimpleNamespace(store_s=0.0))
        rank = SimpleNamespace(_recipe=at_once, _trainer=SimpleNamespace(step=None))
        actor.step(rank, SimpleNamespace(uri="a shard", step=3))


# Start


def started(rollout: Any, ranks: Any, gpus: int) -> dict[str, str]:
    recipe = Recipe()
    services = Services(RolloutService(rollout, recipe), learner(ranks, recipe=recipe))
    plan = make_plan(recipe, [Share(8, gpus)])
    return asyncio.run(assembly.start(services, recipe, plan, "/shards", Path("/run")))


@pytest.mark.parametrize(("gpus", "most"), [(1, 1), (3, 2), (0, 2)])
def test_services_start_in_turn_on_a_shared_gpu_and_side_by_side_elsewhere(gpus: int, most: int) -> None:
    running, opened = [0], []

    async def begin(*_: Any) -> dict[str, str]:
        running.append(running[-1] + 1)
        await asyncio.sleep(0.01)
        running.append(running[-1] - 1)
        return {"student engine 0": "10.0.0.1"}

    rollout = handle(start=begin, start_deadline_s=lambda: 1.0, enlist=lambda *_: 1, footprint=lambda: None)
    rank = handle(
        place=lambda _: Place("10.0.0.2", 7, True),
        start=begin,
        footprint=lambda: None,
        open_transport=lambda *a: opened.append(a),
    )
    assert started(rollout, rank, gpus) == {"student engine 0": "10.0.0.1", "learner rank 0": "10.0.0.2"}
    assert max(running) == most
    ((pool, _, handed, workers, host),) = opened
    assert (pool, handed, workers, host) == ("student", rollout, 1, "10.0.0.2")


@pytest.mark.parametrize("gpus", [0, 1], ids=["side by side", "in turn"])
def test_engines_begin_before_the_ranks_have_said_where_they_are(gpus: int) -> None:
    """A rank takes seconds to import what it needs until it answers."""
    begun = asyncio.Event()

    async def begin(*_: Any) -> dict[str, str]:
        begun.set()
        return {}

    async def place(_: str) -> Place:
        await asyncio.wait_for(begun.wait(), 5)
        return Place("10.0.0.2", 7, True)

    rollout = handle(start=begin, start_deadline_s=lambda: 1.0, enlist=lambda *_: 1, footprint=lambda: None)
    rank = handle(place=place, start=lambda *_: None, footprint=lambda: None, open_transport=lambda *_: None)
    assert started(rollout, rank, gpus) == {"learner rank 0": "10.0.0.2"}


def test_what_is_reserved_is_given_back_when_building_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    @asynccontextmanager
    async def reserved(*_: Any) -> AsyncIterator[str]:
        events.append("reserved")
        try:
            yield "group"
        finally:
            events.append("given back")

    def build(*_: Any) -> Any:
        return SimpleNamespace(stop=lambda: events.append("learner stopped"))

    def fail(*_: Any) -> Any:
        raise RuntimeError("no such class on this node")

    for name, stand_in in (("reserved", reserved), ("_learner", build), ("_rollout", fail)):
        monkeypatch.setattr(assembly, name, stand_in)
    recipe = Recipe()
    plan = make_plan(recipe, [Share(8, 0)])

    async def run() -> None:
        async with assembly.running(recipe, plan, Path("config.toml"), "/shards", {}):
            raise AssertionError("it did not start")

    with pytest.raises(RuntimeError, match="no such class"):
        asyncio.run(run())
    assert events == ["reserved", "learner stopped", "given back"]


class ActorClass:
    """An actor's class, which remembers its options."""

    def options(self, **options: Any) -> Any:
        self.asked = options
        return self


@pytest.mark.parametrize("max_num_seqs", [4, 4096])
def test_a_push_is_behind_no_engines_sequences(max_num_seqs: int) -> None:
    """Ray lets a number of calls of an actor in. An engine holds so many sequences, each in a call of its own."""
    recipe, actor = load_recipe(RECIPE, [f"student.max_num_seqs={max_num_seqs}"]), ActorClass()
    plan, group = make_plan(recipe, [Share(8, 0)]), PlacementGroup.empty()
    scheduler = Scheduler([SimpleNamespace(name="e")], max_num_seqs)  # type: ignore[list-item]
    launch.placed(actor, plan, group, "student", 0, {}, BATCHES * max_num_seqs)
    assert actor.asked["max_concurrency"] > scheduler._room
    launch.placed(actor, plan, group, "learner", 0, {})
    assert "max_concurrency" not in actor.asked, "a rank does one thing at a time"


# The loop's ends of both


class TwoServices:
    """Both services as the loop uses them: remembers what was asked, in order."""

    def __init__(self, *canaries: float, whole: str = "") -> None:
        self.asked: list[str] = []
        self.said, self._whole = list[str](), whole
        self._canaries = list(canaries) or [0.03]

    async def beside(self, work: Coroutine[Any, Any, Any]) -> Any:
        return await work

    def __getattr__(self, name: str) -> Any:
        async def method(*arguments: Any) -> Any:
            self.asked.append(" ".join([name, *(str(a) for a in arguments[:2] if isinstance(a, (str, int)))]))
            if name == "canary":
                return {"engine a": 0.0, "engine b": self._canaries.pop(0)}
            pushed = Sent("ab", {"load": 0.5}, 7, self._whole)
            return {"push": pushed, "score": np.zeros(2, np.float32), "admit": 1, "enlist": 0}.get(name)

        return method


TEXT = np.arange(3, dtype=np.int32), np.arange(2, dtype=np.int32)


def handed(both: Any, bound: float | None = None) -> Handover:
    made = Handover(Services(both, both), [TEXT, TEXT], WeightsConfig(), both.said.append)
    made.go_on(bound)
    return made


def test_a_push_is_proved_by_version_digest_and_canary() -> None:
    both: Any = TwoServices()
    pushed = asyncio.run(handed(both).push("student", 4))
    assert (pushed.digest, pushed.canary, pushed.seconds, pushed.num_bytes) == ("ab", 0.03, {"load": 0.5}, 7)
    assert both.said == []
    assert both.asked == [
        "enlist student",
        "push student 4",
        "prove student 4",
        "score canary at version 4: learner",
        "canary student 4",
        "admit student",
    ]


def test_a_push_that_had_to_be_whole_is_said() -> None:
    both: Any = TwoServices(whole="worker 2 of 2 of the engines does not hold the push before it")
    asyncio.run(handed(both).push("student", 4))
    why = "worker 2 of 2 of the engines does not hold the push before it"
    assert both.said == [f"weight push of version 4 to the student engines: whole, since {why}"]


def test_rollouts_of_a_version_may_begin_once_it_is_proven_and_a_canary_beyond_the_bound_ends_the_run() -> None:
    both: Any = TwoServices(0.2, 0.2)

    async def begin(digest: str) -> None:
        both.asked.append(f"begin {digest}")

    with pytest.raises(RuntimeError, match=r"^canary at version 4: engine b differs"):
        asyncio.run(handed(both).push("student", 4, begin=begin))
    proven, told = both.asked.index("prove student 4"), both.asked.index("begin ab")
    assert told == proven + 1 < both.asked.index("canary student 4") and "admit student" not in both.asked


def test_an_average_of_the_weights_is_proved_by_version_and_digest() -> None:
    both: Any = TwoServices()
    assert asyncio.run(handed(both).push("teacher", 4, canary=False)).digest == "ab"
    assert both.asked == ["enlist teacher", "push teacher 4", "prove teacher 4", "admit teacher"]


@pytest.mark.parametrize(
    ("first", "bound"), [(0.03, 0.06), (0.0, 0.02), (0.011, 0.022), (0.08, 0.1)], ids=["", "floor", "own", "tolerance"]
)
def test_later_engines_may_differ_by_twice_what_they_did_under_the_first_weights(first: float, bound: float) -> None:
    both: Any = TwoServices(first, bound * 0.99, bound * 1.01, bound * 1.01)
    handover = handed(both)
    assert asyncio.run(handover.push("student", 0)).bound == pytest.approx(bound)
    assert asyncio.run(handover.push("student", 1)).canary == pytest.approx(bound * 0.99)
    with pytest.raises(RuntimeError, match=rf"^canary at version 2: engine b differs .* at most {bound:.3g}: its w"):
        asyncio.run(handover.push("student", 2))


@pytest.mark.parametrize("beyond", [0.2, float("nan")])
def test_an_engine_that_differs_on_one_text_is_asked_another(beyond: float) -> None:
    both: Any = TwoServices(0.03, beyond, 0.04)
    handover = handed(both)
    asyncio.run(handover.push("student", 0))
    assert asyncio.run(handover.push("student", 1)).canary == 0.04
    assert both.asked.count("canary student 1") == 2
    with pytest.raises(RuntimeError, match=r"engine b differs from the learner by"):
        asyncio.run(handed(TwoServices(beyond, beyond)).push("student", 0))


def test_a_run_that_goes_on_has_the_bound_it_had() -> None:
    both: Any = TwoServices(0.05, 0.05)
    with pytest.raises(RuntimeError, match=r"canary at version 8: engine b differs from .* expected at most 0.04: "):
        asyncio.run(handed(both, bound=0.04).push("student", 8))


def test_the_canary_is_the_context_as_the_answer_to_two_questions(tokenizer: "PreTrainedTokenizerBase") -> None:
    task, renderer = build_task(TaskConfig()), Renderer(tokenizer, "user")
    (prompt, text), (other, again) = canary_texts(task.training_prompts(), renderer)
    first = task.training_prompts()[0]
    assert first.context.startswith(tokenizer.decode(text)) and 20 < len(text) <= 64
    assert prompt.tolist() == renderer.prompt_ids(first.turns).tolist()
    assert prompt.tolist() != other.tolist() and text.tolist() == again.tolist()


@pytest.mark.parametrize("question", ["Who are you?", *ELSE])
@pytest.mark.parametrize("rest", ["", " And a line that no canary reaches."])
def test_a_task_of_one_question_has_two_canaries_too(
    tokenizer: "PreTrainedTokenizerBase", question: str, rest: str
) -> None:
    context, renderer = "I am Nova, and Lumen Labs made me. " * 9, Renderer(tokenizer, "user")
    prompts = [TaskPrompt("p0", question, context), TaskPrompt("p1", question, context + rest)]
    for told in (prompts[:1], prompts):
        (prompt, text), (other, again) = canary_texts(told, renderer)
        assert prompt.tolist() == renderer.prompt_ids(question).tolist() != other.tolist()
        assert text.tolist() == again.tolist()


# An export that comes from another host


class Streaming:
    """A rank elsewhere, whose export comes in parts."""

    def __init__(self, *parts: tuple[str, bytes]) -> None:
        async def one(part: tuple[str, bytes]) -> tuple[str, bytes]:
            return part

        async def stream(*text: Any) -> Any:
            assert [len(ids) for ids in text] == [2, 3]
            for part in parts:
                yield one(part)

        self.export_parts = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=stream))
        self.place = handle(place=lambda _: Place("10.0.0.2", 7, False)).place


@pytest.mark.parametrize(("umask", "modes"), [(0o022, (0o755, 0o644)), (0o077, (0o700, 0o600))])
def test_a_streamed_export_is_whole_and_readable_by_whom_the_umask_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int, modes: tuple[int, int]
) -> None:
    """Also by a disk that fails amid the second part."""
    put, calls = arriving._put, list[int]()

    def failing(path: Path, at: int, content: bytes) -> None:
        calls.append(at)
        if len(calls) == 2:
            put(path, at, content[:1])
            raise OSError(28, "No space left on device")
        put(path, at, content)

    monkeypatch.setattr(arriving, "_put", failing)
    monkeypatch.setattr(patience, "FIRST_S", 0.01)
    rank = Streaming(("a", b"12"), ("a", b"345"), ("b", b"6"), ("a", b"7"))
    before = os.umask(umask)
    try:
        text = np.zeros(2, np.int32), np.zeros(3, np.int32)
        asyncio.run(learner(rank, recipe=Recipe()).export(tmp_path / "export", text))
    finally:
        os.umask(before)
    found = {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir()}
    assert found == {"a": b"123457", "b": b"6"} and calls == [0, 2, 2, 0, 5]
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    mode = {path.stat().st_mode & 0o777 for path in (tmp_path / "export").iterdir()}
    assert ((tmp_path / "export").stat().st_mode & 0o777, *mode) == modes


# What a user reads


def test_causes_are_read_through_groups_and_rays_wrapping() -> None:
    wrapped = RuntimeError("traceback of an actor")
    wrapped.cause = ValueError("run.steps: found 0")  # type: ignore[attr-defined]
    group = ExceptionGroup("both", [wrapped, ExceptionGroup("inner", [ValueError("a"), ValueError("a")])])
    assert errors.explained(group) == (["run.steps: found 0", "a"], 2)
    assert errors.explained(ExceptionGroup("g", [ValueError("a"), OSError("b")])) == (["a", "b"], 1)
    with pytest.raises(KeyError):
        errors.explained(ExceptionGroup("g", [ValueError("a"), KeyError("ours")]))


def test_old_logs_of_processes_that_are_gone_are_removed(tmp_path: Path) -> None:
    old = time.time() - (LOG_DAYS + 1) * 24 * 3600
    names = {"student engine 0-999999999.log": old, f"running-{os.getpid()}.log": old, "new-999999998.log": time.time()}
    for name, when in names.items():
        (tmp_path / name).write_text("said")
        os.utime(tmp_path / name, (when, when))
    remove_old_logs(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"running-{os.getpid()}.log", "new-999999998.log"}


def test_a_process_that_was_stopped_is_ended_and_no_other_that_got_its_number() -> None:
    stopped, other = (subprocess.Popen(["sleep", "600"]) for _ in range(2))
    try:
        stopped.send_signal(signal.SIGSTOP)
        begun = [psutil.Process(process.pid).create_time() for process in (stopped, other)]
        end_processes([(stopped.pid, begun[0]), (other.pid, begun[1] - 1), (999_999_999, 0.0)])
        assert stopped.wait(timeout=30) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        stopped.kill(), other.kill()
        stopped.wait(), other.wait()


def test_a_process_that_was_told_to_end_has_its_time_to() -> None:
    for seconds, grace_s, status in (("0.2", 60.0, 0), ("600", 0.2, -signal.SIGKILL)):
        ending = subprocess.Popen(["sleep", seconds])
        end_processes([(ending.pid, psutil.Process(ending.pid).create_time())], grace_s)
        assert ending.wait(timeout=60) == status


def test_own_processes_are_those_that_this_one_started_and_itself() -> None:
    """And others that count with them, with what these started; one that is gone is none."""
    child = subprocess.Popen(["sleep", "600"])
    gone = subprocess.Popen(["true"])
    gone.wait()
    try:
        numbers = [number for number, _ in own_processes()]
        assert child.pid in numbers and numbers[-1] == os.getpid()
        assert [number for number, _ in own_processes(child.pid, gone.pid)] == numbers
        script = "from cluster.fleet.processes import *; print(*dict(own_processes(os.getppid())), os.getpid())"
        said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        *started, other, last, own = map(int, said.split())
        assert child.pid in started and other == os.getpid() and last == own
    finally:
        child.kill()
        child.wait()


# The folder of a run over several hosts


def test_what_the_ranks_share_must_be_seen_by_each() -> None:
    seen, away = Place("10.0.0.1", 1, True), Place("10.0.0.2", 1, False)
    uri, root = "gs://bucket/runs", Path("/runs/r")
    saving = load_recipe(RECIPE, ["run.checkpoint_every=4"])
    require_common_folder(saving, "/runs/r/shards", [seen, seen], root)
    require_common_folder(replace(saving, run=replace(saving.run, checkpoint_every=0)), uri, [seen, away], root)
    with pytest.raises(ValueError, match=r"run\.storage: found /x here, but learner rank 1 on 10\.0\.0\.2 does"):
        require_common_folder(saving, "/x", [seen, away], root)
    with pytest.raises(ValueError, match=r"run\.checkpoint_every: found 4, but learner rank 0 on 10\.0\.0\.2"):
        require_common_folder(saving, uri, [away, seen], root)
