"""The container file, without a builder: read as a builder would, against what the project and the examples say.

hadolint 2.15.1 has no complaint about it.
"""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from cluster.__main__ import _parser
from tests.runs import ROOT

DOCKERFILE = ROOT / "cluster" / "examples" / "Dockerfile"
MAKES = re.compile(r"(?:^|; )\s*make ([a-z-]+)")


def instructions() -> list[tuple[str, str]]:
    """(word, the rest) of each, lines joined, without comments."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = (line.split(None, 1) for line in joined.splitlines() if line.strip())
    return [(word, rest.strip()) for word, rest in found]


def of(word: str) -> list[str]:
    return [rest for name, rest in instructions() if name == word]


def test_it_starts_from_cudas_base_with_a_fixed_tag() -> None:
    (base,) = [rest for rest in of("ARG") if rest.startswith("BASE=")]
    assert re.fullmatch(r"BASE=nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu\d+\.\d+", base)
    assert of("FROM") == ["${BASE}"]
    locked = (ROOT / "requirements" / "cuda.txt").read_text()
    major = re.search(r"^nvidia-cuda-runtime(?:-cu)?(\d*)==(\d+)", locked, re.MULTILINE)
    assert major is not None and base.startswith(f"BASE=nvidia/cuda:{major[1] or major[2]}.")


def test_what_it_runs_as_is_no_root_and_owns_the_project() -> None:
    words = [name for name, _ in instructions()]
    (user,) = of("USER")
    assert int(user) > 1000 and f"--uid {user}" in " ".join(of("RUN"))
    assert words.index("USER") < words.index("COPY"), "and what is installed is the user's"
    (copy,) = of("COPY")
    assert copy == f"--chown={user}:{user} . /edge-opd"


def test_every_command_is_one_that_the_shell_reads() -> None:
    shell = of("SHELL")[0]
    assert shell == '["/bin/bash", "-euo", "pipefail", "-c"]'
    for command in of("RUN"):
        assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0, command


def test_it_installs_the_locked_packages_by_the_projects_own_target() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {target for command in of("RUN") for target in MAKES.findall(command)} == {"setup"} <= targets
    assert "DEVICE=cuda" in of("ARG")
    assert any('make setup DEVICE="$DEVICE" WHEELHOUSE="$WHEELHOUSE"' in command for command in of("RUN"))
    # What install.sh asks of a machine, and what Triton compiles with.
    installed = next(command for command in of("RUN") if "apt-get install" in command)
    assert {"make", "g++", "python3", "python3-dev", "python3-venv"} <= set(shlex.split(installed.replace(";", " ")))
    assert "--no-install-recommends" in installed and "rm -rf /var/lib/apt/lists/*" in installed


def test_it_is_healthy_where_a_ray_node_is() -> None:
    (check,) = of("HEALTHCHECK")
    assert check.endswith('CMD ["pgrep", "-x", "raylet"]')
    assert "procps" in " ".join(of("RUN"))


def test_by_itself_it_looks_at_the_gpus() -> None:
    (command,) = of("CMD")
    words = yaml.safe_load(command)
    assert words[0] == "edge-opd" and _parser().parse_args(words[1:]).gpu


@pytest.mark.parametrize("name", ["kuberay-rayjob.yaml", "slurm.sbatch"])
def test_the_examples_name_it(name: str) -> None:
    assert "Dockerfile beside this file" in (DOCKERFILE.parent / name).read_text()


def test_the_examples_paths_are_the_images() -> None:
    (job,) = yaml.safe_load_all((DOCKERFILE.parent / "kuberay-rayjob.yaml").read_text())
    recipe = shlex.split(job["spec"]["entrypoint"])[2]
    assert of("WORKDIR") == ["/edge-opd"] and Path(recipe).is_relative_to("/edge-opd")
    assert (ROOT / Path(recipe).relative_to("/edge-opd")).is_file()
    assert any("/edge-opd/.venv/bin" in setting for setting in of("ENV"))


def test_what_is_large_or_private_is_left_out_of_the_image() -> None:
    left_out = set((ROOT / ".dockerignore").read_text().splitlines())
    assert {".git", ".venv", "runs", "models"} <= left_out
    assert not any("wheelhouse" in line for line in left_out), "an image is built from one where there is no network"
