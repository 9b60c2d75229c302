"""A recipe: strict typed configuration from TOML. Every table is a frozen dataclass beside its owner.

Unknown keys, wrong types and values out of range are a ValueError of one line that names file, key, value and what
was expected.
"""

import dataclasses
import os
import tomllib
import typing
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

from cluster.faults import FaultsConfig
from cluster.observe.config import ObserveConfig
from cluster.typed import build, parse_overrides
from cluster.weights.transports import TRANSPORTS
from evidence.require import require
from evidence.rule import EvidenceConfig
from evidence.storage import refuse_credentials
from learner.config import ExportConfig, LearnerConfig
from rollout.config import EngineConfig, RolloutConfig, TemplateVariables
from rollout.probe import ProbeConfig
from rollout.tasks.config import TaskConfig

TEACHERS = ("frozen", "live", "snapshot", "ema")
GROUP_ORDERS = ("begun", "done")
DEFAULT_MODEL = "default"
SHIPPED = Path(__file__).parent / "recipes"
TASK_PATHS = (("task", "prompts_file"), ("task", "ordinary_file"), ("task", "probe_file"))
PATHS = (*TASK_PATHS, ("run", "storage"), ("model", "path"), ("teacher", "path"))


@dataclass(frozen=True)
class RunConfig:
    """The loop."""

    name: str = ""  # names the run folder, runs/NAME
    steps: int = 32  # learner steps
    seed: int = 0  # of prompts, sampling and probes
    # the max staleness, in versions: how far sampling may be behind the weights that learn from it; 0: on-policy
    max_policy_lag: int = 0
    # with a staleness above 0, begun: a step waits for groups that began so long ago that no later step may take them,
    # and none is discarded; done: it waits for none, and what is too old by then is sampled again, so that long answers
    # get rare
    group_order: str = "begun"
    checkpoint_every: int = 0  # steps between checkpoints; 0: none
    keep_checkpoints: int = 2  # the newest; 0: all
    probe_every: int = 8  # steps between probes; 0: only before and after
    storage: str = ""  # where shards go: a local path, or any URI that pyarrow opens; empty: RUN/shards
    date: str = ""  # what a chat template's clock shows, such as 2026-11-28; empty: the day on which the run starts

    def __post_init__(self) -> None:
        require(self.steps >= 1, "run.steps", self.steps, "at least 1")
        for key in ("seed", "max_policy_lag", "checkpoint_every", "keep_checkpoints", "probe_every"):
            require(getattr(self, key) >= 0, f"run.{key}", getattr(self, key), "0 or more")
        require(self.group_order in GROUP_ORDERS, "run.group_order", self.group_order, f"one of {GROUP_ORDERS}")
        require(not self.date or _is_day(self.date), "run.date", self.date, "a day, such as '2026-11-28'")
        try:
            refuse_credentials(self.storage)
        except ValueError as error:
            raise ValueError(f"run.storage: {error}") from None


@dataclass(frozen=True)
class ModelConfig:
    """The model that is trained."""

    # a Hugging Face folder, a hub id (NAME, NAME@REVISION), or default: SmolLM2-135M-Instruct
    path: str = DEFAULT_MODEL


@dataclass(frozen=True)
class TeacherConfig(EngineConfig):
    """The engines that score. It has the keys of [student] too."""

    # frozen: keeps its first weights; live: takes the student's after every step; snapshot: after every snapshot_every
    # steps; ema: takes their moving average after every step
    kind: str = "frozen"
    path: str = ""  # another model with the same tokenizer, for a frozen teacher; empty: the student's initial weights
    url: str = ""  # a vLLM server that is the frozen teacher, http://HOST:PORT/v1; empty: engines of our own
    snapshot_every: int = 10  # snapshot: steps
    ema_rate: float = 0.99  # ema: the average becomes ema_rate * average + (1 - ema_rate) * student
    # of weights and compute; auto: float32 on a CPU, bfloat16 on a GPU, whose noise flips mask bits where evidence is
    # small
    dtype: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.kind in TEACHERS, "kind", self.kind, f"one of {TEACHERS}")
        require(self.snapshot_every >= 1, "snapshot_every", self.snapshot_every, "at least 1")
        require(0 <= self.ema_rate < 1, "ema_rate", self.ema_rate, "0 to below 1")
        require(not (self.path and self.follows), "path", self.path, f"none for a {self.kind} teacher")
        _check_server(self.url)
        require(not (self.url and self.follows), "url", self.url, f"none for a {self.kind} teacher")
        require(not (self.url and self.path), "url", self.url, "none beside teacher.path: the server has its model")

    @property
    def dtypes(self) -> tuple[str, ...]:
        return ("auto", *super().dtypes)

    @property
    def follows(self) -> bool:
        """Whether it takes weights from the learner while it runs."""
        return self.kind != "frozen"

    @property
    def is_base(self) -> bool:
        """Whether log pi_T(y|x) is that of the frozen base, the anchor's reference."""
        return not self.follows and not self.path and not self.url

    def due(self, held: int, version: int) -> bool:
        """Whether a teacher that took its weights at student version `held` takes new ones at `version`."""
        every = self.snapshot_every if self.kind == "snapshot" else 1
        return self.follows and version // every > held // every


@dataclass(frozen=True)
class WeightsConfig:
    """How the learner's weights reach the engines."""

    transport: str = "auto"  # auto: what fits the placement
    # rollouts under way continue after the engine has recomputed its KV cache with the new weights; false: each ends
    # with the weights it began with
    in_flight: bool = True
    # over gloo a push carries only the 16-bit weights whose bits changed since the last one; both ends keep those bits,
    # 2 bytes a parameter
    delta: bool = False
    canary_tolerance: float = 0.1  # the most that engine and learner may ever differ on a text, nats a token
    deadline_s: float = 120.0  # seconds for a push

    def __post_init__(self) -> None:
        known = ("auto", *TRANSPORTS, "ray")
        require(self.transport in known, "weights.transport", self.transport, f"one of {known}")
        require(self.canary_tolerance > 0, "weights.canary_tolerance", self.canary_tolerance, "more than 0")
        require(self.deadline_s > 0, "weights.deadline_s", self.deadline_s, "more than 0 seconds")


@dataclass(frozen=True)
class Recipe:
    """All tables of a recipe."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    template: TemplateVariables = field(default_factory=TemplateVariables)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    evidence: EvidenceConfig = field(default_factory=EvidenceConfig)
    student: EngineConfig = field(default_factory=EngineConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    observe: ObserveConfig = field(default_factory=ObserveConfig)
    faults: FaultsConfig = field(default_factory=FaultsConfig)
    export: ExportConfig = field(default_factory=ExportConfig)

    def __post_init__(self) -> None:
        require(
            not (self.teacher.follows and self.learner.compares_distributions),
            "teacher.kind",
            self.teacher.kind,
            f"'frozen' for learner.objective = {self.learner.objective!r}: the learner runs the teacher itself",
        )
        require(
            not (self.teacher.url and self.learner.compares_distributions),
            "teacher.url",
            self.teacher.url,
            f"none for learner.objective = {self.learner.objective!r}: the learner runs the teacher itself",
        )
        if self.learner.lora_rank:
            where = "with learner.lora_rank, where the student's engines are the teacher's too, without the adapter"
            plain = self.teacher.is_base
            key = "kind" if self.teacher.follows else "path" if self.teacher.path else "url"
            require(plain, f"teacher.{key}", getattr(self.teacher, key), f"the frozen base {where}")
            shared = self.teacher.dtype in ("auto", self.student.dtype)
            require(shared, "teacher.dtype", self.teacher.dtype, f"'auto' or student.dtype {where}")
        expected = "false with learner.dtype = 'float32': only weights of 16 bits stay as they are in a step"
        require(not self.weights.delta or self.learner.dtype != "float32", "weights.delta", True, expected)
        every, saved = self.teacher.snapshot_every, self.run.checkpoint_every
        require(
            self.teacher.kind != "snapshot" or saved % every == 0,
            "run.checkpoint_every",
            saved,
            f"a multiple of teacher.snapshot_every = {every}, so that a resumed run has the teacher's weights",
        )
        if self.probe.patience:
            self._check_patience()
        pool = "student" if self.student.window == self.window else "teacher"
        most, room = self.rollout.max_response_tokens, f"less than {pool}.window = {self.window}"
        require(most < self.window, "rollout.max_response_tokens", most, f"{room}, which holds the prompt too")

    def _check_patience(self) -> None:
        patience, run = self.probe.patience, self.run
        expected = f"0 with run.probe_every = {run.probe_every} and run.steps = {run.steps}: no probe is on the way"
        require(0 < run.probe_every < run.steps, "probe.patience", patience, expected)
        expected = "0 with export.choose = 'average': which steps are the last is not known before them"
        require(self.export.choose != "average", "probe.patience", patience, expected)

    @property
    def teacher_engines(self) -> int:
        """None of our own beside an adapter, where the student's engines score without it as the frozen base, and none
        where a server is the teacher."""
        return 0 if self.learner.lora_rank or self.teacher.url else self.teacher.num_engines

    @property
    def teacher_key(self) -> str:
        """The key that names the teacher's model."""
        return "teacher.path" if self.teacher.path else "model.path"

    @property
    def window(self) -> int:
        """Prompt and response tokens that both engines hold."""
        return min(self.student.window, self.teacher.window)


def _check_server(url: str) -> None:
    """ValueError for what is no base of a server's API, or may hold a credential, which the message does not repeat."""
    if "@" in url or "?" in url or "#" in url:
        raise ValueError(
            "url: found a user, a query or a fragment, which may hold a credential and a run's files would repeat, "
            "expected the base of a server's API, such as 'http://HOST:8000/v1', with its key in OPENAI_API_KEY"
        )
    is_url = url.startswith(("http://", "https://"))
    require(is_url or not url, "url", url, "the base of a server's API, such as 'http://HOST:8000/v1'")


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


T = TypeVar("T")


def load_recipe(path: str | os.PathLike[str], overrides: typing.Sequence[str] = ()) -> Recipe:
    """A recipe from a TOML file and `table.key=value` overrides, values in TOML syntax (a bare word is a string).

    A recipe states only what differs from its `base`: a file beside it, or a list of them of which later ones win.
    Relative paths in either are `located`.
    """
    return located(build(Recipe, parse_overrides(overrides, _read(Path(path), ())), str(path)))


def located(recipe: Recipe) -> Recipe:
    """Its relative paths as absolute ones, from the folder that this process works in: an actor works in another."""
    tables = {name: getattr(recipe, name) for name, _ in PATHS}
    for name, key in PATHS:
        tables[name] = dataclasses.replace(tables[name], **{key: _located(getattr(tables[name], key), key == "path")})
    return dataclasses.replace(recipe, **tables)


def _located(path: str, is_model: bool) -> str:
    """A URI, and the name of a model that is no folder here, stay as they are."""
    expanded = os.path.expanduser(path)
    is_name = is_model and not path.startswith((".", "/", "~")) and (path == DEFAULT_MODEL or not os.path.isdir(path))
    return path if not path or "://" in path or is_name else os.path.abspath(expanded)


def _read(path: Path, readers: tuple[Path, ...]) -> dict[str, Any]:
    """The tables of a recipe over those of its bases. `readers` are the recipes that led here."""
    try:
        own = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        asked = f"{readers[-1]}: base: " if readers else ""
        likely = [near for near in (path / "config.toml", SHIPPED / f"{path.stem}.toml") if near.is_file()]
        meant = f"; did you mean {likely[0]}?" if likely else ""
        if path.is_dir():
            raise ValueError(f"{asked}{path}: found a folder, expected a recipe in TOML{meant}") from None
        raise ValueError(f"{asked}{path}: found no such file, expected a recipe in TOML{meant}") from None
    except (ValueError, RecursionError) as error:  # also of a number or of brackets that Python does not read
        raise ValueError(f"{path}: found text that is not TOML ({error}), expected a recipe") from None
    named = own.pop("base", [])
    bases = [named] if isinstance(named, str) else named
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"{path}: base: found {named!r}, expected a recipe's file name, or a list of them")
    merged: dict[str, Any] = {}
    for base in (path.parent / name for name in bases):
        if base.resolve() in {reader.resolve() for reader in (*readers, path)}:
            raise ValueError(f"{path}: base: found {base.name}, which has this recipe as its base, expected another")
        merged = _over(merged, _read(base, (*readers, path)))
    return _over(merged, own)


def _over(under: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Tables merged key by key; everything else is replaced."""
    both = {key for key in under.keys() & above.keys() if isinstance(under[key], dict) and isinstance(above[key], dict)}
    return under | above | {key: under[key] | above[key] for key in both}


def dump(recipe: Recipe) -> str:
    """The resolved recipe as TOML; `load_recipe` of it gives an equal recipe."""
    import tomli_w  # what only reads recipes does without it

    return tomli_w.dumps(dataclasses.asdict(recipe))
