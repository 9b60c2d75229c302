"""Conventions that ask git, import-linter, another interpreter or the installed command."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cluster.__main__ import _parser
from tests.runs import edge_opd
from tests.unit.test_conventions import DOCS, EVIDENCE, PACKAGES, ROOT

BIN = Path(sys.executable).parent
FOLDERS = {*PACKAGES, "tests", "requirements", "docs", "findings"}
FILES = {"Makefile", "pyproject.toml", "README.md", "LICENSE", "CONTRIBUTING.md", "CHANGELOG.md"}


def committed() -> list[str]:
    """Paths under version control; skips where there is none, as in an unpacked archive."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "lint-imports"), "--no-logo", "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500)


def test_the_top_level_holds_nothing_else() -> None:
    tops = {path.split("/")[0]: "/" in path for path in committed()}
    unknown = {
        name for name, is_folder in tops.items() if name[0] != "." and name not in (FOLDERS if is_folder else FILES)
    }
    assert not unknown


def test_the_import_contracts_hold() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


FORBIDDEN = [
    ("evidence/rule.py", "import torch", "evidence opens on a laptop"),
    ("evidence/rule.py", "import rollout.config", "rollout and learner never import each other"),
    ("rollout/score.py", "import learner.batches", "rollout and learner never import each other"),
    ("rollout/score.py", "import ray", "ray only in cluster"),
    ("cluster/run/start.py", "import vllm", "vllm only in rollout.engine, its quirks and the engines' end of weights"),
    ("cluster/weights/link.py", "import vllm", "vllm only in rollout.engine"),
    ("cluster/run/start.py", "import deepspeed", "deepspeed only in learner.deepspeed_quirks"),
    ("evidence/view/heatmap.py", "import matplotlib", "matplotlib only in cluster.report"),
    ("cluster/run/start.py", "import inspect_ai", "inspect_ai only in cluster.inspect_task"),
    ("cluster/run/rundir.py", "import cluster.commands.view", "the rooms of cluster build on each other one way"),
    ("cluster/fleet/network.py", "import cluster.run.start", "the rooms of cluster build on each other one way"),
    ("cluster/weights/digest.py", "import cluster.run.rundir", "the rooms of cluster build on each other one way"),
    ("cluster/report/runs.py", "import cluster.run.start", "the report reads records and recipes"),
    ("cluster/sizing/cards.py", "import cluster.fleet.fleet", "sizing computes from configurations"),
    ("cluster/commands/shards.py", "import rich", "what reads a run needs none of what runs it"),
]


def test_the_import_contracts_catch_each_forbidden_import(tmp_path: Path) -> None:
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for path, line, _ in FORBIDDEN:
        with (tmp_path / path).open("a") as file:
            file.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    for path, line, contract in FORBIDDEN:
        module, imported = path.removesuffix(".py").replace("/", "."), line.removeprefix("import ")
        assert re.search(rf"\n{re.escape(contract)}.* BROKEN", done.stdout), done.stdout
        broken = re.search(rf"\n{re.escape(contract)}.*\n-+\n((?:.*\n(?!-----))*)", done.stdout)
        assert broken and f" {module} -> {imported} (" in broken[1], (module, imported, done.stdout)


HEAVY = ("torch", "ray", "vllm", "deepspeed", "transformers", "tokenizers", "matplotlib", "rich", "filelock", "tomli_w")


@pytest.mark.parametrize(
    ("names", "allowed"),
    [
        ([".".join(path.relative_to(ROOT).with_suffix("").parts) for path in EVIDENCE if path.stem != "__init__"], ()),
        (["cluster.__main__"], ()),
        (["cluster.resolved", "cluster.commands.shards", "cluster.commands.view", "cluster.dashboard.page"], ()),
        (["cluster.report.write"], ("matplotlib",)),
    ],
    ids=["evidence", "command line", "shards and view", "report"],
)
def test_what_reads_runs_loads_no_heavy_library(names: list[str], allowed: tuple[str, ...]) -> None:
    code = f"import sys, {', '.join(names)}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([*allowed])


def test_make_mutants_finds_its_files_and_collects_its_tests() -> None:
    """With the arguments that mutmut gives pytest; those of one file, which loads no torch."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mutmut"]
    tests = told["pytest_add_cli_args_test_selection"]
    assert all((ROOT / path).is_file() for path in (*told["only_mutate"], *tests))
    command = [sys.executable, "-m", "pytest", "--collect-only", *told["pytest_add_cli_args"], tests[0]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr


def test_docs_show_commands_that_exist() -> None:
    known = set(re.findall(r"^    ([a-z-]+)(?: |$)", edge_opd("--help").stdout, re.MULTILINE))
    shown = {name for doc in DOCS for name in re.findall(r"edge-opd ([a-z][a-z-]*)", (ROOT / doc).read_text())}
    assert shown and shown <= known
    assert known <= shown, "a command that the docs do not show"


def test_docs_show_options_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    tables = [
        re.findall(r"^\| `edge-opd ([a-z-]+(?: [a-z-]+)*)(.*?)` \|", (ROOT / doc).read_text(), re.MULTILINE)
        for doc in DOCS
    ]
    assert tables[DOCS.index("README.md")]
    for command, options in (row for table in tables for row in table):
        with pytest.raises(SystemExit):
            _parser().parse_args([*command.split(), "--help"])
        usage = capsys.readouterr().out
        assert all(option in usage for option in re.findall(r"--[a-z-]+", options)), command
