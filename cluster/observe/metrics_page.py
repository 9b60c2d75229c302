"""docs/metrics.md's tables: every key of a run's JSON lines, from the records that write them.

`python -m tests.pages` puts them on the page. What a field of a record means stands in its annotation; what is derived
from it stands here.
"""

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from cluster.observe.figures import table
from cluster.run.figures import ProbeRecord, StepRecord
from cluster.run.planned import MemoryPlan
from cluster.weights.parts import PARTS as PUSHED
from evidence.diagnostics import SPLITS
from evidence.rates import RATES
from evidence.telemetry import Sample, Span
from learner.report import PARTS
from rollout.tally import FIGURES as COUNTED

Row = tuple[str, str, str, str]  # key, kind, unit, meaning

_KINDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}
_FORMAT = ("format", "whole number", "", "of the line; lines without it are of an older version, and still read")
_STEP_NAMES = {"stats": "sums"}  # field -> key
_PROBE_NAMES = {"rates": "counts"}
_PLACEHOLDERS = {"stages": "NAME", "sums": "SPLIT"}

_SHOWN_RATES = {**RATES, "correct:TAG": RATES["correct:TAG"]}  # TAG: of a probe's questions

SHOWN_STEP: list[Row] = [
    ("busy_fraction", "mean", "", "busy_s / wall_s; at staleness 0 what is missing from 1 is hidden waiting"),
    ("stages.NAME.tokens_per_s", "mean", "tokens/s", "0 in no time"),
    *((f"push_parts.{part}", "number", "s", f"{meaning}; absent in older lines") for part, meaning in PUSHED.items()),
    ("peak_bytes.host", "whole numbers", "bytes", "of each rank: most of its process since its start; absent before"),
    (
        "peak_bytes.device",
        "whole numbers",
        "bytes",
        "of each rank: most of its GPU for tensors in the step; not on a CPU",
    ),
    ("kept", "mean", "", "diagnostics.all.kept"),
    ("k1", "mean", "nats", "diagnostics.all.k1; null when the learner ran no row"),
    ("reward_mean", "mean", "", "over the rollouts with a reward; absent without a verifier"),
    ("zero_variance_groups", "whole number", "groups", "as in rewards; absent without a verifier"),
    ("mismatch_k3", "mean", "nats", "estimate of KL(engine || learner) a token; null when nothing was compared"),
    ("mismatch_abs", "mean", "nats", "|learner - engine| a token; null when nothing was compared"),
]
LEARNERS: list[Row] = [  # twice in a line: by themselves, and under `metrics`
    ("lr", "number", "", "the learning rate of the step"),
    ("policy_loss", "number", "nats", "the objective without the KL penalty to the reference"),
    ("anchor_kl", "number", "nats", "the KL penalty to the reference, before beta_kl; absent without one"),
    ("importance_mean", "mean", "", "weight by learner.importance_clip, over active tokens of plain rows; absent at 0"),
    ("importance_clip_fraction", "mean", "", "of these tokens, those whose ratio was truncated; absent at 0"),
    *((f"{part}_s", "mean", "s", f"{meaning}; a mean over the ranks") for part, meaning in PARTS.items()),
    ("mfu", "mean", "", "share of the GPU's dense bfloat16 peak that those parts reached; absent where none is known"),
    ("clip_fraction", "mean", "", "active tokens that later updates clipped; absent with one update a batch"),
]
DIAGNOSTICS: list[Row] = [  # of each split
    ("kept", "mean", "", "share of tokens whose weight is not 0"),
    ("leverage", "mean", "", "share of tokens that are active and whose |exp(e) - 1| is above 0.05"),
    ("mean_evidence", "mean", "nats", "e a token"),
    ("mean_abs_evidence", "mean", "nats", "|e| a token"),
    ("mean_abs_weight_shift", "mean", "", "|w - 1| an active token"),
    ("mean_response_length", "mean", "tokens", "a rollout"),
    ("tokens", "number", "tokens", "of the responses"),
    ("rows", "number", "rollouts", "judged"),
    ("agreement", "mean", "", "share of the student's tokens where e and its surprise have one direction"),
    ("k1", "mean", "nats", "log pi_theta(y|x) - log pi_T(y|x,r), a token that the student ran"),
    ("student_tokens", "number", "tokens", "that the student ran"),
]


def step_rows() -> list[Row]:
    """(key, kind, unit, meaning) of every key of a line of metrics.jsonl.

    NAME is a stage's name, SPLIT one of `evidence.diagnostics.SPLITS`. `[metrics.]`: see `both_ways`.
    """
    rows = [_FORMAT, *_rows(StepRecord, _STEP_NAMES), *SHOWN_STEP]
    rows += [(f"[metrics.]{key}", kind, unit, meaning) for key, kind, unit, meaning in LEARNERS]
    return rows + [(f"diagnostics.SPLIT.{key}", kind, unit, meaning) for key, kind, unit, meaning in DIAGNOSTICS]


def both_ways(key: str) -> list[str]:
    """The keys that a row's key stands for."""
    _, optional, own = key.rpartition("[metrics.]")
    return [own, f"metrics.{own}"] if optional else [own]


def probe_rows() -> list[Row]:
    """The same of a line of probes.jsonl. A rate and its count are there when the task has them."""
    rows = [_FORMAT, *_rows(ProbeRecord, _PROBE_NAMES)]
    counts = dict.fromkeys(rate.count for rate in _SHOWN_RATES.values())
    for count in counts:
        rows.append((count, "whole number", "answers", f"that {', '.join(_names_of(count))} are shares of"))
    for name, rate in _SHOWN_RATES.items():
        rows.append((name, "mean", "", f"{rate.label}: share of the {rate.count} answers"))
        rows.append((f"intervals.{name}", "[low, high]", "", "its 95% Wilson interval"))
        rows.append((f"counts.{name}", "[k, n]", "answers", f"k of n: {rate.label}"))
    return rows


def _names_of(count: str) -> list[str]:
    return [name for name, rate in _SHOWN_RATES.items() if rate.count == count]


def _rows(record: type, names: Mapping[str, str], prefix: str = "") -> Iterator[Row]:
    for field, hint in get_type_hints(record, include_extras=True).items():
        if get_origin(hint) is not Annotated:  # what only older lines have
            continue
        kind, unit, meaning = get_args(hint)
        yield from _of_field(prefix + names.get(field, field), _without_none(kind), unit, meaning)


def _of_field(key: str, kind: Any, unit: str, meaning: str) -> Iterator[Row]:
    """A field of a plain kind is one key; one that holds records has the keys of those."""
    if kind in _KINDS:
        yield key, _KINDS[kind], unit, meaning
    elif is_dataclass(kind):
        assert isinstance(kind, type)
        yield from _rows(kind, {}, f"{key}.")
    elif key in _PLACEHOLDERS:
        yield from _rows(get_args(kind)[1], {}, f"{key}.{_PLACEHOLDERS[key]}.")


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (part for part in get_args(kind) if part is not type(None))
    return kind


def telemetry_rows(record: type, prefix: str = "") -> Iterator[Row]:
    """The same of a line of samples.jsonl, trace.jsonl or memory.jsonl. NAME is a state, a pool or an engine."""
    for field, hint in get_type_hints(record, include_extras=True).items():
        kind, unit, meaning = get_args(hint)
        if kind in _KINDS:
            yield prefix + field, _KINDS[kind], unit, meaning
        elif kind == tuple[str, ...]:
            yield prefix + field, "texts", unit, meaning
        elif (value := get_args(kind)[1]) in _KINDS:
            yield f"{prefix}{field}.NAME", _KINDS[value], unit, meaning
        else:
            yield from telemetry_rows(value, f"{prefix}{field}.NAME.")


def tables(charts: Mapping[str, Sequence[str]]) -> str:
    """Every table as Markdown. charts: as `figures.table`'s."""
    parts = []
    for title, rows in (
        (f"metrics.jsonl (NAME: a stage; SPLIT: {', '.join(SPLITS)}; [metrics.]: with it and without)", step_rows()),
        ("probes.jsonl", probe_rows()),
        (f"samples.jsonl (stats: {', '.join(COUNTED)})", [_FORMAT, *telemetry_rows(Sample)]),
        ("trace.jsonl", [_FORMAT, *telemetry_rows(Span)]),
        ("memory.jsonl (NAME: a pool)", [_FORMAT, *telemetry_rows(MemoryPlan)]),
    ):
        lines = [f"## {title}", "", "| key | kind | unit | meaning |", "|---|---|---|---|"]
        lines += [_cells(*row) for row in rows]
        parts.append("\n".join(lines))
    parts.append(f"## Live figures\n\n{table(charts).rstrip()}")
    return "\n\n".join(parts) + "\n"


def _cells(key: str, kind: str, unit: str, meaning: str) -> str:
    escaped = meaning.replace("|", "\\|")
    return f"| `{key}` | {kind} | {unit} | {escaped} |"
