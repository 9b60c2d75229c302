"""The charts of one task, in the order of the page: three that answer its questions, then the curves."""

from cluster.report.figures import Chart, change_chart, curve_chart, rate_chart, sweep_chart, train_chart
from cluster.report.groups import Group
from cluster.report.published import Published
from cluster.report.tables import region_rows
from evidence.rates import RATES

_MARKS = "Bars are 95% intervals (Wilson)."


def headline_charts(group: Group, published: Published) -> list[Chart]:
    """What is learned, by which tokens, at what cost."""
    if group.axis == "context":
        return [_rate_of_each_arm(group, rate) for rate in group.rates]
    return _identity_headline(group, published) if group.axis == "identity" else _math_headline(group, published)


def _identity_headline(group: Group, published: Published) -> list[Chart]:
    return [
        rate_chart(
            group, "selfname", "selfname", [group.base, *group.rows()],
            lambda arm: published.value("best_over_checkpoints", arm, "selfname_identity"),
            "self-name, without the context", "Guided or not",
            f"{_MARKS} Published: best over checkpoints. {published.statements['noise']}",
        ),
        rate_chart(
            group, "regions", "selfname", region_rows(group),
            lambda arm: published.value("mask_regions", arm, "selfname"),
            "self-name, without the context", "Positive, negative or near-zero evidence",
            f"Arms with KL that differ in the mask. {_MARKS} Published: step 100.",
        ),
        change_chart(
            group, "capability", "capability", lambda arm: published.gain("best_over_checkpoints", arm, "aime25"),
            "capability, final - base model", "What it cost",
            "Right answers to ordinary questions, with Newcombe's 95% interval of the difference. Published: another "
            "test (AIME25, best over checkpoints minus base).",
        ),
    ]  # fmt: skip


def _math_headline(group: Group, published: Published) -> list[Chart]:
    return [
        rate_chart(
            group, "pass-at-1", "pass_at_1", [group.base, *group.rows()],
            lambda arm: published.value("math", arm, "final"),
            "pass@1, without the context", "pass@1 of each arm",
            f"{_MARKS} Published: AIME25 at the end, another test.",
        ),
        change_chart(
            group, "change", "pass_at_1", lambda arm: None, "pass@1, final - base model", "Gained or lost",
            "With Newcombe's 95% interval of the difference.",
        ),
    ]  # fmt: skip


def _rate_of_each_arm(group: Group, rate: str) -> Chart:
    label, pools = RATES[rate].label, [group.base, *group.rows()]
    title = f"Right answers: {RATES[rate].tag or 'all'}"
    return rate_chart(group, _key(rate), rate, pools, lambda arm: None, f"{label}, without the context", title, _MARKS)


def _key(rate: str) -> str:
    return rate.replace(":", "-")


def _rate_curves(group: Group) -> list[Chart]:
    return [
        curve_chart(
            group, f"{_key(rate)}-curve", rate, f"Right answers over the updates: {RATES[rate].tag or 'all'}", ""
        )
        for rate in group.rates
    ]


def curve_charts(group: Group, published: Published) -> list[Chart]:
    """Figures over the updates made."""
    identity = group.axis == "identity"
    says = published.statements
    probes = (
        [
            curve_chart(group, "selfname-curve", "selfname", "Self-name over the updates", says["curves"]),
            curve_chart(group, "capability-curve", "capability", "Capability over the updates", ""),
        ]
        if identity
        else _rate_curves(group)
        if group.axis == "context"
        else [curve_chart(group, "pass-at-1-curve", "pass_at_1", "pass@1 over the updates", "")]
    )
    sweep = [chart for chart in ([sweep_chart(group, published)] if identity else []) if chart]
    inside = [
        train_chart(group, "mean_response_length", "Response length, tokens", says["length"] if identity else ""),
        train_chart(
            group, "kept", "Kept fraction",
            "Share of response tokens that the mask keeps. Diamonds: published, at the end.",
            lambda arm: published.value("kept_at_end", arm, "kept"),
        ),
        train_chart(group, "mean_evidence", "Mean evidence, nats a token", ""),
        train_chart(
            group, "k1", "k1: mean of delta, nats a token",
            "What is left between student and teacher, in the rollouts that the learner ran.",
        ),
    ]  # fmt: skip
    return probes + sweep + inside
