"""Recipes, run directories and placement: what is refused, in one line that says where, what and what instead."""

import re
from dataclasses import asdict, fields, replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from cluster.__main__ import main
from cluster.config import Recipe, RunConfig, TeacherConfig, WeightsConfig, dump, load_recipe, located
from cluster.fleet.placement import Plan, Share, make_plan
from cluster.report.arms import MATRIX, Arm, arm_of
from cluster.resolved import read_resolved
from cluster.run.rundir import RunDir, settled
from cluster.typed import build, parse_overrides
from evidence.rule import EvidenceConfig
from learner.config import LearnerConfig, head_chunk
from rollout.config import EngineConfig, TemplateVariables

RECIPES = sorted((Path(__file__).parents[2] / "cluster" / "recipes").glob("*.toml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ValueError) as caught:
        load_recipe(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


# What a recipe may not hold


@pytest.mark.parametrize(
    ("text", "key", "found", "expected"),
    [
        ("[lerner]\nlr = 1.0", "lerner", "an unknown key", "faults, learner, model, observe, probe, rollout, run"),
        ("[learner]\nlearning_rate = 1.0", "learner.learning_rate", "an unknown key", "lr, lr_end, lr_schedule"),
        ("[teacher]\nbackend = 'x'", "teacher.backend", "an unknown key", "cpu_threads, dtype"),
        ("lr = 1.0", "lr", "an unknown key", "learner"),
        ("lr = 1.0", "lr", "an unknown key", "weights; did you mean learner.lr?"),
        ("[run]\nwindow = 1", "run.window", "an unknown key", "did you mean student.window or teacher.window?"),
        ("[learner]\nlr_shedule = 'x'", "learner.lr_shedule", "an unknown key", "; did you mean learner.lr_schedule?"),
        ("[lerner]\nlr = 1.0", "lerner", "an unknown key", "weights; did you mean learner?"),
        ("learner = 3", "learner", "3", "a table"),
        ("learner = [1]", "learner", "[1]", "a table"),
        # Types
        ("[run]\nname = 3", "run.name", "3", "a text"),
        ("[run]\nsteps = '3'", "run.steps", "'3'", "a whole number"),
        ("[run]\nsteps = 3.0", "run.steps", "3.0", "a whole number"),
        ("[run]\nsteps = true", "run.steps", "True", "a whole number"),
        ("[weights]\nin_flight = 1", "weights.in_flight", "1", "true or false"),
        ("[student]\nenforce_eager = 1", "student.enforce_eager", "1", "true, false or text"),
        ("[student]\nenforce_eager = 'yes'", "student.enforce_eager", "'yes'", "true, false or 'auto'"),
        ("[learner]\nlr = true", "learner.lr", "True", "a number"),
        ("[learner]\nlr = '1e-5'", "learner.lr", "'1e-5'", "a number"),
        ("[learner]\nbetas = 0.9", "learner.betas", "0.9", "a list of 2"),
        ("[learner]\nbetas = [0.9, 0.95, 0.99]", "learner.betas", "[0.9, 0.95, 0.99]", "a list of 2"),
        ("[learner]\nbetas = [0.9, 'x']", "learner.betas", "'x'", "a number"),
        ("[run]\nname = ['a']", "run.name", "['a']", "a text"),
        ("[run]\nname = {a = 1}", "run.name", "{'a': 1}", "a text"),
        ("[run]\nname = 2026-01-01", "run.name", "datetime.date(2026, 1, 1)", "a text"),
        # Ranges
        ("[run]\nsteps = 0", "run.steps", "0", "at least 1"),
        ("[run]\nseed = -1", "run.seed", "-1", "0 or more"),
        ("[probe]\nrequire = 1.5", "probe.require", "1.5", "0 to 1"),
        ("[probe]\nrequire_of_teacher = -0.5", "probe.require_of_teacher", "-0.5", "0 or more, a share of the teach"),
        ("[probe]\ngap = false\nrequire_of_teacher = 0.5", "probe.require_of_teacher", "0.5", "0.0 with probe.gap ="),
        ("[rollout]\nguided_fraction = 1.01", "rollout.guided_fraction", "1.01", "0 to 1"),
        ("[rollout]\nsampler = 'both'", "rollout.sampler", "'both'", "('student', 'teacher')"),
        ("[rollout]\nguided_split = 'half'", "rollout.guided_split", "'half'", "['bernoulli', 'fixed']"),
        ("[run]\ngroup_order = 'any'", "run.group_order", "'any'", "one of ('begun', 'done')"),
        ("[run]\ndate = 'today'", "run.date", "'today'", "a day, such as '2026-11-28'"),
        ("[run]\ndate = '20261128'", "run.date", "'20261128'", "a day, such as '2026-11-28'"),
        ("[template]\nday = 2026-11-28", "template.day", "datetime.date(2026, 11, 28)", "text, a number, true, false"),
        ("[rollout]\ncontext_position = 'tool'", "rollout.context_position", "'tool'", "'user', 'before_last_user'"),
        ("[rollout]\nmax_refused_fraction = 1.0", "rollout.max_refused_fraction", "1.0", "0 to below 1"),
        ("[rollout]\ntemperature = 0", "rollout.temperature", "0.0", "0.01 to 2.0"),
        ("[rollout]\ntemperature = 0.005", "rollout.temperature", "0.005", "0.01 to 2.0"),
        ("[rollout]\ntemperature = 2.5", "rollout.temperature", "2.5", "0.01 to 2.0"),
        ("[probe]\ntemperature = 0.005", "probe.temperature", "0.005", "0 (greedy), or 0.01 to 2.0"),
        ("[probe]\ntemperature = 3", "probe.temperature", "3.0", "0 (greedy), or 0.01 to 2.0"),
        ("[probe]\ntemperature = 0", "probe.samples", "4", "1 with probe.temperature = 0"),
        ("[evidence]\nregion = 'positive'", "evidence.region", "'positive'", "all, near_zero, neg, pos"),
        ("[evidence]\ntau_kind = 'rank'", "evidence.tau_kind", "'rank'", "quantile, value"),
        ("[evidence]\ntau_kind = 'quantile'\ntau = 2", "evidence.tau", "2.0", "0 to 1"),
        ("[evidence]\nkind = 'contrastive'\nnum_wrong_contexts = 0", "evidence.num_wrong_contexts", "0", "at least 1"),
        ("[evidence]\ntau = nan", "evidence.tau", "nan", "not NaN"),
        ("[student]\nwindow = 0", "student.window", "0", "at least 1"),
        ("[student]\nwindow = 20", "rollout.max_response_tokens", "40", "less than student.window = 20, which holds"),
        ("[teacher]\nwindow = 40", "rollout.max_response_tokens", "40", "less than teacher.window = 40, which holds"),
        ("[learner]\nstart_deadline_s = 0", "learner.start_deadline_s", "0.0", "more than 0 seconds"),
        ("[learner]\nstep_deadline_s = -1", "learner.step_deadline_s", "-1.0", "more than 0 seconds"),
        ("[teacher]\nwindow = 0", "teacher.window", "0", "at least 1"),
        ("[teacher]\nkind = 'own'", "teacher.kind", "'own'", "'frozen', 'live', 'snapshot', 'ema'"),
        ("[teacher]\nkind = 'live'\npath = 'm'", "teacher.path", "'m'", "none for a live teacher"),
        ("[teacher]\nsnapshot_every = 0", "teacher.snapshot_every", "0", "at least 1"),
        ("[teacher]\nema_rate = 1.0", "teacher.ema_rate", "1.0", "0 to below 1"),
        (
            "[teacher]\nkind = 'snapshot'\nsnapshot_every = 4\n[run]\ncheckpoint_every = 6",
            "run.checkpoint_every",
            "6",
            "a multiple of teacher.snapshot_every = 4",
        ),
        ("[learner]\nwarmup_steps = -1", "learner.warmup_steps", "-1", "0 or more"),
        ("base = 3", "base", "3", "a recipe's file name"),
        ("base = 'recipe.toml'", "base", "recipe.toml, which has this recipe as its base", "another"),
        ("[student]\ndtype = 'int8'", "student.dtype", "'int8'", "bfloat16"),
        ("[learner]\nzero_stage = 4", "learner.zero_stage", "4", "0, 1, 2 or 3"),
        ("[learner]\nlr = nan", "learner.lr", "nan", "more than 0"),
        ("[learner]\nlr = 0", "learner.lr", "0.0", "more than 0"),
        ("[learner]\nbetas = [0.9, 1.0]", "learner.betas", "(0.9, 1.0)", "below 1"),
        ("[learner]\nobjective = 'k2'", "learner.objective", "'k2'", "'k1'"),
        ("[learner]\ndenominator = 'mean'", "learner.denominator", "'mean'", "'sequence_mean'"),
        ("[weights]\ntransport = 'tcp'", "weights.transport", "'tcp'", "('auto', 'shm', 'gloo', 'ipc', 'nccl', 'ray')"),
        (
            "[weights]\ndelta = true\n[learner]\ndtype = 'float32'",
            "weights.delta",
            "True",
            "false with learner.dtype = 'float32': only weights of 16 bits stay as they are in a step",
        ),
        ("[probe]\ntop_p = 0.0", "probe.top_p", "0.0", "more than 0, at most 1"),
    ],
)  # fmt: skip
def test_a_refusal_names_file_key_found_and_expected(
    tmp_path: Path, text: str, key: str, found: str, expected: str
) -> None:
    path = write(tmp_path, text)
    message = refusal(path)
    where, _, rest = message.removeprefix(f"{path}: ").partition(": found ")
    assert message.startswith(f"{path}: ")
    assert where == key
    what, _, instead = rest.partition(", expected ")
    assert what == found
    assert expected in instead


def test_a_missing_file_a_folder_and_text_that_is_not_toml_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.toml") == f"{tmp_path / 'none.toml'}: found no such file, expected a recipe in TOML"
    assert refusal(tmp_path) == f"{tmp_path}: found a folder, expected a recipe in TOML"
    shipped = Path(__file__).parents[2] / "cluster" / "recipes" / "local-smoke.toml"
    assert refusal(Path("local-smoke")).endswith(f"expected a recipe in TOML; did you mean {shipped}?")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").touch()
    assert refusal(run).endswith(f"found a folder, expected a recipe in TOML; did you mean {run / 'config.toml'}?")
    assert "found text that is not TOML" in refusal(write(tmp_path, "[run\nsteps = 1"))
    binary = tmp_path / "recipe.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "found text that is not TOML" in refusal(binary)


def test_an_empty_recipe_is_all_defaults(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, "")) == Recipe()


def test_a_whole_number_is_fine_where_a_float_is_expected(tmp_path: Path) -> None:
    loaded = load_recipe(write(tmp_path, "[learner]\nlr = 1\nbetas = [0, 0.5]\n[evidence]\ntau = -inf"))
    assert (loaded.learner.lr, loaded.learner.betas, loaded.evidence.tau) == (1.0, (0.0, 0.5), float("-inf"))
    assert type(loaded.learner.lr) is float


def test_the_window_is_what_both_engines_hold() -> None:
    assert Recipe(student=EngineConfig(window=300), teacher=TeacherConfig(window=200)).window == 200
    assert Recipe(student=EngineConfig(window=100), teacher=TeacherConfig(window=200)).window == 100


# --set


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("run.name=tower", "tower"),
        ("run.name=two words", "two words"),
        ("run.name='quoted'", "quoted"),
        ('run.name="3"', "3"),
        ("run.name=", ""),
        ("run.name=a=b", "a=b"),
        ("run.name=hf/org-model_1.5", "hf/org-model_1.5"),
        ("run.steps=7", 7),
        ("run.steps = 7", 7),
        ("learner.lr=3e-5", 3e-5),
        ("learner.lr=0.25", 0.25),
        ("evidence.tau=-0.5", -0.5),
        ("evidence.tau=-inf", float("-inf")),
        ("student.enforce_eager=auto", "auto"),
        ("student.enforce_eager=false", False),
        ("weights.in_flight=false", False),
        ("learner.betas=[0.8, 0.9]", (0.8, 0.9)),
    ],
)
def test_set_reads_toml_values_and_bare_words(tmp_path: Path, text: str, value: Any) -> None:
    loaded = load_recipe(write(tmp_path, "[run]\nsteps = 5\nseed = 2"), [text])
    table, key = text.partition("=")[0].strip().split(".")
    found = getattr(getattr(loaded, table), key)
    assert found == value
    assert type(found) is type(value)
    assert loaded.run.seed == 2  # its neighbours stay


LONG, LONGER, NESTED = "1" * 400, "1" * 5000, "[" * 100_000


@pytest.mark.parametrize(("key", "expected"), [("run.steps", "a whole number"), ("learner.lr", "a number")])
@pytest.mark.parametrize(
    ("number", "bits"), [(2**63, 64), (int(LONG), 1326), (-int(LONG), 1326)], ids=["64 bits", "long", "negative"]
)
def test_a_number_beyond_64_bits_is_refused(tmp_path: Path, key: str, expected: str, number: int, bits: int) -> None:
    table, name = key.split(".")
    said = f"{key}: found a whole number of {bits} bits, expected {expected} of at most 63"
    path = write(tmp_path, f"[{table}]\n{name} = {number}\n")
    assert refusal(path) == f"{path}: {said}"
    path = write(tmp_path, "")
    assert refusal(path, f"{key}={number}") == f"{path}: {said}"


@pytest.mark.parametrize("text", [LONGER, NESTED], ids=["digits", "brackets"])
def test_what_python_does_not_read_of_a_recipe_is_no_toml(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, f"[run]\nsteps = {text}\n")
    assert refusal(path).startswith(f"{path}: found text that is not TOML (")
    path = write(tmp_path, "")
    assert refusal(path, f"run.steps={text}") == f"{path}: run.steps: found {text!r}, expected a whole number"


def test_the_last_of_two_sets_wins_and_both_beat_the_file(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, "[run]\nsteps = 5"), ["run.steps=6", "run.steps=7"]).run.steps == 7


@pytest.mark.parametrize("text", ["run.steps", "steps=3", "run.steps.more=3", "=3", ".steps=3", "run.=3", "", "--run"])
def test_a_malformed_set_is_refused(tmp_path: Path, text: str) -> None:
    assert refusal(write(tmp_path, ""), text) == f"--set {text}: found {text!r}, expected table.key=value"


def test_a_set_is_checked_like_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    assert refusal(path, "run.steps=many") == f"{path}: run.steps: found 'many', expected a whole number"
    assert "run.stepz: found an unknown key" in refusal(path, "run.stepz=1")
    assert "lerner: found an unknown key" in refusal(path, "lerner.lr=1.0")
    assert "learner.lr: found -1.0, expected more than 0" in refusal(path, "learner.lr=-1.0")


def test_a_set_into_what_is_no_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--set run\.steps=3: found run = 3, expected a table"):
        parse_overrides(["run.steps=3"], {"run": 3})


# A recipe over its base


def test_a_recipe_states_only_what_differs_from_its_base(tmp_path: Path) -> None:
    (tmp_path / "root.toml").write_text("[run]\nsteps = 5\nseed = 1\n[learner]\nlr = 1.0\nbeta_kl = 0.5")
    (tmp_path / "middle.toml").write_text("base = 'root.toml'\n[run]\nseed = 2\n[evidence]\nregion = 'neg'")
    loaded = load_recipe(write(tmp_path, "base = 'middle.toml'\n[learner]\nbeta_kl = 0.0"), ["run.seed=3"])
    assert (loaded.run.steps, loaded.run.seed) == (5, 3)
    assert (loaded.learner.lr, loaded.learner.beta_kl) == (1.0, 0.0)
    assert loaded.evidence.region == "neg"


def test_of_several_bases_later_ones_win(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[run]\nsteps = 5\nseed = 1")
    (tmp_path / "b.toml").write_text("[run]\nseed = 2")
    assert load_recipe(write(tmp_path, "base = ['a.toml', 'b.toml']")).run == RunConfig(steps=5, seed=2)
    assert load_recipe(write(tmp_path, "base = ['b.toml', 'a.toml']")).run == RunConfig(steps=5, seed=1)


def test_a_base_that_is_missing_or_comes_round_again_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "base = 'none.toml'")
    assert refusal(path).startswith(f"{path}: base: {tmp_path / 'none.toml'}: found no such file")
    (tmp_path / "other.toml").write_text("base = 'recipe.toml'")
    assert "which has this recipe as its base" in refusal(write(tmp_path, "base = 'other.toml'"))


# Teachers


@pytest.mark.parametrize(
    "url",
    [
        "http://user:s3cr3t@h/v1", "https://s3cr3t@h/v1", "http://h/v1?api_key=s3cr3t", "http://h/v1#s3cr3t",
        "http://user:pw@h/v1?api_key=s3cr3t", "user:s3cr3t@h",
    ],
)  # fmt: skip
def test_a_teachers_url_with_a_credential_is_refused_and_not_repeated(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["run", str(RECIPES[0]), "--run-dir", str(run), "--set", f"teacher.url={url}"]) == 2
    said = capsys.readouterr()
    assert "teacher.url: found a user, a query or a fragment" in said.err and not run.exists()
    assert "s3cr3t" not in said.out + said.err
    assert TeacherConfig(url="http://h:8000/v1").url == "http://h:8000/v1"


@pytest.mark.parametrize(
    ("kind", "due"),
    [("frozen", []), ("live", [1, 2, 3, 4, 5, 6, 7]), ("ema", [1, 2, 3, 4, 5, 6, 7]), ("snapshot", [3, 6])],
)
def test_a_teacher_takes_new_weights_when_its_kind_says_so(kind: str, due: list[int]) -> None:
    teacher, held, taken = TeacherConfig(kind=kind, snapshot_every=3), 0, []
    for version in range(8):
        if teacher.due(held, version):
            held = version
            taken.append(version)
    assert taken == due


def test_a_snapshot_is_taken_late_where_its_version_was_passed_over() -> None:
    assert TeacherConfig(kind="snapshot", snapshot_every=3).due(held=0, version=4)


def test_only_a_frozen_teacher_without_a_path_is_the_anchors_base() -> None:
    assert TeacherConfig().is_base
    assert not TeacherConfig(path="other").is_base
    assert not any(TeacherConfig(kind=kind).is_base for kind in ("live", "snapshot", "ema"))


# Shipped recipes


@pytest.mark.parametrize("arm", MATRIX, ids=lambda arm: arm.code)
def test_every_arm_of_the_published_matrix_is_a_recipe(arm: Arm) -> None:
    assert arm_of(load_recipe(RECIPES[0].parent / f"{arm.code}.toml")) == arm


IDENTITY = [arm.code for arm in MATRIX if arm.setting.axis == "identity"]


@pytest.mark.parametrize("code", IDENTITY)
def test_the_arms_differ_in_nothing_else(code: str) -> None:
    arm, base = (load_recipe(RECIPES[0].parent / f"{name}.toml") for name in (code, "identity"))
    differing = {
        f"{table}.{key}"
        for table, values in asdict(arm).items()
        for key, value in values.items()
        if value != asdict(base)[table][key]
    }
    allowed = {"rollout.guided_fraction", "evidence.region", "learner.beta_kl", "evidence.soft", "run.name"}
    assert differing <= allowed | {"rollout.context_position"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.run.name == path.stem
    text = dump(recipe)
    assert load_recipe(write(tmp_path, text)) == recipe
    assert dump(load_recipe(tmp_path / "recipe.toml")) == text


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_that_runs_for_hours_has_checkpoints(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.run.checkpoint_every or (recipe.run.steps <= 32 and recipe.rollout.deadline_s < 3600)


def test_a_dump_holds_every_key_and_odd_values(tmp_path: Path) -> None:
    odd = Recipe(
        run=RunConfig(name='a "quoted" näme\n\\', storage="s3://bucket/x"),
        evidence=EvidenceConfig(tau=float("-inf"), near_zero=0.0),
        learner=LearnerConfig(lr=1e-20, betas=(0.0, 0.1)),
        template=TemplateVariables(
            {"enable_thinking": False, "effort": "low", "stops": [1, 2.5], "user": {"name": "a"}}
        ),
    )
    assert load_recipe(write(tmp_path, dump(odd))) == odd
    for table in fields(Recipe):
        assert f"[{table.name}]" in dump(odd)


# Run directories


def claimed(root: Path, recipe: Recipe | None = None) -> RunDir:
    run = RunDir(root)
    run.claim(recipe or Recipe(), resume=False)
    return run


def refused_claim(root: Path, recipe: Recipe, resume: bool) -> str:
    with pytest.raises(ValueError) as caught:
        RunDir(root).claim(recipe, resume)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(root))
    return message


def test_a_new_run_keeps_its_resolved_recipe(tmp_path: Path) -> None:
    recipe = Recipe(run=RunConfig(name="a", steps=3))
    run = claimed(tmp_path / "deep" / "run", recipe)
    assert load_recipe(run.config) == recipe
    assert all(folder.is_dir() for folder in (run.shards, run.checkpoints, run.answers))


def test_a_run_keeps_the_date_of_its_start(tmp_path: Path) -> None:
    given = Recipe(run=RunConfig(date="2026-02-03"))
    folder = RunDir(tmp_path / "run")
    first = settled(Recipe(), folder)
    assert first.run.date == date.today().isoformat() and settled(given, folder) == given
    folder.claim(given, resume=False)
    folder.release()
    assert settled(Recipe(), folder) == given  # on another day
    RunDir(folder.root).claim(settled(Recipe(), folder), resume=True)


def test_an_older_run_keeps_the_machines_clock(tmp_path: Path) -> None:
    folder = claimed(tmp_path / "run")
    folder.release()
    lines = folder.config.read_text().splitlines(keepends=True)
    folder.config.write_text("".join(line for line in lines if not line.startswith(("date =", "[template]"))))
    assert settled(Recipe(), folder) == Recipe()


def test_other_template_variables_are_another_recipe(tmp_path: Path) -> None:
    run = claimed(tmp_path / "run")
    run.manifest.write_text("")
    message = refused_claim(run.root, Recipe(template=TemplateVariables({"thinking": True})), resume=True)
    assert message.startswith(f"{run.config}: template.thinking: found None, expected True: ")


@pytest.mark.parametrize(("more", "expected"), [("", 0.25), ("[probe]\nrequire = 0.5", 0.5)])
def test_an_older_runs_required_self_name_is_its_main_rate(tmp_path: Path, more: str, expected: float) -> None:
    (tmp_path / "config.toml").write_text(f"[run]\nrequire_selfname = 0.25\n{more}")
    assert read_resolved(tmp_path).recipe.probe.require == expected


def test_an_empty_folder_may_become_a_run(tmp_path: Path) -> None:
    assert claimed(tmp_path).config.exists()


def test_a_run_of_the_same_recipe_may_be_resumed_but_not_overwritten(tmp_path: Path) -> None:
    run = claimed(tmp_path / "run")
    claimed(tmp_path / "run")  # it failed before its first step: there is nothing to lose
    run.metrics.write_text("{}\n")
    assert refused_claim(run.root, Recipe(), resume=False).endswith("expected --resume or another --run-dir")
    RunDir(run.root).claim(Recipe(), resume=True)
    assert run.metrics.read_text() == "{}\n"


@pytest.mark.parametrize("resume", [False, True])
def test_another_recipes_run_is_refused_with_what_differs(tmp_path: Path, resume: bool) -> None:
    run = claimed(tmp_path / "run")
    run.manifest.write_text("")
    other = replace(Recipe(), teacher=TeacherConfig(window=777))
    message = refused_claim(run.root, other, resume)
    assert message.startswith(f"{run.config}: teacher.window: found 512, expected 777: ")
    assert message.endswith("the run belongs to another recipe")
    assert load_recipe(run.config) == Recipe()


def test_a_run_that_never_began_makes_way_for_a_corrected_recipe(tmp_path: Path) -> None:
    """As after a placement that does not fit, or an engine that could not start."""
    run, other = claimed(tmp_path / "run"), replace(Recipe(), teacher=TeacherConfig(window=777))
    assert load_recipe(claimed(run.root, other).config) == other


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert "found something that is not a run" in refused_claim(tmp_path, Recipe(), resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


OLDER = {"enforce_eager": True, "gpu_memory_utilization": 0.3}


@pytest.mark.parametrize(
    ("changed", "refused"),
    [
        ({}, ""),
        ({"student": {"enforce_eager": False}}, "student.enforce_eager: found False, expected 'auto'"),
        ({"teacher": {"dtype": "bfloat16"}}, "teacher.dtype: found 'bfloat16', expected 'auto'"),
        ({"student": {"gpu_memory_utilization": 0.4}}, "student.gpu_memory_utilization: found 0.4, expected 0.0"),
        ({"learner": {"head_chunk_tokens": 128}}, "learner.head_chunk_tokens: found 128, expected 0"),
    ],
    ids=str,
)
def test_a_run_of_before_defaults_were_a_devices_is_the_same_run(
    tmp_path: Path, changed: dict[str, dict[str, Any]], refused: str
) -> None:
    """Its file states what was the default then, and on the CPUs of then does what today's does."""
    folder, recipe = RunDir(tmp_path / "run"), Recipe()
    tables = asdict(recipe)
    tables["student"] |= OLDER
    tables["teacher"] |= OLDER | {"dtype": "float32"}
    tables["learner"]["head_chunk_tokens"] = 256
    for table, values in changed.items():
        tables[table] |= values
    folder.root.mkdir()
    folder.config.write_text(tomli_w.dumps(tables))
    if refused:
        with pytest.raises(ValueError, match=re.escape(refused)):
            folder.check_same(recipe)
    else:
        folder.check_same(recipe)
        stated = read_resolved(folder.root).recipe
        assert stated.teacher.dtype == "float32" and stated.student.enforce_eager is True  # what a report shows


@pytest.mark.parametrize(("then", "now"), [((1.0, 1024), (0.0, 0)), ((0.0, 0), (1.0, 1024)), ((0.5, 512), (2.0, 64))])
def test_how_a_run_lies_in_memory_may_change_as_it_is_resumed(
    tmp_path: Path, then: tuple[float, int], now: tuple[float, int]
) -> None:
    """As after a run that did not fit."""

    def of(cache: float, tokens: int) -> Recipe:
        learner = LearnerConfig(micro_batch_tokens=tokens)
        return replace(Recipe(), student=EngineConfig(kv_cache_gib=cache), learner=learner)

    folder = RunDir(tmp_path / "run")
    folder.root.mkdir()
    folder.config.write_text(dump(of(*then)))
    folder.check_same(of(*now))
    with pytest.raises(ValueError, match=r"student\.window"):
        folder.check_same(replace(of(*now), student=EngineConfig(window=100)))


def test_a_newer_run_that_states_an_older_default_means_it(tmp_path: Path) -> None:
    folder = RunDir(tmp_path / "run")
    folder.root.mkdir()
    folder.config.write_text(dump(replace(Recipe(), teacher=TeacherConfig(dtype="float32"))))
    with pytest.raises(ValueError, match=re.escape("teacher.dtype: found 'float32', expected 'auto'")):
        folder.check_same(Recipe())


def test_what_a_device_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = TeacherConfig(), EngineConfig()
    for flag, on_cpu in (("amx_bf16", "bfloat16"), ("avx2", "float32")):
        monkeypatch.setattr("rollout.config.cpu_flags", lambda flag=flag: frozenset({flag}))
        assert [teacher.dtype_on(device) for device in ("cpu", "cuda")] == ["float32", "bfloat16"]
        assert [student.dtype_on(device) for device in ("cpu", "cuda")] == [on_cpu, "bfloat16"]
        assert replace(student, dtype="float16").dtype_on("cpu") == "float16"
    assert replace(teacher, dtype="float32").dtype_on("cuda") == "float32"
    for eager, on in {"auto": [True, False], True: [True, True], False: [False, False]}.items():
        assert [EngineConfig(enforce_eager=eager).is_eager(device) for device in ("cpu", "cuda")] == on
    with pytest.raises(ValueError, match=r"dtype: found 'auto', expected one of \('bfloat16', 'float32', 'float16'\)"):
        EngineConfig(dtype="auto")


def test_the_heads_chunk_is_small_on_a_cpu_and_a_gib_of_logits_on_a_gpu() -> None:
    assert [head_chunk(LearnerConfig(), 49152, on_gpu) for on_gpu in (False, True)] == [256, 5461]
    assert head_chunk(LearnerConfig(), 151_936, on_gpu=True) == 1766
    assert head_chunk(LearnerConfig(), 10_000_000, on_gpu=True) == 256
    assert head_chunk(LearnerConfig(head_chunk_tokens=100), 49152, on_gpu=True) == 100


def test_a_file_in_the_place_of_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    assert "found something that is not a run" in refused_claim(tmp_path / "run", Recipe(), resume=False)
    assert (tmp_path / "run").read_text() == "mine"


def test_there_is_nothing_to_resume(tmp_path: Path) -> None:
    root = tmp_path / "run"
    assert "expected a run to resume" in refused_claim(root, Recipe(), resume=True)
    assert not root.exists()


# Placement


def placed(*nodes: Share, **counts: Any) -> Plan:
    student = EngineConfig(num_engines=counts.get("students", 1), tensor_parallel_size=counts.get("student_tp", 1))
    teacher = TeacherConfig(num_engines=counts.get("teachers", 1), tensor_parallel_size=counts.get("teacher_tp", 1))
    teacher = replace(teacher, dtype=student.dtype if "lora_rank" in counts else teacher.dtype)
    learner = LearnerConfig(num_ranks=counts.get("ranks", 1), lora_rank=counts.get("lora_rank", 0))
    weights = WeightsConfig(counts.get("transport", "auto"), delta=counts.get("delta", False))
    run = RunConfig(max_policy_lag=counts.get("lag", 0))
    return make_plan(Recipe(run=run, student=student, teacher=teacher, learner=learner, weights=weights), nodes)


def everyone(plan: Plan) -> list[Share]:
    return [share for shares in plan.shares.values() for share in shares]


@pytest.mark.parametrize("transport", ["auto", "shm"])
def test_cpus_are_shared_by_everyone(transport: str) -> None:
    plan = placed(Share(2, 0), transport=transport)
    assert (plan.device, plan.transport, plan.colocated, plan.threads) == ("cpu", "shm", True, 2)
    assert len(set(everyone(plan))) == 1
    [together] = plan.bundles
    assert 0 < together.cpus <= 2 and together.gpus == 0


def test_cpu_ranks_divide_the_threads() -> None:
    plan = placed(Share(8, 0), ranks=2, students=3)
    assert plan.threads == 4
    assert plan.bundles[0].cpus <= 8
    assert placed(Share(1, 0), ranks=3).threads == 1


def test_cpu_nodes_each_take_their_part() -> None:
    """Two engines and two ranks over three nodes, dealt out in turn; a head without CPUs counts for nothing."""
    plan = placed(Share(0, 0), Share(2, 0), Share(4, 0), Share(4, 0), ranks=2)
    assert (plan.device, plan.transport, plan.num_nodes, plan.strategy) == ("cpu", "gloo", 3, "SPREAD")
    one = plan.shares["student"][0].cpus
    assert [bundle.cpus for bundle in plan.bundles] == [2 * one, one, one] and 2 * one <= 2
    places = [plan.bundle(*who) for who in (("student", 0), ("teacher", 0), ("learner", 0), ("learner", 1))]
    assert places == [0, 1, 2, 0]
    assert plan.threads == 2
    assert placed(*[Share(2, 0)] * 9).num_nodes == 3


def test_a_cpu_cluster_may_share_the_memory_of_its_largest_node_and_one_node_may_use_gloo() -> None:
    plan = placed(Share(2, 0), Share(6, 0), transport="shm")
    assert (plan.transport, plan.colocated, len(plan.bundles), plan.threads) == ("shm", True, 1, 6)
    plan = placed(Share(2, 0), transport="gloo")
    assert (plan.transport, plan.colocated, len(plan.bundles)) == ("gloo", True, 1)


def test_one_gpu_is_shared_by_one_of_each() -> None:
    plan = placed(Share(8, 1))
    assert (plan.device, plan.transport, plan.colocated) == ("cuda", "ipc", True)
    assert all(share.gpus > 0 for share in everyone(plan))
    assert sum(share.gpus for share in everyone(plan)) <= 1
    assert plan.bundles == [Share(3, 1)]
    assert plan.bundle("learner", 0) == 0
    assert placed(Share(2, 1)).bundles == [Share(1.5, 1)]


def test_a_rank_on_a_gpu_has_its_share_of_its_hosts_cores() -> None:
    """Ray gives an actor with one CPU one thread; on a GPU's host the model is loaded and compared on CPUs too."""
    assert placed(Share(16, 1)).threads == 16
    assert placed(Share(64, 8), Share(32, 8), Share(8, 0), ranks=2).threads == 4
    assert placed(Share(3, 4)).threads == 1


def test_engines_sleep_where_they_share_a_gpu_with_a_learner_whose_turn_it_is() -> None:
    assert placed(Share(8, 1)).engines_sleep
    assert not placed(Share(8, 1), lag=1).engines_sleep
    assert not placed(Share(8, 3)).engines_sleep
    assert not placed(Share(8, 0)).engines_sleep


def test_many_gpus_give_each_worker_and_rank_its_own() -> None:
    plan = placed(Share(8, 8), students=2, student_tp=2, ranks=3)  # 4 + 1 + 3
    assert (plan.device, plan.transport, plan.num_nodes, plan.strategy) == ("cuda", "nccl", None, "PACK")
    assert plan.bundles == [Share(1, 2)] * 2 + [Share(1, 1)] * 4
    assert plan.bundle("learner", 2) == 5


def test_three_gpus_are_enough_not_to_share() -> None:
    assert not placed(Share(8, 3)).colocated
    assert placed(Share(8, 2)).colocated


@pytest.mark.parametrize(
    ("gpus", "counts", "asked", "workers", "ranks"),
    [
        (1, {"ranks": 2}, 4, 2, 2),
        (7, {"students": 2, "student_tp": 2, "ranks": 3}, 8, 5, 3),
        (2, {"teacher_tp": 4}, 6, 5, 1),
    ],
)
def test_too_few_gpus_say_how_many_were_asked_and_found(
    gpus: float, counts: dict[str, int], asked: int, workers: int, ranks: int
) -> None:
    with pytest.raises(ValueError, match="placement: asked") as caught:
        placed(Share(8, gpus), **counts)
    message = str(caught.value)
    assert "\n" not in message
    assert f"asked {asked} GPUs ({workers} engine workers and {ranks} learner ranks), found {gpus}" in message


def test_an_engine_has_its_gpus_on_one_node() -> None:
    assert placed(Share(8, 2), Share(8, 4), student_tp=4).bundles[0] == Share(1, 4)
    with pytest.raises(ValueError, match=r"asked a node with 1 CPUs and 4 GPUs for student engine 0, found .* 3 GPUs"):
        placed(Share(8, 3), Share(8, 3), student_tp=4)
    with pytest.raises(ValueError, match="for learner rank 0, found 0 CPUs and 1 GPUs left by the others"):
        placed(Share(2, 3))


@pytest.mark.parametrize(("gpus", "transport", "natural"), [(1, "nccl", "ipc"), (1, "shm", "ipc"), (3, "ipc", "nccl")])
def test_a_transport_that_cannot_work_with_the_placement_is_refused(gpus: int, transport: str, natural: str) -> None:
    with pytest.raises(ValueError, match=f"weights.transport: found '{transport}' .*, expected 'auto' or '{natural}'"):
        placed(Share(8, gpus), transport=transport)


@pytest.mark.parametrize("transport", ["nccl", "ipc"])
def test_a_gpu_transport_needs_gpus(transport: str) -> None:
    with pytest.raises(ValueError, match=f"weights.transport: found '{transport}' on a node without GPUs, expected"):
        placed(Share(8, 0), transport=transport)
    with pytest.raises(ValueError, match=f"found '{transport}' on 2 nodes without GPUs, expected 'auto' or 'gloo' or"):
        placed(Share(8, 0), Share(8, 0), transport=transport)


@pytest.mark.parametrize(
    ("nodes", "counts", "where"),
    [
        ([Share(8, 0)], {}, "on a node without GPUs, where weights go over shm"),
        ([Share(8, 0)] * 2, {"transport": "shm"}, "on 2 nodes without GPUs, where weights go over shm"),
        ([Share(8, 0)] * 2, {"lora_rank": 4}, "on 2 nodes without GPUs, where weights go over ray"),
        ([Share(8, 1)], {}, "on one shared GPU, where weights go over ipc"),
    ],
)
def test_only_gloo_carries_what_changed(nodes: list[Share], counts: dict[str, Any], where: str) -> None:
    with pytest.raises(ValueError, match=f"weights.delta: found True, expected false {where}: only gloo carries"):
        placed(*nodes, delta=True, **counts)


def test_what_changed_goes_over_gloo() -> None:
    assert placed(Share(8, 0), Share(8, 0), delta=True).transport == "gloo"
    assert placed(Share(8, 0), delta=True, transport="gloo").transport == "gloo"


def test_less_than_a_cpu_is_not_enough() -> None:
    with pytest.raises(ValueError, match=r"placement: asked 1 CPU, found 0\.5"):
        placed(Share(0.5, 0))
    with pytest.raises(ValueError, match=r"placement: asked 1 CPU, found 0$"):
        placed()


def test_beside_an_adapter_the_teacher_has_no_engines_and_its_pushes_are_rays() -> None:
    lora = {"lora_rank": 8}
    plan = placed(Share(4, 0), teachers=3, **lora)
    assert (plan.transport, plan.colocated, plan.shares["teacher"]) == ("ray", True, [])
    plan = placed(Share(4, 0), Share(4, 0), **lora)
    assert (plan.transport, plan.num_nodes, len(plan.bundles)) == ("ray", 2, 2)
    plan = placed(Share(4, 1), **lora)
    assert (plan.device, plan.transport, plan.colocated) == ("cuda", "ray", True)
    plan = placed(Share(4, 2), **lora)
    assert (plan.transport, plan.bundles, plan.bundle("learner", 0)) == ("ray", [Share(1, 1)] * 2, 1)
    with pytest.raises(ValueError, match=r"weights\.transport: found 'shm' .* expected 'auto' or 'ray'"):
        placed(Share(4, 0), transport="shm", **lora)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["teacher.kind=live"], "teacher.kind: found 'live', expected the frozen base with learner.lora_rank"),
        (["teacher.path=/m"], "teacher.path: found '/m', expected the frozen base with learner.lora_rank"),
        (
            ["teacher.dtype=float32"],
            "teacher.dtype: found 'float32', expected 'auto' or student.dtype with learner.lora_rank",
        ),
        (["learner.lora_targets=['q_proj', 'lm_head']"], "lora_targets: found ('q_proj', 'lm_head'), expected layers"),
        (["learner.lora_targets=[]"], "lora_targets: found (), expected names of linear layers"),
        (["learner.lora_rank=513"], "lora_rank: found 513, expected 0 (no adapter) to 512, vLLM's largest"),
        (["learner.lora_alpha=0"], "lora_alpha: found 0, expected at least 1"),
    ],
)
def test_an_adapter_goes_with_its_own_base_only(tmp_path: Path, overrides: list[str], key: str) -> None:
    path = write(tmp_path, "[learner]\nlora_rank = 8\n[teacher]\ndtype = 'bfloat16'")
    assert load_recipe(path).teacher_engines == 0
    assert key in refusal(path, *overrides)


def test_relative_paths_are_those_of_the_folder_that_the_recipe_is_loaded_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "recipes").mkdir()
    path = tmp_path / "recipes" / "recipe.toml"
    path.write_text('[task]\nname = "math"\nprompts_file = "data/a b.jsonl"\n[model]\npath = "models/mine"\n')
    monkeypatch.chdir(tmp_path)
    given = ["task.probe_file=../p.jsonl", "run.storage=shards", "teacher.path=./models/none"]
    recipe = load_recipe("recipes/recipe.toml", given)
    monkeypatch.chdir("/")
    assert recipe.task.prompts_file == f"{tmp_path}/data/a b.jsonl"
    assert recipe.task.probe_file == f"{tmp_path.parent}/p.jsonl"
    assert recipe.run.storage == f"{tmp_path}/shards"
    assert (recipe.model.path, recipe.teacher.path) == (f"{tmp_path}/models/mine", f"{tmp_path}/models/none")
    assert located(recipe) == recipe


@pytest.mark.parametrize("kept", ["absolute", "as older runs kept it"])
def test_a_run_is_the_same_from_another_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(RECIPES[0], ["model.path=models/mine", "run.storage=shards"])
    folder = RunDir(tmp_path / "run")
    folder.claim(recipe, resume=False)
    if kept == "absolute":
        monkeypatch.chdir(tmp_path / "models")
        recipe = load_recipe(RECIPES[0], ["model.path=mine", "run.storage=../shards"])
    else:
        folder.config.write_text(folder.config.read_text().replace(f"{tmp_path}/", ""))
    folder.check_same(recipe)
    with pytest.raises(ValueError, match=r"run\.storage: found .*shards', expected '.*elsewhere'"):
        folder.check_same(load_recipe(RECIPES[0], [f"model.path={recipe.model.path}", "run.storage=elsewhere"]))


@pytest.mark.parametrize("lag", [0, 1])
def test_the_order_of_groups_counts_where_steps_share_them_and_older_runs_had_their_own(
    tmp_path: Path, lag: int
) -> None:
    """A run from before the key took what was done first. Without a lag both orders are one."""
    recipe = load_recipe(RECIPES[0], [f"run.max_policy_lag={lag}", "run.date=2026-11-29"])
    folder = RunDir(tmp_path / "run")
    folder.claim(recipe, resume=False)
    written = folder.config.read_text()
    assert 'group_order = "begun"\n' in written
    folder.config.write_text(written.replace('group_order = "begun"\n', ""))
    assert read_resolved(folder.root).recipe.run.group_order == "done"
    if lag == 0:
        folder.check_same(recipe)
        return
    with pytest.raises(ValueError, match=r"run\.group_order: found 'done', expected 'begun'"):
        folder.check_same(recipe)
    folder.check_same(replace(recipe, run=replace(recipe.run, group_order="done")))


def test_what_is_no_relative_path_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "default").mkdir()
    for path in ("default", "org/model", "model", "/abs"):
        assert located(build(Recipe, {"model": {"path": path}}, "")).model.path == path
    for storage in ("", "s3://bucket/a/../b", "file:///x", "/abs"):
        assert located(build(Recipe, {"run": {"storage": storage}}, "")).run.storage == storage
    assert located(build(Recipe, {"model": {"path": "~/m"}, "run": {"storage": "~/s"}}, "")).model.path == "/home/me/m"


def test_an_override_that_is_no_utf8_is_one_line() -> None:
    with pytest.raises(
        ValueError, match=r"^--set 'task.maker=\\udcff': found bytes that are not UTF-8, expected UTF-8"
    ):
        load_recipe(RECIPES[0], ["task.maker=\udcff"])


def test_a_run_is_the_same_on_another_day_unless_a_recipe_names_one(tmp_path: Path) -> None:
    """A recipe without a date is of the day on which its run started; `reproduce` asks with that recipe."""
    folder = RunDir(tmp_path / "run")
    folder.claim(load_recipe(RECIPES[0], ["run.date=2026-01-02"]), resume=False)
    folder.check_same(load_recipe(RECIPES[0]))
    with pytest.raises(ValueError, match=r"run\.date: found '2026-01-02', expected '2026-01-03'"):
        folder.check_same(load_recipe(RECIPES[0], ["run.date=2026-01-03"]))
