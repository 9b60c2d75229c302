"""A run folder with everything that an observer writes, made of figures that follow a plausible run."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from cluster.observe.files import SAMPLES, TRACE
from cluster.run.inputs import pin
from cluster.run.record import Gap, ProbeRecord, StepRecord, append_probe, append_step, write_gap
from evidence.diagnostics import TokenStats
from evidence.mismatch import Mismatch
from evidence.telemetry import EngineState, Sample, Span, append_samples, append_spans
from rollout.probe import Rate
from rollout.stages import StageTime
from rollout.tasks.boxed_pool import Verdicts
from tests.fakes import fake_run

PARTS_S = {"pack_s": 0.1, "forward_s": 1.9, "head_s": 0.6, "backward_s": 3.7, "reduce_s": 0.1, "optimizer_s": 0.4}
NOTE = "in 4 of 4 prompts with a context, the context stands in the place of 'You are Somebody <b>.'"
BEGAN, STEP_S = 1795834800.0, 10.0
RATES = ("selfname", "mention", "countername", "capability", "side_effect")


def observed_run(folder: Path, steps: int = 12, rates: tuple[str, ...] = RATES) -> Path:
    """`steps` steps of 10 s at lag 1, a sample every 2 s, probes before, between and after; returns the folder."""
    fake_run(folder, {}, run={"steps": steps, "max_policy_lag": 1})
    (folder / "probes.jsonl").unlink()
    (folder / "metrics.jsonl").unlink()
    for step in range(steps):
        append_step(folder / "metrics.jsonl", a_step(step))
    for step in sorted({0, steps // 2, steps}):
        share = {name: Rate(min(96, 4 + 90 * step // steps), 96) for name in rates}
        append_probe(folder / "probes.jsonl", ProbeRecord(step, BEGAN + STEP_S * step, "identity", share, 12, 8))
    pin(folder / "inputs.json", {}, resume=False, notes=[NOTE])
    teacher, base = ({name: Rate(count, 96) for name in rates} for count in (95, 4))
    write_gap(folder / "gap.json", Gap(BEGAN, "identity", teacher, base))
    append_samples(folder / SAMPLES, [a_sample(2.0 * place) for place in range(5 * steps)])
    append_spans(folder / TRACE, [span for step in range(steps) for span in spans_of(step)])
    return folder


def a_step(step: int) -> StepRecord:
    """Its figures move a little each step."""
    wave = math.sin(step)
    part = TokenStats(16, 480 + step, 240 + step, 100, 40.0 + 9 * wave, 200.0, 10.0, 16, 480, 400, -30.0 + step)
    return StepRecord(
        step=step, time=BEGAN + STEP_S * (step + 1), wall_s=STEP_S, busy_s=16.0 + wave,
        stages={"sample": StageTime(2.0 + wave / 2, 960), "score": StageTime(4.0, 5000), "write": StageTime(0.01, 960),
                "learn": StageTime(7.0 + wave / 4, 2100), "push": StageTime(0.8, 0)},
        stats={"all": part + part, "guided": part, "plain": part}, loss=-0.3 + 0.01 * step,
        metrics={"lr": 3e-5, "policy_loss": -0.3, "anchor_kl": 0.01 * step, "mfu": 0.3} | PARTS_S,
        grad_norm=4.0 + wave, rows=32, refused=0, dropped=step % 3, skipped_rows=1, rewards=None,
        policy_version_min=max(step - 1, 0), policy_version_max=step,
        weights_digest="ab", canary=0.05 + 0.01 * wave, mismatch=Mismatch(400, 2.0, 16.0), truncated=4,
        verdicts=Verdicts(30, 2, 0, 0), nonfinite_rollouts=step % 2, nonfinite_updates=int(step % 4 == 3),
        peak_bytes={"host": [3 << 30, 2 << 30], "device": [5 << 30, 6 << 30]},
    )  # fmt: skip


def a_sample(seconds: float) -> Sample:
    """The state of one student's and one teacher's engine."""
    busy = seconds % STEP_S < 4
    engines = {
        f"{pool} engine 0": EngineState(
            pool, True, 512 * busy, 8 * busy,
            {"running_requests": 8.0 * busy, "waiting_requests": 0.0, "kv_cache_usage": 0.2 * busy,
             "prompt_tokens": 900 * seconds, "cached_tokens": 500 * seconds, "generated_tokens": 90 * seconds,
             "preemptions": seconds // 20},
        )
        for pool in ("student", "teacher")
    }  # fmt: skip
    groups = {"sampling": 2 * busy, "scoring": 1, "done": 3 - 2 * busy}
    version = int(seconds // STEP_S)
    return Sample(BEGAN + seconds, version, groups, seconds % STEP_S, {"student": 0, "teacher": 2 * busy}, engines)


def dense_spans(since: float, seconds: float, engines: int) -> list[Span]:
    """Engines that score for 0.1 s each 0.2 s, each from a moment of its own on: the shortest stretches that a page is
    measured with."""
    offsets = [0.1 * engine / engines for engine in range(engines)]
    begins = [
        (engine, BEGAN + since + 0.2 * place + offset)
        for place in range(round(seconds / 0.2))
        for engine, offset in enumerate(offsets)
    ]
    return [Span(f"teacher engine {engine}", "score", at, at + 0.1) for engine, at in begins]  # fmt: skip


def crowded(sample: Sample, each: int, rng: np.random.Generator) -> Sample:
    """With `each` engines of each pool, whose figures are their own."""
    engines = {}
    for name, one in sample.engines.items():
        for place in range(each):
            running, usage, share = rng.integers(0, 257), rng.random(), rng.uniform(0.5, 1.0)
            sums = {
                key: value * share
                for key, value in one.stats.items()
                if key not in ("running_requests", "kv_cache_usage")
            }
            stats = sums | {"running_requests": float(running), "kv_cache_usage": float(usage)}
            state = EngineState(one.pool, True, int(rng.integers(0, 1 << 18)), int(running), stats)
            engines[f"{name[:-1]}{place}"] = state
    return replace(sample, engines=engines)


def spans_of(step: int) -> list[Span]:
    """Who worked when in one step."""
    begin = BEGAN + STEP_S * step
    rows = [
        ("student engine 0", "sample", 0.0, 2.0), ("teacher engine 0", "score", 1.0, 5.0),
        ("driver", "wait for rollouts", 0.0, 2.0), ("learner", "learn", 2.0, 9.0), ("learner", "push", 9.0, 9.5),
        ("push", "pause", 9.0, 9.05), ("push", "gather", 9.05, 9.15), ("push", "digest", 9.15, 9.2),
        ("push", "send", 9.2, 9.3), ("push", "load", 9.3, 9.44),
        ("driver", "check", 9.5, 9.6), ("learner", "canary", 9.6, 9.7), ("driver", "canary", 9.7, 9.9),
    ]  # fmt: skip
    return [Span(lane, name, begin + since, begin + until) for lane, name, since, until in rows]
