"""A laptop: an environment of numpy, pyarrow and jinja2 alone, where a run's shards are read and its tokens shown."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.commands.shards import statistics
from cluster.commands.view import Asked, view_run
from evidence.manifest import Manifest
from evidence.rule import EvidenceConfig, judge_all
from evidence.schema import to_table
from evidence.shards import write_shard
from tests.fakes import fake_run, scored_step
from tests.observed import observed_run

ROOT = Path(__file__).parents[2]
PACKAGES = ("numpy", "pyarrow", "jinja2")
HEAVY = ("torch", "transformers", "ray", "matplotlib", "rich", "tomli_w", "filelock", "tokenizers")
RULE = EvidenceConfig(region="neg", tau=0.25, soft="rlsd")


def pinned(name: str) -> str:
    return re.search(rf"(?m)^{name}==.+$", (ROOT / "requirements" / "cpu.txt").read_text())[0]  # type: ignore[index]


class Laptop:
    """The environment: its own interpreter, and nothing of this one's on its path."""

    def __init__(self, root: Path) -> None:
        self.bin = root / "bin"
        subprocess.run([sys.executable, "-m", "venv", str(root)], check=True)

    def run(self, program: str, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
        env |= environment
        command = [str(self.bin / program), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=550, cwd=cwd, env=env)

    def install(self, *what: str, cwd: Path) -> None:
        done = self.run("python", "-m", "pip", "install", "-q", "--disable-pip-version-check", *what, cwd=cwd)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Laptop:
    """With the project as a wheel has it, built from a copy: a build leaves files beside what it builds."""
    root, source = tmp_path_factory.mktemp("laptop"), tmp_path_factory.mktemp("source")
    for name in ("cluster", "evidence", "learner", "rollout"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    made = Laptop(root)
    made.install(*map(pinned, PACKAGES), cwd=root)
    made.install("--no-deps", str(source), cwd=root)
    return made


@pytest.fixture
def run(tmp_path: Path, default_model: Path) -> Path:
    """A run of two steps, its shards by the writers of a real one, with the default model's tokenizer as its export."""
    folder = fake_run(tmp_path / "robin", {0: {"selfname": (0, 4)}})
    manifest = Manifest(folder / "manifest.jsonl")
    for step in (0, 1):
        scored = scored_step((5, 1, 9, 3), seed=step)
        records = judge_all(scored, [None] * len(scored), RULE, step)
        metadata = dict.fromkeys(("run_id", "model_id", "weights_digest", "code_version"), "robin")
        table = to_table(records, metadata | {"step": str(step), "mask_rule": RULE.to_json()})
        manifest.append_written(write_shard(table, str(folder / "shards"), f"step-{step:06d}.arrow"))
    (folder / "export").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(default_model / name, folder / "export")
    return folder


def tokens(page: str) -> list[str]:
    return re.findall(r'<span class="t [^"]*" title="[^"]*">([^<]*)</span>', page)


def test_the_laptop_has_nothing_else(laptop: Laptop, tmp_path: Path) -> None:
    code = f"import importlib.util as u; print([name for name in {HEAVY} if u.find_spec(name)])"
    assert laptop.run("python", "-c", code, cwd=tmp_path).stdout.strip() == "[]"
    checked = laptop.run("python", "-m", "pip", "check", "--disable-pip-version-check", cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout  # and the project asks for nothing else


@pytest.mark.parametrize("command", [("run", "cluster/recipes/N1.toml"), ("report", "RUN"), ("probe", "default")])
def test_what_it_lacks_is_named_in_one_line(command: tuple[str, ...], laptop: Laptop, run: Path) -> None:
    arguments = [str(run) if word == "RUN" else str(ROOT / word) if "/" in word else word for word in command]
    done = laptop.run("edge-opd", *arguments, cwd=run.parent)
    assert done.returncode == 1, done.stderr
    line = r"edge-opd: found no package \w+, which this command needs: pip install 'edge-opd\[run\]' has all of them\n"
    assert re.fullmatch(line, done.stderr), done.stderr


def test_shards_gives_the_same_figures_there(laptop: Laptop, run: Path, tmp_path: Path) -> None:
    done = laptop.run("edge-opd", "shards", str(run), "--json", "--region", "pos", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == json.loads(json.dumps(statistics(run, region="pos")))


def test_view_shows_token_ids_and_says_what_shows_text(laptop: Laptop, run: Path, tmp_path: Path) -> None:
    note = "token ids instead of text: found no package tokenizers, `pip install tokenizers` shows text"
    done = laptop.run("edge-opd", "view", str(run), "--out", "ids.html", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ids.html\n", f"edge-opd: {note}\n")
    page = (tmp_path / "ids.html").read_text()
    assert page.count(note) == 1
    ids = [token for sample in scored_step((5, 1, 9, 3), seed=1) for token in sample.sample.response_ids.tolist()]
    assert sorted(token.strip() for token in tokens(page)) == sorted(map(str, ids))


def test_view_shows_text_with_the_package_tokenizers(laptop: Laptop, run: Path, tmp_path: Path) -> None:
    extra = str(tmp_path / "extra")
    laptop.install("--no-deps", "--target", extra, pinned("tokenizers"), cwd=tmp_path)
    done = laptop.run("edge-opd", "view", str(run), "--out", "text.html", cwd=tmp_path, PYTHONPATH=extra)
    assert (done.returncode, done.stderr) == (0, "")
    here = view_run(run, None, Asked(), tmp_path / "here.html").read_text()
    assert (tmp_path / "text.html").read_text() == here


def test_the_page_of_a_run_its_timeline_and_its_figures_are_made_there(laptop: Laptop, tmp_path: Path) -> None:
    run = observed_run(tmp_path / "observed", steps=3)
    for command, name in (("dashboard", "out.html"), ("trace", "out.json"), ("export-metrics", "out.txt")):
        done = laptop.run("edge-opd", command, str(run), "--out", name, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{name}\n", "")
    assert (tmp_path / "out.html").read_text().count("</script>") == 1
