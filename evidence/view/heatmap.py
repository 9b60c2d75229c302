"""`edge-opd view`: rollouts of one shard as text, each token coloured by its evidence and underlined where it is kept.

Legend: T = response tokens of one rollout. Token strings are passed in: nothing here needs a tokenizer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from evidence.columns import flat_column, rows_of
from evidence.records import Bools, Floats
from evidence.rule import EvidenceConfig
from evidence.schema import shard_metadata
from evidence.shards import recompute, rejudge
from evidence.view.histogram import Histogram, histogram
from evidence.view.pages import environment, figure

LEVELS = (0.1, 0.5, 1.0, 2.0)  # nats: |e| up to the first has no colour, and one more shade beyond each
MAX_TOKENS = 1500  # of one rollout on the page of a step
WHOLE_TOKENS = 20_000  # of a step that is shown whole; a token is about 150 bytes of the page


@dataclass(frozen=True)
class RowText:
    """One rollout's token ids as text: the prompt x, the prompt (x, r), and each of its T response tokens."""

    prompt: str
    context_prompt: str
    tokens: tuple[str, ...]


@dataclass(frozen=True)
class Token:
    """One token as the page shows it."""

    text: str
    css: str  # its shade, and whether it is kept
    hover: str


@dataclass(frozen=True)
class Rollout:
    """One row of the shard as the page shows it. `hidden` tokens follow those shown."""

    title: str
    kept: str
    text: RowText
    tokens: tuple[Token, ...]
    hidden: int
    prompt_id: str
    guided: bool
    reward: float | None
    share: float  # of its tokens that are kept


@dataclass(frozen=True)
class Neighbours:
    """Files beside it: the pages of the step before and of the step after; empty where there is none."""

    before: str = ""
    after: str = ""


def choose_shown(table: pa.Table, prompt_id: str | None = None) -> list[int]:
    """Row numbers for the page, guided first: all of a prompt, all of a small step, or those of some whole prompts,
    spread evenly over the step.

    Raises:
        ValueError: the step has no such prompt.
    """
    prompts = table.column("prompt_id").to_pylist()
    if prompt_id is not None and prompt_id not in prompts:
        raise ValueError(f"--prompt: found {prompt_id}, expected a prompt of the step, such as {prompts[0]}")
    chosen = _some_prompts(table, prompts) if prompt_id is None else {prompt_id}
    guided = table.column("guided").to_pylist()
    rows = [row for row, prompt in enumerate(prompts) if prompt in chosen]
    return sorted(rows, key=lambda row: not guided[row])


def _some_prompts(table: pa.Table, prompts: Sequence[str]) -> set[str]:
    """As many as have about WHOLE_TOKENS on the page together, at least one."""
    lengths = np.diff(flat_column(table, "response_ids")[1])
    total, each = int(np.minimum(lengths, MAX_TOKENS).sum()), list(dict.fromkeys(prompts))
    count = len(each) * WHOLE_TOKENS // total if total > WHOLE_TOKENS else len(each)
    places = np.linspace(0, len(each) - 1, max(count, 1)).tolist() if each else []
    return {each[round(place)] for place in places}


def student_samples(table: pa.Table) -> dict[str, Floats]:
    """log pi_theta(y|x) [T] by rollout_id, of a shard that the student's engines sampled: the sampler's, of the plain
    rollouts of the step's own version alone. Of a guided one it is under (x, r), of a late one another policy's."""
    step = int(shard_metadata(table)["step"])
    names = ("rollout_id", "guided", "policy_version_min", "policy_version_max")
    rows = zip(*(table.column(name).to_pylist() for name in names), strict=True)
    logprobs = rows_of(*flat_column(table, "sampler_logprobs"))
    return {
        rollout_id: values
        for (rollout_id, guided, *versions), values in zip(rows, logprobs, strict=True)
        if not guided and versions == [step, step]
    }


def heatmap(
    table: pa.Table,
    texts: Mapping[int, RowText],
    rule: EvidenceConfig,
    student: Mapping[str, Floats] | None = None,
    note: str = "",
    neighbours: Neighbours = Neighbours(),
    most: int | None = MAX_TOKENS,
) -> str:
    """The page. texts: row number of `table` -> its strings. rule: the mask to show; `table` has passed `check_table`.

    student: log pi_theta(y|x) [T] by rollout_id, before the step; a rollout without it has no delta. note: what a
    reader has to know of the texts. most: tokens of a response that are shown, None: all.

    Raises:
        ValueError: a row with another number of token strings or of the student's log-probs than response tokens.
    """
    metadata = shard_metadata(table)
    own = EvidenceConfig.from_json(metadata["mask_rule"])
    judged = rejudge(table, rule)
    rows = list(zip(*(rows_of(values, flat_column(table, "response_ids")[1]) for values in judged), strict=True))
    pages = [_rollout(table.slice(row, 1), text, most, student or {}, *rows[row]) for row, text in texts.items()]
    return (
        environment("evidence.view")
        .get_template("heatmap.html.jinja")
        .render(
            rollouts=pages,
            rows=table.num_rows,
            metadata=metadata,
            most=most,
            left_out=_left_out(table, pages),
            mask=_describe(rule),
            own_mask=None if rule == own else _describe(own),
            kept={group: stats for group, stats in recompute(table, rule).items() if stats["tokens"]},
            histogram=_histogram(table, judged[0], judged[2]),
            shades=_shades(),
            note=note,
            neighbours=neighbours,
        )
    )


def _left_out(table: pa.Table, pages: Sequence[Rollout]) -> list[str]:
    """Prompts of the step of which the page shows nothing."""
    shown = {page.prompt_id for page in pages}
    return [name for name in dict.fromkeys(table.column("prompt_id").to_pylist()) if name not in shown]


def _describe(rule: EvidenceConfig) -> str:
    """The mask in words; where none are written here, as for a region of one's own, by its settings."""
    words = _WORDS.get((rule.region, rule.tau_kind)) or _WORDS.get((rule.region, ""), _SETTINGS)
    text = words.format(rule=rule, minus_tau=0.0 - rule.tau, rest=1 - rule.tau)
    return f"{rule.region.replace('_', '-')} ({text})"


# (region, tau_kind, empty where the region reads no tau): the mask in words
_WORDS = {
    ("pos", "value"): "e > {rule.tau:g}",
    ("pos", "quantile"): "e > quantile {rule.tau:g} of the step",
    ("neg", "value"): "e < {minus_tau:g}",
    ("neg", "quantile"): "e < quantile {rest:g} of the step",
    ("near_zero", ""): "|e| ≤ {rule.near_zero:g}",
    ("all", ""): "every token",
}
_SETTINGS = "tau {rule.tau:g}, tau_kind {rule.tau_kind}, near_zero {rule.near_zero:g}"


def _rollout(
    row: pa.Table,
    text: RowText,
    most: int | None,
    student: Mapping[str, Floats],
    evidence: Floats,
    weight: Floats,
    kept: Bools,
) -> Rollout:
    """`row` is a table of one row; the streams are its own, [T]. most: tokens that are shown."""
    names = ("rollout_id", "prompt_id", "guided", "finish_reason", "reward")
    rollout_id, prompt_id, guided, finish_reason, reward = (row.column(name)[0].as_py() for name in names)
    if len(text.tokens) != evidence.size:
        raise ValueError(f"rollout {rollout_id}: found {len(text.tokens)} token strings, expected {evidence.size}")
    own = student.get(rollout_id)
    if own is not None and own.shape != evidence.shape:
        raise ValueError(f"rollout {rollout_id}: found {own.size} log-probs of the student, expected {evidence.size}")
    tokens = _tokens(row, text.tokens, own, evidence, kept, weight * kept)
    mean = figure(float(evidence.mean()), 2, signed=True) if evidence.size else "-"
    parts = [rollout_id, "guided" if guided else "plain", f"prompt {prompt_id}", f"ended by {finish_reason}"]
    return Rollout(
        title=" · ".join(parts if reward is None else [*parts, f"reward {reward:g}"]),
        kept=f"kept {int(kept.sum())} of {kept.size}, mean evidence {mean}",
        text=text,
        tokens=tuple(tokens[:most]),
        hidden=len(tokens[len(tokens) if most is None else most :]),
        prompt_id=prompt_id,
        guided=guided,
        reward=reward,
        share=float(kept.mean()) if kept.size else 0.0,
    )


def _tokens(
    row: pa.Table, texts: tuple[str, ...], student: Floats | None, evidence: Floats, kept: Bools, weight: Floats
) -> list[Token]:
    names = ("sampler_logprobs", "teacher_context_logprobs", "teacher_logprobs")
    sampler, context, plain = (flat_column(row, name)[0] for name in names)
    return [
        Token(
            text=texts[t].replace("\n", "⏎\n") or "·",
            css=shade(float(evidence[t])) + (" k" if kept[t] else ""),
            hover=f"evidence {_nats(evidence[t])}, weight {weight[t]:.3g}; teacher with context {_nats(context[t])}, "
            f"without {_nats(plain[t])}; sampler {_nats(sampler[t])}"
            + ("" if student is None else f"; student {_nats(student[t])}, delta {_nats(student[t] - context[t])}"),
        )
        for t in range(len(texts))
    ]


def _nats(value: float) -> str:
    return figure(float(value), 3, signed=True)


def shade(evidence: float) -> str:
    """The CSS class of a token's colour: z near zero, p1 to p4 above, n1 to n4 below."""
    level = sum(abs(evidence) > bound for bound in LEVELS)
    return "z" if level == 0 else f"{'p' if evidence > 0 else 'n'}{level}"


def _shades() -> list[tuple[str, str]]:
    """(class, what it stands for), from the most negative to the most positive."""
    ranges = list(pairwise(LEVELS))
    above = [(f"p{level}", f"{low:g} to {high:g}") for level, (low, high) in enumerate(ranges, start=1)]
    below = [(f"n{level}", f"−{high:g} to −{low:g}") for level, (low, high) in enumerate(ranges, start=1)]
    last, most = len(LEVELS), f"{LEVELS[-1]:g}"
    near = [("z", f"within ±{LEVELS[0]:g}")]
    return [(f"n{last}", f"below −{most}"), *reversed(below), *near, *above, (f"p{last}", f"above {most}")]


def _histogram(table: pa.Table, evidence: Floats, kept: Bools) -> Histogram:
    lengths = np.diff(flat_column(table, "response_ids")[1])
    guided = np.repeat(np.array(table.column("guided").to_pylist(), np.bool_), lengths)
    groups = {"guided": guided, "plain": ~guided}
    return histogram({label: (evidence[of], kept[of]) for label, of in groups.items() if of.any()})
