"""The observer: what it asks, whom it feeds, and that nothing that it meets can stop or slow a run."""

import asyncio
import json
import re
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cluster.errors import Preempted
from cluster.faults import FaultsConfig
from cluster.fleet.calls import Died
from cluster.fleet.fleet import Fleet
from cluster.fleet.scheduler import EnginePool, Scheduler
from cluster.observe.files import SAMPLES, TRACE, FileSink
from cluster.observe.observer import Answer, Batch, Feeder, Observer, Sink
from cluster.observe.timeline import CALLS, watching
from cluster.run.boundary import ending
from evidence.telemetry import (
    Activity,
    EngineState,
    Sample,
    Span,
    append_samples,
    append_spans,
    joined,
    read_samples,
    read_spans,
    shares,
)
from rollout.config import EngineConfig, SamplingConfig
from rollout.tally import FIGURES, Tally
from rollout.waits import Late
from tests.fakes import FakeEngine
from tests.observed import a_sample, spans_of
from tests.unit.test_record import a_probe, a_step
from tests.unit.test_stream import Engines, settle, stream_of

SLOWED_S = 0.5  # of a loop: far below what hangs, and above what else the machine does meanwhile
SAMPLE = Sample(
    time=100.0,
    version=3,
    groups={"sampling": 2, "scoring": 1, "done": 4},
    oldest_group_s=1.5,
    waiting={"student": 0, "teacher": 7},
    engines={"student engine 0": EngineState("student", True, 512, 8, {"running_requests": 8.0})},
)


class Kept:
    """A sink that keeps what it got."""

    name = "kept"

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.ended = threading.Event()

    def write(self, batch: Batch) -> None:
        self.batches.append(batch)
        if batch.ended:
            self.ended.set()

    def all(self, field: str) -> list[Any]:
        return [one for batch in self.batches for one in getattr(batch, field)]


class Failing(Kept):
    """A sink that fails, or never ends."""

    name = "failing"

    def __init__(self, act: Callable[[], Any]) -> None:
        super().__init__()
        self.act = act

    def write(self, batch: Batch) -> None:
        super().write(batch)
        self.act()


async def answers(seconds: float) -> Answer:
    return SAMPLE, [Span("student engine 0", "sample", 1.0, 2.0)]


async def hangs(seconds: float) -> Answer:
    await asyncio.Event().wait()
    raise AssertionError


async def raises(seconds: float) -> Answer:
    raise KeyError("what")


async def cancelled(seconds: float) -> Answer:
    raise asyncio.CancelledError


def blocked(ask: Any, sinks: Sequence[Sink], steps: int = 20) -> float:
    """The longest that anything kept the loop of a run from its next line, s: what the loop itself waits for is over at
    once, so that the rest is the observer's."""
    longest = 0.0

    async def loop() -> None:
        nonlocal longest
        async with Observer(ask, Activity(), sinks, 0.05, lambda _: None) as observer:
            end = time.perf_counter() + 0.3  # several rounds
            step = 0
            while (begun := time.perf_counter()) < end or step < steps:
                if step < steps:
                    observer.step(a_step(step))
                await asyncio.sleep(0)
                longest, step = max(longest, time.perf_counter() - begun), step + 1

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("cluster.observe.observer.CLOSE_S", 0.1)
        asyncio.run(loop())
    return longest


def test_a_question_and_a_sink_that_hang_slow_the_loop_by_nothing() -> None:
    """Each would hold a loop that waits for it for as long as it hangs, and the first question is late after 0.05 s."""
    never = threading.Event()
    slow = Failing(lambda: never.wait(120))
    try:
        found = min(blocked(hangs, [slow, Kept()]) for _ in range(3))  # a busy machine may hold a loop too
    finally:
        never.set()
    assert found < SLOWED_S and slow.batches


def test_a_loop_that_waits_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def waits(self: Observer, record: Any) -> None:
        time.sleep(2 * SLOWED_S)

    monkeypatch.setattr(Observer, "step", waits)
    assert blocked(answers, [Kept()], steps=1) > SLOWED_S


def observed(ask: Any, sinks: Sequence[Sink], steps: int = 5, close_s: float = 300.0) -> list[str]:
    """A loop of `steps` steps under an observer that has two samples at least: what was said."""
    said, asked = list[str](), list[float]()

    async def counted(seconds: float) -> Answer:
        asked.append(seconds)
        answer: Answer = await ask(seconds)
        return answer

    async def loop() -> None:
        async with Observer(counted, Activity(), sinks, 0.05, said.append) as observer:
            for step in range(steps):
                await asyncio.sleep(0.03)
                observer.step(a_step(step))
            observer.probe(a_probe(steps))
            while len(asked) < 3:
                await asyncio.sleep(0.01)
            await settle()  # what was said last is heard

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("cluster.observe.observer.CLOSE_S", close_s)
        asyncio.run(loop())
    return said


def test_the_sinks_get_every_record_once_and_in_order() -> None:
    sink = Kept()
    observed(answers, [sink])
    assert [record.step for record in sink.all("steps")] == [0, 1, 2, 3, 4]
    assert [record.step for record in sink.all("probes")] == [5]
    assert len(sink.all("samples")) >= 2 and set(map(repr, sink.all("samples"))) == {repr(SAMPLE)}
    assert [batch.ended for batch in sink.batches if batch.ended] == ["finished"]


@pytest.mark.parametrize(
    ("error", "asked"),
    [(None, 2), (Preempted("between two steps"), 2), (Died("rollout service died"), 1)],
    ids=["finished", "stopped", "failed"],
)
def test_what_came_since_the_last_question_is_asked_for_while_the_services_stand(
    error: Exception | None, asked: int
) -> None:
    sink, moments = Kept(), list[float]()

    async def ask(seconds: float) -> Answer:
        moments.append(float(len(moments)))
        return replace(SAMPLE, time=moments[-1]), [Span("learner", "push", moments[-1], moments[-1] + 0.5)]

    async def loop() -> None:
        async with asyncio.timeout(30), Observer(ask, Activity(), [sink], 20.0, print):
            while not sink.batches:
                await asyncio.sleep(0.01)
            if error is not None:
                raise error

    with pytest.raises(type(error)) if error is not None else nullcontext():
        asyncio.run(loop())
    assert sink.ended.wait(60)
    assert [sample.time for sample in sink.all("samples")] == [0.0, 1.0][:asked]
    assert [span.begin for span in sink.all("spans")] == [0.0, 1.0][:asked]


@pytest.mark.parametrize(
    ("ask", "fault"),
    [
        (hangs, "no answer within 0.05 s"),
        (raises, "KeyError: 'what'"),
        (cancelled, "the question was cancelled"),
    ],
    ids=["hangs", "raises", "cancelled"],
)
def test_a_question_that_hangs_or_raises_slows_nothing_and_is_said_once(ask: Any, fault: str) -> None:
    sink = Kept()
    said = observed(ask, [sink], steps=6)
    assert {sample.fault for sample in sink.all("samples")} == {fault} and len(sink.all("samples")) >= 2
    assert said == [f"observe: rollout service: {fault}"]
    assert len(sink.all("steps")) == 6


@pytest.mark.parametrize("error", [OSError("disk full"), ValueError("odd"), RuntimeError("gone")], ids=repr)
def test_a_sink_that_fails_is_said_once_and_the_others_go_on(error: Exception) -> None:
    def fail() -> None:
        raise error

    bad, good = Failing(fail), Kept()
    said = observed(answers, [bad, good])
    assert said == [f"observe: failing: {error}; the run goes on without it"]
    assert len(bad.batches) == 1 and len(good.all("steps")) == 5


def test_a_mistake_of_our_own_in_a_sink_is_said_with_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise TypeError("ours")

    raised: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda failed: raised.append(failed.exc_value))
    good = Kept()
    said = observed(answers, [Failing(fail), good])
    assert said == ["observe: failing: TypeError: ours; the run goes on without it"]
    assert [str(error) for error in raised] == ["ours"] and len(good.all("steps")) == 5


def test_what_is_said_as_the_run_ends_does_not_keep_it_from_ending() -> None:
    """The observer is told to stop in the moment in which it hears of a step."""
    kept = Kept()

    async def loop() -> None:
        async with asyncio.timeout(30), Observer(answers, Activity(), [kept], 20.0, print) as observer:
            while not kept.batches:
                await asyncio.sleep(0.01)
            observer.step(a_step(1))

    asyncio.run(loop())
    assert kept.ended.wait(60) and [step.step for batch in kept.batches for step in batch.steps] == [1]


def test_a_sink_that_hangs_holds_up_itself_only() -> None:
    never, good, returned = threading.Event(), Kept(), list[bool]()
    bad = Failing(lambda: returned.append(never.wait(120)))
    said = observed(answers, [bad, good], close_s=0.1)
    assert said == ["observe: failing: not done 0.1 s after the run's end; what it had still to write may be missing"]
    assert good.ended.wait(120) and returned == []
    never.set()
    assert len(good.all("steps")) == 5 and good.batches[-1].ended == "finished"


def test_a_sink_that_loses_what_is_new_is_said_once_and_one_that_has_failed_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.observe.observer.BACKLOG", 2)
    never = threading.Event()

    def fail() -> None:
        raise OSError("disk full")

    said = observed(answers, [Failing(lambda: never.wait(120))], close_s=0.1)
    assert said == [
        "observe: failing: too far behind the run; what is new until it goes on is lost there",
        "observe: failing: not done 0.1 s after the run's end; what it had still to write may be missing",
    ]
    never.set()
    assert observed(answers, [Failing(fail)]) == ["observe: failing: disk full; the run goes on without it"]


def test_the_end_of_a_run_reaches_a_sink_that_is_far_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.observe.observer.BACKLOG", 2)
    goes_on, written, said = threading.Event(), list[Batch](), list[str]()

    class Slow:
        name = "slow"

        def write(self, batch: Batch) -> None:
            assert goes_on.wait(60)
            written.append(batch)

    feeder = Feeder(Slow(), said.append)
    for number in range(9):
        feeder.put(Batch(float(number)))
    feeder.put(Batch(9.0, ended="finished"))
    feeder.put(None)
    goes_on.set()
    assert feeder.join(60)
    assert written[-1] == Batch(9.0, ended="finished") and 3 <= len(written) <= 4
    assert len(said) == 1 and "slow: too far behind the run" in said[0]


@pytest.mark.parametrize(
    ("error", "asked", "may_restart", "ended"),
    [
        (RuntimeError("the loop's own"), "", True, "failed"),
        (RuntimeError("the loop's own"), "SIGTERM", True, "failed"),
        (Preempted("between two steps"), "SIGTERM", True, "stopped"),
        (asyncio.CancelledError(), "SIGTERM", True, "stopped"),
        (asyncio.CancelledError(), "", True, "failed"),
        (Died("learner rank 1 died"), "", True, "restarting"),
        (ExceptionGroup("", [Died("learner rank 1 died")]), "", True, "restarting"),
        (Late("a push"), "", True, "restarting"),
        (TimeoutError("a disk"), "", True, "failed"),
        (Died("learner rank 1 died"), "", False, "failed"),
        (Died("learner rank 1 died"), "SIGTERM", True, "stopped"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_sinks_are_told_how_a_run_ended(error: BaseException, asked: str, may_restart: bool, ended: str) -> None:
    sink = Kept()
    called: Any = partial(ending, stop=SimpleNamespace(asked=asked), may_restart=lambda: may_restart)  # type: ignore[arg-type]

    async def loop() -> None:
        async with Observer(answers, Activity(), [sink], 0.05, ending=called):
            raise error

    with pytest.raises(type(error)) as caught:
        asyncio.run(loop())
    assert str(caught.value) == str(error)
    assert sink.ended.wait(120) and sink.batches[-1].ended == ended


def test_the_files_hold_what_was_seen(tmp_path: Path) -> None:
    observed(answers, [FileSink(tmp_path)])
    samples, spans = read_samples(tmp_path / SAMPLES), read_spans(tmp_path / TRACE)
    assert len(samples) >= 2 and set(map(repr, samples)) == {repr(SAMPLE)}
    assert set(spans) == {Span("student engine 0", "sample", 1.0, 2.0)}


def test_a_batch_is_one_write_of_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk may take milliseconds for each, and many engines have many spans."""
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", synced.append)
    samples, spans = [a_sample(0.0), a_sample(2.0)], spans_of(0)
    for kept in (0, 1):
        synced.clear()
        FileSink(tmp_path).write(Batch(0.0, samples=tuple(samples), spans=tuple(spans)))
        assert len(synced) == 2 + 2 * (kept == 0)  # the folder's too, once for each new file
    assert read_samples(tmp_path / SAMPLES) == samples * 2
    assert len((tmp_path / TRACE).read_bytes().splitlines()) == 2 * len(spans)


def test_files_that_cannot_be_written_do_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / SAMPLES).mkdir()
    said = observed(answers, [FileSink(tmp_path)])
    assert len(said) == 1 and SAMPLES in said[0]


def test_a_torn_last_line_never_happened_and_a_newer_format_is_refused(tmp_path: Path) -> None:
    samples, spans = tmp_path / SAMPLES, tmp_path / TRACE
    append_samples(samples, [SAMPLE, replace(SAMPLE, fault="late", engines={})])
    append_spans(spans, [Span("driver", "probe", 1.0, 2.0)])
    for path in (samples, spans):
        with path.open("a") as file:
            file.write('{"format": 1, "ti')
    assert read_samples(samples)[0] == SAMPLE and read_samples(samples)[1].fault == "late"
    assert read_spans(spans) == [Span("driver", "probe", 1.0, 2.0)]
    append_spans(spans, [Span("driver", "probe", 3.0, 4.0)])
    assert len(read_spans(spans)) == 2
    spans.write_text(json.dumps({"format": 2}) + "\n")
    with pytest.raises(ValueError, match=r"trace\.jsonl: line 1: .*format: found 2, expected 1"):
        read_spans(spans)
    assert read_spans(tmp_path / "none") == [] and read_samples(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("file", "field", "value", "expected"),
    [
        (SAMPLES, "time", "yesterday", "float"),
        (SAMPLES, "time", None, "float"),
        (SAMPLES, "version", 1.5, "int"),
        (SAMPLES, "version", True, "int"),
        (SAMPLES, "groups", {"done": "4"}, "an object of int"),
        (SAMPLES, "groups", ["done"], "an object of int"),
        (SAMPLES, "groups", 3, "an object of int"),
        (SAMPLES, "fault", 3, "str"),
        (SAMPLES, "time", float("nan"), "a finite number"),
        (TRACE, "end", float("inf"), "a finite number"),
        (TRACE, "begin", -1e308, "a finite number, at most 9e+15 in size"),
        (TRACE, "end", 10**18, "a finite number, at most 9e+15 in size"),
        (SAMPLES, "time", -(10**18), "a finite number, at most 9e+15 in size"),
        (SAMPLES, "version", 10**18, "a finite number, at most 9e+15 in size"),
        (TRACE, "begin", "now", "float"),
        (TRACE, "lane", 1, "str"),
    ],
)
def test_a_field_of_another_kind_is_one_line_of_its_file(
    file: str, field: str, value: object, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / file
    append_samples(tmp_path / SAMPLES, [SAMPLE])
    append_spans(tmp_path / TRACE, [Span("driver", "probe", 1, 2.0)])
    read = read_samples if file == SAMPLES else read_spans
    assert len(read(path)) == 1
    line = json.loads(path.read_text()) | {field: value}
    with path.open("a") as opened:
        opened.write(json.dumps(line) + "\n")
    words = re.escape(f"({field}: found {value!r}, expected {expected}")
    with pytest.raises(ValueError, match=rf"{file}: line 2: found .*{words}"):
        read(path)


def test_an_engines_field_of_another_kind_is_one_line_too(tmp_path: Path) -> None:
    line = asdict(SAMPLE) | {"format": 1}
    line["engines"]["student engine 0"]["stats"] = {"running_requests": "8"}
    (tmp_path / SAMPLES).write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=r"samples\.jsonl: line 1: .*stats: found \{'running_requests': '8'\}"):
        read_samples(tmp_path / SAMPLES)


# Spans


def test_pieces_that_overlap_are_one_span_and_what_lasts_is_cut_and_joined() -> None:
    now = [0.0]
    activity = Activity(lambda: now[0])
    first, second = activity.piece("e", "score"), activity.piece("e", "score")
    first.__enter__()
    now[0] = 1.0
    second.__enter__()
    now[0] = 2.0
    first.__exit__(None, None, None)
    assert activity.take() == [Span("e", "score", 0.0, 2.0)]
    now[0] = 5.0
    second.__exit__(None, None, None)
    rest = activity.take()
    assert rest == [Span("e", "score", 2.0, 5.0)] and activity.take() == []
    assert joined([Span("e", "score", 0.0, 2.0), *rest]) == [Span("e", "score", 0.0, 5.0)]
    assert len(joined([Span("e", "score", 0.0, 2.0), Span("f", "score", 2.0, 3.0), Span("e", "x", 2.0, 3.0)])) == 3


def test_a_share_counts_overlapping_spans_once() -> None:
    spans = [Span("e", "sample", 0.0, 4.0), Span("e", "score", 3.0, 5.0), Span("f", "learn", 8.0, 12.0)]
    assert shares(spans, 0.0, 10.0) == {"e": 0.5, "f": 0.2}
    assert shares(spans, 4.0, 6.0) == {"e": 0.5, "f": 0.0} and shares([], 0.0, 0.0) == {}


def test_calls_of_services_are_spans_by_their_table() -> None:
    activity = Activity(iter(range(99)).__next__)
    for (service, method), (lane, name) in CALLS.items():
        with watching(activity, service)(method):
            pass
        assert [(span.lane, span.name) for span in activity.take()] == [(lane, name)]
    with watching(activity, "rollout")("advance"):
        pass
    assert activity.take() == []


# What is asked


class Mute(FakeEngine):
    """Never says what it counts."""

    async def stats(self) -> dict[str, float]:
        await asyncio.Event().wait()
        raise AssertionError


class Broken(FakeEngine):
    """Fails when it is asked what it counts."""

    async def stats(self) -> dict[str, float]:
        raise RuntimeError("student engine 2 died")


def fleet_of(*students: FakeEngine) -> Fleet:
    """Of engines that have started."""
    makers = {"student": [partial(lambda engine: engine, engine) for engine in students], "teacher": []}
    fleet = Fleet(makers, {"student": EngineConfig(), "teacher": EngineConfig()}, FaultsConfig())
    for seat in fleet.roster.everyone():
        seat.stands = True
    return fleet


def test_an_engine_that_never_answers_or_fails_is_not_up_and_the_others_are() -> None:
    async def ask() -> dict[str, EngineState]:
        fleet = fleet_of(FakeEngine(name="e0"), Mute(name="e1"), Broken(name="e2"), FakeEngine(name="e3"))
        fleet.roster.seats["student"][3].stands = False  # one that starts
        assert fleet.waiting() == {"student": 0, "teacher": 0}
        return await fleet.states(0.05)

    states = asyncio.run(ask())
    assert {name: state.up for name, state in states.items()} == {"e0": True, "e1": False, "e2": False, "e3": False}
    assert states["e0"].stats["generated_tokens"] == 100.0 and states["e1"].stats == {}
    assert asyncio.run(fleet_of().states(0.05)) == {}


def test_an_engines_work_is_its_span() -> None:
    async def drive() -> list[Span]:
        activity = Activity()
        pool = EnginePool(Scheduler([FakeEngine(name="e0")], 4, activity))
        await pool.score([np.array([1], np.int32)], [np.array([2], np.int32)])
        await pool.texts([np.array([1], np.int32)], SamplingConfig(1.0, 4), 1, 0)
        return activity.take()

    assert [(span.lane, span.name) for span in asyncio.run(drive())] == [("e0", "score"), ("e0", "probe")]


def test_the_stream_says_where_its_groups_are() -> None:
    async def drive() -> None:
        engines = Engines(waits=lambda group: group.name.endswith("000"))
        begun = time.monotonic()
        stream = stream_of(engines, max_lag=0)
        assert stream.states()[0] == {"sampling": 0, "verifying": 0, "scoring": 0, "done": 0}
        assert 0 <= stream.states()[1] <= time.monotonic() - begun
        stream.advance(0)
        await settle()
        assert stream.states()[0] == {"sampling": 1, "verifying": 0, "scoring": 0, "done": 2} and stream.version == 0
        engines.gates["000000-000"].set()
        await stream.take(0)
        await settle()
        assert stream.states()[0] == {"sampling": 0, "verifying": 0, "scoring": 0, "done": 0}

    asyncio.run(drive())


class Counted:
    """Has the attributes that it is given."""

    def __init__(self, **values: Any) -> None:
        self.__dict__ |= values


def test_a_tally_sums_iterations() -> None:
    tally, prompt = Tally(), Counted(total=10, cached_tokens=4)
    iteration = Counted(prompt_token_stats=prompt, num_generation_tokens=3, num_preempted_reqs=1)
    tally.record(Counted(num_running_reqs=5, num_waiting_reqs=2, kv_cache_usage=0.25), iteration)
    tally.record(None, iteration)
    tally.record(Counted(num_running_reqs=0, num_waiting_reqs=0, kv_cache_usage=0.0), None)
    assert tally.stats == dict(zip(FIGURES, (0, 0, 0.0, 20, 8, 6, 2), strict=True))


def test_an_iteration_costs_a_tally_less_than_five_microseconds() -> None:
    """The median of 20,000, each timed by itself, so that what else the machine does counts little: 0.9 us on two busy
    cores, 0.08 us of it the clock's own, and the same with vLLM's own statistics."""
    tally, prompt = Tally(), Counted(total=10, cached_tokens=4)
    iteration = Counted(prompt_token_stats=prompt, num_generation_tokens=3, num_preempted_reqs=1)
    scheduler = Counted(num_running_reqs=5, num_waiting_reqs=2, kv_cache_usage=0.25)
    seconds = []
    for _ in range(20_000):
        begun = time.perf_counter()
        tally.record(scheduler, iteration)
        seconds.append(time.perf_counter() - begun)
    assert statistics.median(seconds) < 5e-6
