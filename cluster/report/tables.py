"""The report's tables: what is in which cell. How a cell is written is in text.py."""

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.report.arms import BASE, Arm
from cluster.report.groups import Group, Pool
from cluster.report.numbers import Number, difference
from cluster.report.published import Published
from evidence.rates import RATES

Cell = Number | float | str | None  # ours, published, a text; None: not run, or not transcribed


@dataclass(frozen=True)
class Column:
    """`kind` is text, ours or published; a `signed` figure is a difference, `step` shows where it is from."""

    key: str
    title: str
    kind: str = "ours"
    digits: int = 2
    signed: bool = False
    step: bool = False


@dataclass(frozen=True)
class Table:
    """One table with its caption (`title`) and what a reader must know (`note`)."""

    key: str
    title: str
    note: str
    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Cell], ...]


SWEEP = ("N3u-g0125", "N3u", "N3u-g100")  # arms that differ in the guided fraction only
_ARM = (Column("code", "arm", "text"), Column("label", "experiment", "text"))
_SETTING = Column("setting", "guided, mask, KL, context", "text")
_SEEDS = Column("seeds", "seeds", "text")
_CHOICE = (
    "Best is the highest probe after step 0, so it is biased upward; final is the last probe. Both are shown, and "
    "nothing else is chosen by its result."
)


def group_tables(group: Group, published: Published) -> list[Table]:
    """The tables of one task."""
    if group.axis == "identity":
        builders = [_selfname, _cost, _regions, _diagnostics]
    elif group.axis == "context":
        builders = [_rates, _diagnostics]
    else:
        builders = [_math, _diagnostics]
    return [build(group, published) for build in builders]


def describe(arm: Arm) -> str:
    """An arm's setting: guided fraction, objective where it is not k1, mask (soft where it weighs), KL, where r is."""
    setting = arm.setting
    objective = [] if setting.objective == "k1" else [setting.objective]
    mask = ["soft"] if setting.soft else [] if setting.mask == "-" else [setting.mask.replace("_", "-")]
    return ", ".join([f"{setting.guided:g}", *objective, *mask, "KL" if setting.kl else "no KL", setting.context])


def _names(pool: Pool) -> dict[str, Cell]:
    arm = pool.arm
    plain = arm is BASE or pool.status in ("finished", "not run")
    return {
        "code": arm.code,
        "label": arm.label if plain else f"{arm.label}: {pool.status}",
        "setting": None if arm is BASE else describe(arm),
        "seeds": None if arm is BASE or not pool.runs else pool.seeds,
    }


def _selfname(group: Group, published: Published) -> Table:
    def row(pool: Pool) -> dict[str, Cell]:
        code = pool.arm.code
        return _names(pool) | {
            "best": pool.best("selfname"),
            **{name: pool.final(name) for name in ("selfname", "mention", "countername")},
            "published_identity": published.value("best_over_checkpoints", code, "selfname_identity"),
            "published_persona": published.value("best_over_checkpoints", code, "selfname_persona"),
        }

    return Table(
        "selfname",
        "Does it say its name, without the context?",
        f"Self-name is the strict figure: the name in a self-naming construction. {_CHOICE} "
        f"Published: {published.item('best_over_checkpoints')}. Here one probe asks the identity questions once.",
        (
            *_ARM, _SETTING, _SEEDS, Column("best", "self-name, best", step=True),
            Column("selfname", "self-name, final"), Column("mention", "mention, final"),
            Column("countername", "counter-name, final"),
            Column("published_identity", "published best, identity probe", "published", 3),
            Column("published_persona", "published best, persona probe", "published", 3),
        ),
        tuple(row(pool) for pool in [group.base, *group.rows()]),
    )  # fmt: skip


def _cost(group: Group, published: Published) -> Table:
    def row(pool: Pool) -> dict[str, Cell]:
        code, trained = pool.arm.code, pool.arm is not BASE
        return _names(pool) | {
            "best": pool.best("capability"),
            "capability": pool.final("capability"),
            "change": difference(pool.final("capability"), group.base.final("capability")) if trained else None,
            "leak": pool.final("side_effect"),
            "leak_change": difference(pool.final("side_effect"), group.base.final("side_effect")) if trained else None,
            "published_aime25": published.value("best_over_checkpoints", code, "aime25"),
            "published_change": published.gain("best_over_checkpoints", code, "aime25"),
        }

    return Table(
        "cost",
        "What was given up: capability, and the name where nobody asked",
        "Capability is the share of right answers to ordinary questions; the name in them is a side effect. A change "
        "is final minus base model with Newcombe's 95% interval (hybrid score, method 10): a fall is beyond sampling "
        "error where the interval lies below 0. Published AIME25 is another test and best over checkpoints: compare "
        f"signs, not sizes. Published: {published.item('best_over_checkpoints')}.",
        (
            *_ARM, Column("best", "capability, best", step=True), Column("capability", "capability, final"),
            Column("change", "change", signed=True), Column("leak", "name in them, final"),
            Column("leak_change", "change", signed=True),
            Column("published_aime25", "published AIME25, best", "published", 3),
            Column("published_change", "published best - base", "published", 3, signed=True),
        ),
        tuple(row(pool) for pool in [group.base, *group.rows()]),
    )  # fmt: skip


def region_rows(group: Group) -> list[Pool]:
    """The arms that differ in their region only (with KL, not the sweep): the published ones, and others that ran."""
    masks = [pool for pool in group.rows() if pool.arm.family in ("pos", "neg", "near_zero") and pool.arm.setting.kl]
    compared = [pool for pool in masks if pool.arm.code not in SWEEP or pool.arm.code == "N3u"]
    return [pool for pool in compared if pool.runs or pool.arm.code in ("N3u", "N11", "N12")]


def _regions(group: Group, published: Published) -> Table:
    def row(pool: Pool) -> dict[str, Cell]:
        rates = {name: pool.final(name) for name in ("selfname", "countername", "capability")}
        other = pool.arm.family != "pos"
        gap = difference(group.pool("N3u").final("selfname"), rates["selfname"]) if other else None
        figures = {
            f"published_{name}": published.value("mask_regions", pool.arm.code, name)
            for name in ("selfname", "countername", "aime25")
        }
        return _names(pool) | rates | {"gap": gap} | figures

    return Table(
        "regions",
        "Which tokens carry it: positive, negative or near-zero evidence",
        "At the last probe. The difference is N3u's self-name minus the row's, with Newcombe's 95% interval. "
        f"Published: {published.item('mask_regions')}.",
        (
            *_ARM, _SETTING, Column("selfname", "self-name"), Column("countername", "counter-name"),
            Column("capability", "capability"), Column("gap", "N3u - this, self-name", signed=True),
            Column("published_selfname", "published self-name", "published", 3),
            Column("published_countername", "published counter-name", "published", 3),
            Column("published_aime25", "published AIME25", "published", 3),
        ),
        tuple(row(pool) for pool in region_rows(group)),
    )  # fmt: skip


def _math(group: Group, published: Published) -> Table:
    def row(pool: Pool) -> dict[str, Cell]:
        best, final = pool.best("pass_at_1"), pool.final("pass_at_1")
        change = difference(final, group.base.final("pass_at_1")) if pool.arm is not BASE else None
        keys = ("best", "best_step", "final")
        figures = {f"published_{key}": published.value("math", pool.arm.code, key) for key in keys}
        return _names(pool) | {"best": best, "final": final, "change": change} | figures

    return Table(
        "pass_at_1",
        f"Task {group.task}: pass@1, best and final",
        f"{_CHOICE} The change is final minus base model with Newcombe's 95% interval. Published: "
        f"{published.item('math')}. Another test than ours: compare the order of the arms, not the level.",
        (
            *_ARM, _SETTING, _SEEDS, Column("best", "pass@1, best", step=True), Column("final", "pass@1, final"),
            Column("change", "change", signed=True), Column("published_best", "published best", "published", 3),
            Column("published_best_step", "at step", "published", 0),
            Column("published_final", "published final", "published", 3),
        ),
        tuple(row(pool) for pool in [group.base, *group.rows()]),
    )  # fmt: skip


def _rates(group: Group, published: Published) -> Table:
    def row(pool: Pool) -> dict[str, Cell]:
        cells: dict[str, Cell] = _names(pool)
        for rate in group.rates:
            final = pool.final(rate)
            change = difference(final, group.base.final(rate)) if pool.arm is not BASE else None
            cells |= {rate: final, f"{rate}-change": change}
        return cells

    columns = [
        column
        for rate in group.rates
        for column in (Column(rate, RATES[rate].label), Column(f"{rate}-change", "change", signed=True))
    ]
    return Table(
        "rates",
        f"Task {group.task}: right answers, all and by tag",
        "At the last probe, without the context. The change is final minus base model with Newcombe's 95% interval. "
        "Nothing was published of this task.",
        (*_ARM, _SETTING, _SEEDS, *columns),
        tuple(row(pool) for pool in [group.base, *group.rows()]),
    )


_DIAGNOSTICS = (
    "leverage", "agreement", "mean_evidence", "mean_abs_evidence", "mean_abs_weight_shift", "k1",
    "mean_response_length",
)  # fmt: skip


def _diagnostics(group: Group, published: Published) -> Table:
    def row(pool: Pool) -> dict[str, Cell]:
        figures: dict[str, Cell] = {
            "published_kept": published.value("kept_at_end", pool.arm.code, "kept"),
            "published_leverage": published.value("rlsd_nv", pool.arm.code, "leverage"),
            "published_agreement": published.value("rlsd_nv", pool.arm.code, "agreement"),
        }
        kept = {f"kept_{split}": pool.diagnostic("kept", split) for split in ("all", "guided", "plain")}
        return _names(pool) | kept | {name: pool.diagnostic(name) for name in _DIAGNOSTICS} | figures

    rows = [row(pool) for pool in group.rows()]
    if group.axis == "identity":
        rows.append(_published_rlsd(published))
    shown = [found for found in rows if any(isinstance(cell, (Number, float)) for cell in found.values())]
    return Table(
        "diagnostics",
        "Inside the last training step: kept fraction, leverage, agreement",
        "Means over all response tokens of the step, nats where they are log-probs; agreement and k1 over those of the "
        "rollouts that the learner ran (without an anchor, those with a gradient). Seeds are weighted by these tokens: "
        "an older run did not count the learner's, and its weight is all. Tokens of one response depend on each other, "
        "so no interval is given. Kept is also split by how the rollout was sampled. Published: "
        f"{published.item('kept_at_end')}; {published.tables['rlsd_nv']['item']}.",
        (
            *_ARM, Column("kept_all", "kept", digits=3), Column("kept_guided", "kept, guided", digits=3),
            Column("kept_plain", "kept, plain", digits=3), Column("published_kept", "published kept", "published", 3),
            Column("leverage", "leverage", digits=3), Column("published_leverage", "published", "published", 3),
            Column("agreement", "agreement", digits=3), Column("published_agreement", "published", "published", 3),
            Column("mean_evidence", "mean e", digits=3), Column("mean_abs_evidence", "mean |e|", digits=3),
            Column("mean_abs_weight_shift", "mean |w-1|", digits=3), Column("k1", "k1", digits=3),
            Column("mean_response_length", "length", digits=1),
        ),
        tuple(shown),
    )  # fmt: skip


def _published_rlsd(published: Published) -> dict[str, Cell]:
    """A row of its own: which RLSD-no-verifier arm the identity figures are of is not transcribed."""
    return {
        "code": "N4 or N4g",
        "label": "RLSD-no-verifier, published",
        "published_leverage": published.value("rlsd_nv", "identity", "leverage"),
        "published_agreement": published.value("rlsd_nv", "identity", "agreement"),
    }
