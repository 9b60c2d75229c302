"""Which arm of the published experiment matrix (EDGE-OPD, arXiv 2605.23493) a run is, by its recipe.

`context` is where r is rendered. Model, steps and learning rate do not make an arm: they are shown beside it.
"""

from dataclasses import dataclass
from typing import Any

from cluster.config import Recipe

PUBLISHED_BETA_KL = 0.05
Values = dict[tuple[str, str], object]  # (table, key) -> a value
# The value that every published arm has. Another value makes a run "other".
_FIXED: Values = {
    ("evidence", "kind"): "teacher_contrast",
    ("evidence", "tau"): 0.0,
    ("evidence", "tau_kind"): "value",
    ("teacher", "kind"): "frozen",
    ("teacher", "path"): "",
    ("teacher", "url"): "",
    ("learner", "denominator"): "response",
    ("learner", "evidence_scale"): 1.0,
    ("learner", "lora_rank"): 0,
    ("rollout", "sampler"): "student",
    ("rollout", "guided_split"): "fixed",
    ("rollout", "ordinary_share"): 0.0,
    ("task", "ordinary_questions"): False,
    ("task", "ordinary_file"): "",
    ("task", "context_empty_allowed"): False,
}
# Of the arms with soft weights, and of RLSD with its verifier (N15).
_SOFT: Values = {
    ("evidence", "soft"): "rlsd",
    ("evidence", "soft_eps"): 0.2,
    ("evidence", "soft_mix"): 1.0,
    ("evidence", "soft_mix_decay_steps"): 0,
}
_GRPO: Values = {
    ("evidence", "region"): "all",
    ("evidence", "soft"): "rlsd_verifier",
    ("evidence", "soft_eps"): 0.2,
    ("evidence", "soft_mix"): 0.5,
    ("evidence", "soft_mix_decay_steps"): 50,
    ("learner", "clip_low"): 0.2,
    ("learner", "clip_high"): 0.28,
}


@dataclass(frozen=True)
class Setting:
    """What tells the arms apart. `objective` k1 is the sampled-token policy gradient, grpo has a verifier's reward."""

    axis: str  # "identity", "math" or "context"
    guided: float
    mask: str  # a region; "-" for grpo
    kl: bool
    soft: bool
    context: str
    objective: str = "k1"


@dataclass(frozen=True)
class Arm:
    """A row of the matrix, or "other" with a label that describes it. `family` decides colour and grouping."""

    code: str
    label: str
    family: str
    setting: Setting


def _family(setting: Setting) -> str:
    if setting.guided == 0:
        return "unguided"
    if setting.objective != "k1":
        return "verifier" if setting.objective == "grpo" else "other"
    return "soft" if setting.soft else setting.mask


def _row(code: str, label: str, *setting: Any) -> Arm:
    found = Setting(*setting)
    return Arm(code, label, _family(found), found)


MATRIX = (
    _row("N1", "OPSD", "identity", 0.0, "all", False, False, "system"),
    _row("N4", "RLSD-no-verifier", "identity", 0.0, "all", False, True, "system"),
    _row("N2", "guided OPSD", "identity", 0.5, "all", False, False, "system"),
    _row("N2u", "guided OPSD, user", "identity", 0.5, "all", False, False, "user"),
    _row("N4g", "guided RLSD-nv", "identity", 0.5, "all", False, True, "system"),
    _row("N7", "EDGE, no KL", "identity", 0.5, "pos", False, False, "system"),
    _row("N7u", "EDGE, no KL, user", "identity", 0.5, "pos", False, False, "user"),
    _row("N3", "EDGE-OPD", "identity", 0.5, "pos", True, False, "system"),
    _row("N3u", "EDGE-OPD, user", "identity", 0.5, "pos", True, False, "user"),
    _row("N3u-g0125", "EDGE, 1/8 guided", "identity", 0.125, "pos", True, False, "user"),
    _row("N3u-g100", "EDGE, all guided", "identity", 1.0, "pos", True, False, "user"),
    _row("N11", "negative mask", "identity", 0.5, "neg", True, False, "user"),
    _row("N12", "near-zero mask", "identity", 0.5, "near_zero", True, False, "user"),
    _row("N9", "OPSD", "math", 0.5, "all", False, False, "system"),
    _row("N10", "RLSD-no-verifier", "math", 0.5, "all", False, True, "system"),
    _row("N15", "RLSD", "math", 0.5, "-", False, False, "system", "grpo"),
    _row("N6", "EDGE-OPD", "math", 0.5, "pos", True, False, "system"),
    _row("N13", "negative mask", "math", 0.5, "neg", True, False, "system"),
    _row("N14", "near-zero mask", "math", 0.5, "near_zero", True, False, "system"),
)
BASE = Arm("N0", "base model", "base", Setting("", 0.0, "-", False, False, "-"))


def axis_of(recipe: Recipe) -> str:
    """identity; context for rows of one's own and private facts, of which nothing was published; else math."""
    return {"identity": "identity", "context": "context", "facts": "context"}.get(recipe.task.name, "math")


def arm_of(recipe: Recipe) -> Arm:
    """The published arm of a recipe, or `other` with a description."""
    setting, strays = _setting(recipe), _strays(recipe)
    for arm in MATRIX:
        if arm.setting == setting and not strays:
            return arm
    return Arm("other", _describe(setting, strays), _family(setting), setting)


def _setting(recipe: Recipe) -> Setting:
    verified = recipe.learner.objective == "grpo"
    return Setting(
        axis=axis_of(recipe),
        guided=recipe.rollout.guided_fraction,
        mask="-" if verified else recipe.evidence.region,
        kl=recipe.learner.beta_kl > 0,
        soft=not verified and recipe.evidence.soft != "none",
        context=recipe.rollout.context_position,
        objective=recipe.learner.objective,
    )


# What `_setting` reads: with the fixed values, all that tells the arms apart.
_SETTING = (
    ("task", "name"),
    ("rollout", "guided_fraction"),
    ("rollout", "context_position"),
    ("evidence", "region"),
    ("evidence", "near_zero"),
    ("learner", "objective"),
    ("learner", "beta_kl"),
)
DECIDING = frozenset({*_SETTING, *_FIXED, *_SOFT, *_GRPO})


def _strays(recipe: Recipe) -> list[str]:
    """Settings that no published arm has."""
    fixed = dict(_FIXED)
    if axis_of(recipe) == "context":  # nothing was published of it
        del fixed["task", "ordinary_questions"]
    if recipe.learner.beta_kl > 0:
        fixed["learner", "beta_kl"] = PUBLISHED_BETA_KL
    if recipe.evidence.region == "near_zero":
        fixed["evidence", "near_zero"] = 0.1
    if recipe.learner.objective == "grpo":
        fixed |= _GRPO
    elif recipe.evidence.soft != "none":
        fixed |= _SOFT
    found = {(table, key): getattr(getattr(recipe, table), key) for table, key in fixed}
    return [f"{key} {found[table, key]}" for (table, key), value in fixed.items() if found[table, key] != value]


def _describe(setting: Setting, strays: list[str]) -> str:
    parts = [
        f"guided {setting.guided:g}",
        *([setting.objective] if setting.objective != "k1" else []),
        *([setting.mask] if setting.mask != "-" else []),
        *(["soft"] if setting.soft else []),
        "KL" if setting.kl else "no KL",
        setting.context,
        *strays,
    ]
    return ", ".join(parts)
