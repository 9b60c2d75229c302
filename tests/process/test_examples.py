"""The example files for clusters, without a cluster: read as their readers would, and run with recording stand-ins.

tests/process/test_slurm.py runs the one for Slurm on a real Slurm.
"""

import argparse
import functools
import os
import re
import shlex
import shutil
import signal
import subprocess
import warnings
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from cluster.__main__ import _parser
from cluster.config import Recipe, load_recipe
from cluster.fleet.placement import Share, make_plan
from tests.runs import ROOT

EXAMPLES = ROOT / "cluster" / "examples"
SBATCH, BY_HAND, RAYJOB = (EXAMPLES / name for name in ("slurm.sbatch", "ray-start.sh", "kuberay-rayjob.yaml"))
TOKEN = "0123456789abcdef0123456789abcdef"

# Each says where and with which token it was called. A started node lives until it is told to end. Nodes are counted
# once every one whose address was asked for has been started.
STANDINS = {
    "srun": """
        for word in "$@"; do
            case $word in --nodelist=*) export NODE=${word#*=} ;; esac
        done
        while [[ $1 == --* ]]; do shift; done
        exec "$@"
    """,
    "scontrol": """
        record scontrol "$@"
        [ "$1" = requeue ] || printf 'n%d\\n' $(seq "$NUM_NODES")
    """,
    "hostname": """
        [ "$NODE" = "$NOWHERE" ] || { touch "$STATE/asked-$NODE"; echo "192.0.2.${NODE#n} 198.51.100.${NODE#n}"; }
    """,
    "ray": """
        trap 'record ended; exit 0' TERM
        record ray "$@"
        case $1 in
            start)
                [[ " $NEVER " == *" $NODE "* ]] || touch "$STATE/alive-$NODE"
                touch "$STATE/started-$NODE"
                [[ " $* " != *" --block "* ]] || while :; do sleep 0.05; done
                ;;
            list)
                for node in "$STATE"/asked-*; do until [ -e "${node/asked-/started-}" ]; do sleep 0.05; done; done
                for node in "$STATE"/alive-*; do [ ! -e "$node" ] || printf '{"node_id": "%s"}, ' "$node"; done
                ;;
            job)
                [ "$2" != status ] || { echo "Job '${!#}' $JOB_ENDS"; exit 0; }
                [ "$2" != stop ] || { touch "$STATE/stopped"; exit 0; }
                [[ $* == *" -- true" ]] || { eval "$DURING"; exit "$SUBMIT_STATUS"; }
                [ -e "$STATE/asked" ] || { touch "$STATE/asked"; exit 1; }
                [ "$NEVER" != jobs ]
                ;;
        esac
    """,
}
RECORD = """#!/usr/bin/env bash
record() { # in one write: nodes speak at the same time
    local line
    printf -v line '%q ' "${NODE:--}" "${RAY_AUTH_MODE:--}" "${RAY_AUTH_TOKEN:--}" "$@"
    echo "$line" >>"$STATE/log"
}
"""


class Call:
    """One line of the stand-ins' log."""

    def __init__(self, line: str) -> None:
        self.node, self.mode, self.token, *self.words = shlex.split(line)


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A folder with stand-ins for srun, scontrol, hostname and ray."""
    (tmp_path / "bin").mkdir()
    for name, body in STANDINS.items():
        path = tmp_path / "bin" / name
        path.write_text(RECORD + body)
        path.chmod(0o755)
    return tmp_path


def run_in_a_group(command: Sequence[str], cwd: Path, env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """As subprocess.run; a script that does not end is ended with all that it started, and fails the test."""
    script = subprocess.Popen(
        command, env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = script.communicate(timeout=300)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, script.returncode, out, err)


def play(stage: Path, *command: str, **environment: str) -> tuple["subprocess.CompletedProcess[str]", list[Call]]:
    """What the script printed, and what it called."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SLURM_"))}
    env = kept | {
        "PATH": f"{stage / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "STATE": str(stage),
        "NEVER": "",
        "NOWHERE": "",
        "SUBMIT_STATUS": "0",
        "JOB_ENDS": "succeeded",
        "DURING": "",
    }
    done = run_in_a_group(command, stage, env | environment)
    log = stage / "log"
    return done, [Call(line) for line in log.read_text().splitlines()] if log.exists() else []


def sbatch(
    stage: Path, num_nodes: int = 3, **environment: str
) -> tuple["subprocess.CompletedProcess[str]", list[Call]]:
    slurm = {
        "SLURM_SUBMIT_DIR": str(stage / "project"),
        "SLURM_JOB_NODELIST": f"n[1-{num_nodes}]",
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "16",
        "NUM_NODES": str(num_nodes),
        "RAY_POLL_S": "0.05",
    }
    return play(stage, "bash", str(SBATCH), **(slurm | environment))


def calls_of(calls: Sequence[Call], *words: str) -> list[Call]:
    return [call for call in calls if tuple(call.words[: len(words)]) == words]


@functools.cache
def ray_commands() -> dict[str, click.Command]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of ray.serve, which comes with them
        from ray.dashboard.modules.job.cli import submit
        from ray.scripts.scripts import start
        from ray.util.state.state_cli import ray_list
    return {"start": start, "list": ray_list, "submit": submit}


def check_ray(command: str, words: Sequence[str]) -> dict[str, Any]:
    """The options as Ray's own command line reads them; click raises for one that it does not have."""
    return ray_commands()[command].make_context(command, list(words)).params


def run_arguments(words: Sequence[str], project: str) -> argparse.Namespace:
    """What follows `edge-opd run`, in the project's folder."""
    assert list(words[:3]) == ["env", "-C", project] and words[3] == "edge-opd"
    return _parser().parse_args(list(words[4:]))


def check_edge_opd(words: Sequence[str], project: str) -> Recipe:
    """The recipe of an `edge-opd run` command line, whose project folder stands for this one."""
    assert words[0] == "edge-opd"
    arguments = _parser().parse_args(list(words[1:]))
    assert Path(arguments.run_dir).is_absolute(), "a job's own folder does not outlive it"
    return load_recipe(ROOT / Path(arguments.recipe.removeprefix(f"{project}/")), arguments.set)


def assert_a_gpu_each(recipe: Recipe, per_node: int, nodes: int) -> None:
    """Every engine and rank has a GPU of its own, on a cluster whose head has none, and no GPU is left over."""
    plan = make_plan(recipe, [Share(16, 0), *[Share(16, per_node)] * nodes])
    assert plan.transport == "nccl" and sum(share.gpus for share in plan.bundles) == per_node * nodes


def locked_ray() -> str:
    found = re.search(r"^ray==(.+)$", (ROOT / "requirements" / "cuda.txt").read_text(), re.MULTILINE)
    assert found
    return found[1]


# Shell


@pytest.mark.parametrize("path", [SBATCH, BY_HAND], ids=lambda path: path.name)
def test_the_shell_reads_it(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_on_slurm_the_head_comes_first_then_the_others_then_the_run(stage: Path) -> None:
    done, calls = sbatch(stage)
    assert done.returncode == 0, done.stderr
    acts = [" ".join(call.words[:2]) for call in calls if call.words[:2] != ["ray", "list"]]
    assert acts == ["scontrol show", *["ray start"] * 3, *["ray job"] * 4, *["ended"] * 3]
    assert [call.words[2] for call in calls_of(calls, "ray", "job")] == [*["submit"] * 3, "status"]
    first, *others = calls_of(calls, "ray", "start")
    others.sort(key=lambda call: call.node)  # they start side by side
    head, *workers = (check_ray("start", call.words[2:]) for call in (first, *others))
    assert (head["head"], head["node_ip_address"], head["port"]) == (True, "192.0.2.1", 6379)
    assert (head["dashboard_host"], head["dashboard_port"], head["num_cpus"]) == ("192.0.2.1", 8265, 16)
    for worker, ip in zip(workers, ("192.0.2.2", "192.0.2.3"), strict=True):
        assert (worker["head"], worker["address"], worker["node_ip_address"]) == (False, "192.0.2.1:6379", ip)
    assert [call.node for call in (first, *others)] == ["n1", "n2", "n3"]
    assert all(started["block"] for started in (head, *workers))
    for call in calls_of(calls, "ray", "list"):
        assert check_ray("list", call.words[2:])["address"] == "http://192.0.2.1:8265"


def test_on_slurm_each_job_has_one_new_token_that_no_command_line_shows(stage: Path) -> None:
    tokens = set()
    for _ in range(2):
        done, calls = sbatch(stage, num_nodes=2)
        for left in filter(Path.is_file, stage.iterdir()):
            left.unlink()
        mine = {(call.mode, call.token) for call in calls_of(calls, "ray")}
        assert len(mine) == 1
        mode, token = mine.pop()
        assert mode == "token" and re.fullmatch("[0-9a-f]{64}", token)
        assert (
            not any(token in word for call in calls for word in call.words) and token not in done.stdout + done.stderr
        )
        tokens.add(token)
    assert len(tokens) == 2


def test_on_slurm_the_run_is_one_that_fits_the_allocation(stage: Path) -> None:
    text = SBATCH.read_text()
    nodes, per_node = (
        int(re.findall(rf"^#SBATCH --{key}=(\d+)$", text, re.M)[0]) for key in ("nodes", "gpus-per-node")
    )
    _, calls = sbatch(stage, num_nodes=nodes)
    *asked, call = calls_of(calls, "ray", "job", "submit")
    assert [check_ray("submit", early.words[3:])["entrypoint"] for early in asked] == [("true",)] * 2
    parsed = check_ray("submit", call.words[3:])
    assert (parsed["address"], parsed["working_dir"]) == ("http://192.0.2.1:8265", None), "every node has the project"
    arguments = run_arguments(parsed["entrypoint"], str(stage / "project"))
    assert not arguments.resume
    recipe = check_edge_opd(parsed["entrypoint"][3:], str(stage / "project"))
    assert_a_gpu_each(recipe, per_node, nodes)
    assert recipe.run.checkpoint_every > 0, "without checkpoints --time ends a run for nothing"
    (status,) = calls_of(calls, "ray", "job", "status")
    assert status.words[3:] == ["--address", "http://192.0.2.1:8265", parsed["submission_id"]]


def test_on_slurm_everything_runs_in_the_container_that_is_named(stage: Path) -> None:
    """Also Ray's client: without an environment of its own the script's node has none."""
    (stage / "bin" / "ray").rename(stage / "bin" / "the-images-ray")
    srun = stage / "bin" / "srun"
    inside = """
        image=
        for word in "$@"; do case $word in --container-image=*) image=$word ;; esac; done
        record srun "$@"
        [ "$image" = --container-image=/images/edge-opd.sqsh ] || exit 9
        words=()
        for word in "$@"; do [ "$word" != ray ] || word=the-images-ray; words+=("$word"); done
        set -- "${words[@]}"
    """
    srun.write_text(RECORD + inside + STANDINS["srun"])
    done, calls = sbatch(stage, CONTAINER="/images/edge-opd.sqsh")
    assert done.returncode == 0, done.stderr
    project = stage / "project"
    started = [call.words for call in calls if call.words[0] == "srun"]
    assert len(started) > 6 and all(f"--container-mounts={project}:{project}" in words for words in started)
    assert len(calls_of(calls, "ray", "start")) == 3
    (run,) = [call for call in calls_of(calls, "ray", "job", "submit") if "edge-opd" in call.words]
    assert run.node == "n1"


def test_on_slurm_a_run_that_fails_fails_the_job(stage: Path) -> None:
    done, calls = sbatch(stage, SUBMIT_STATUS="3")
    assert done.returncode == 3
    assert len(calls_of(calls, "ended")) == 3


@pytest.mark.parametrize("ends", ["was stopped", "failed"])
def test_on_slurm_a_run_that_somebody_stopped_fails_the_job(stage: Path, ends: str) -> None:
    done, calls = sbatch(stage, JOB_ENDS=ends)
    assert done.returncode == 1
    assert done.stderr.startswith("slurm.sbatch: found the Ray job edge-opd-7-0 ended without success, expected ")
    assert len(calls_of(calls, "ended")) == 3


def submitted(calls: Sequence[Call], stage: Path) -> tuple[str, argparse.Namespace]:
    parsed = check_ray("submit", calls_of(calls, "ray", "job", "submit")[-1].words[3:])
    return parsed["submission_id"], run_arguments(parsed["entrypoint"], str(stage / "project"))


@pytest.mark.parametrize("count", ["0", "2"])
def test_on_slurm_a_run_continues_where_there_is_one(stage: Path, count: str) -> None:
    done, calls = sbatch(stage, SLURM_RESTART_COUNT=count)
    assert done.returncode == 0, done.stderr
    name, arguments = submitted(calls, stage)
    assert (name, arguments.resume_auto) == (f"edge-opd-7-{count}", True)
    assert arguments.run_dir == str(stage / "project" / "runs" / "N3-7")


def test_on_slurm_another_job_continues_a_run_that_it_is_given(stage: Path) -> None:
    run = stage / "project" / "runs" / "N3-7"
    done, calls = sbatch(stage, SLURM_JOB_ID="8", RUN_DIR=str(run))
    assert done.returncode == 0, done.stderr
    name, arguments = submitted(calls, stage)
    assert (name, arguments.resume_auto, arguments.run_dir) == ("edge-opd-8-0", True, str(run))


def test_on_slurm_the_job_requeues_itself_before_its_time_is_up(stage: Path) -> None:
    found = re.findall(r"^#SBATCH --signal=B:USR1@(\d+)$", SBATCH.read_text(), re.M)
    assert int(found[0]) >= 60 and "#SBATCH --requeue\n" in SBATCH.read_text()
    assert "#SBATCH --open-mode=append\n" in SBATCH.read_text(), "a requeue empties the log otherwise"
    done, calls = sbatch(stage, DURING="kill -USR1 $PPID; until [ -e $STATE/stopped ]; do sleep 0.05; done")
    assert done.returncode == 0, done.stderr
    assert "job 7 goes back into the queue" in done.stdout
    assert [call.words for call in calls_of(calls, "scontrol", "requeue")] == [["scontrol", "requeue", "7"]]
    assert calls_of(calls, "ray", "job", "stop"), "the run is to end its step first"
    assert len(calls_of(calls, "ended")) == 3 and not calls_of(calls, "ray", "job", "status")


@pytest.mark.parametrize(
    ("never", "found"),
    [
        ("n1", "0 of 1 Ray nodes"),
        ("n3", "2 of 3 Ray nodes"),
        ("n2 n3", "1 of 3 Ray nodes"),
        ("jobs", "a head that takes no job"),
    ],
)
def test_on_slurm_what_never_comes_ends_the_job(stage: Path, never: str, found: str) -> None:
    done, calls = sbatch(stage, NEVER=never, RAY_START_S="1")
    assert done.returncode == 1
    assert done.stderr == f"slurm.sbatch: found {found} after 1 s; what the nodes said is above\n"
    assert not any("edge-opd" in call.words for call in calls)
    assert len(calls_of(calls, "ended")) == len(calls_of(calls, "ray", "start")), "nothing is left running"


@pytest.mark.parametrize("node", ["n1", "n2"])
def test_on_slurm_a_node_without_an_address_ends_the_job(stage: Path, node: str) -> None:
    done, calls = sbatch(stage, NOWHERE=node)
    assert (done.returncode, done.stderr) == (1, f"slurm.sbatch: found no address of node {node}\n")
    assert len(calls_of(calls, "ended")) == len(calls_of(calls, "ray", "start")) == (node == "n2")


def test_by_hand_each_command_is_one_that_ray_knows(stage: Path) -> None:
    commands = (
        ("head", "192.0.2.1"),
        ("worker", "192.0.2.1", "192.0.2.2"),
        ("submit", "cluster/recipes/N3.toml", "--run-dir", "/shared/runs/N3", *("--set", "run.steps=8") * 5),
    )
    for command in commands:
        done, calls = play(stage, str(BY_HAND), *command, RAY_AUTH_TOKEN=TOKEN)
        assert done.returncode == 0, done.stderr
    assert {(call.mode, call.token) for call in calls} == {("token", TOKEN)}
    head, worker = (check_ray("start", call.words[2:]) for call in calls[:2])
    assert (head["head"], head["node_ip_address"], head["dashboard_host"]) == (True, "192.0.2.1", "127.0.0.1")
    assert (worker["address"], worker["node_ip_address"]) == (f"192.0.2.1:{head['port']}", "192.0.2.2")
    job = check_ray("submit", calls[2].words[3:])
    assert job["address"] == f"http://127.0.0.1:{head['dashboard_port']}" and job["working_dir"] is None
    assert run_arguments(job["entrypoint"], str(stage)).run_dir == "/shared/runs/N3"
    assert check_edge_opd(job["entrypoint"][3:], "").run.steps == 8
    assert calls[3].words == ["ray", "job", "status", "--address", job["address"], job["submission_id"]]


@pytest.mark.parametrize(("environment", "code"), [({"JOB_ENDS": "was stopped"}, 1), ({"SUBMIT_STATUS": "3"}, 3)])
def test_by_hand_a_run_without_success_is_none(stage: Path, environment: dict[str, str], code: int) -> None:
    done, _ = play(stage, str(BY_HAND), "submit", "r.toml", "--run-dir", "/r", RAY_AUTH_TOKEN=TOKEN, **environment)
    assert done.returncode == code
    assert ("ended without success" in done.stderr) == (code == 1)


def test_a_package_of_the_project_leaves_out_what_the_dashboard_would_refuse(tmp_path: Path) -> None:
    """Made as `ray job submit --working-dir` makes it."""
    from ray._private.runtime_env.packaging import create_package

    project = tmp_path / "project"
    shutil.copytree(ROOT / "cluster", project / "cluster", ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".rayignore", ".gitignore", "pyproject.toml"):
        shutil.copy(ROOT / name, project)
    heavy = (
        "models/my-model/model.safetensors",
        "runs/a/shards/step-0.arrow",
        "elsewhere/m.gguf",
        "old/model.bin",
        "old/model.safetensors",
        "old/model.pt",
        ".git/objects/p",
    )
    for name in (*heavy, ".venv/lib/x.py", "my.toml"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("x")
    create_package(str(project), tmp_path / "package.zip", include_gitignore=True)
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        names = set(package.namelist())
    assert {"my.toml", "cluster/examples/slurm.sbatch", "cluster/recipes/N3.toml"} <= names
    assert not names & {*heavy, ".venv/lib/x.py"}


@pytest.mark.parametrize("command", [(), ("head",), ("worker", "192.0.2.1"), ("submit",), ("stop", "x")])
def test_by_hand_another_command_is_one_line(stage: Path, command: tuple[str, ...]) -> None:
    done, calls = play(stage, str(BY_HAND), *command, RAY_AUTH_TOKEN=TOKEN)
    assert done.returncode == 2 and not calls
    assert (
        done.stderr.startswith(f"ray-start.sh: found '{' '.join(command)}', expected ") and done.stderr.count("\n") == 1
    )


def test_by_hand_without_a_token_nothing_starts(stage: Path) -> None:
    done, calls = play(stage, str(BY_HAND), "head", "192.0.2.1")
    assert (done.returncode, calls) == (2, [])
    assert done.stderr == "ray-start.sh: found no RAY_AUTH_TOKEN, expected the same one on every machine\n"


# Kubernetes


def rayjob() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(RAYJOB.read_text())
    return loaded


def pods() -> dict[str, dict[str, Any]]:
    """The pod templates' specs by name of their only container."""
    cluster = rayjob()["spec"]["rayClusterSpec"]
    specs = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    assert all(len(spec["containers"]) == 1 for spec in specs)
    return {spec["containers"][0]["name"]: spec for spec in specs}


def test_the_rayjob_is_one_and_ends_with_its_run() -> None:
    job = rayjob()
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec["shutdownAfterJobFinishes"] is True and spec["ttlSecondsAfterFinished"] > 0
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert spec["rayClusterSpec"]["rayVersion"] == locked_ray()


def test_the_rayjob_is_tried_again_and_its_run_continues_then() -> None:
    spec = rayjob()["spec"]
    assert spec["backoffLimit"] >= 1, "KubeRay's default is 0: a run that was stopped stays so"
    assert _parser().parse_args(shlex.split(spec["entrypoint"])[1:]).resume_auto


def test_the_rayjobs_run_is_one_that_fits_its_workers() -> None:
    spec = rayjob()["spec"]
    recipe = check_edge_opd(shlex.split(spec["entrypoint"]), "/edge-opd")
    assert recipe.run.storage.startswith("s3://")
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
    gpus = int(pods()["ray-worker"]["containers"][0]["resources"]["requests"]["nvidia.com/gpu"])
    assert_a_gpu_each(recipe, gpus, group["replicas"])


@pytest.mark.parametrize("name", ["ray-head", "ray-worker"])
def test_each_pod_has_its_resources_the_secret_and_the_runs_folder(name: str) -> None:
    spec = pods()[name]
    container = spec["containers"][0]
    for kind in ("requests", "limits"):
        assert {"cpu", "memory"} <= container["resources"][kind].keys()
    assert container["envFrom"] == [{"secretRef": {"name": "edge-opd-object-store"}}]
    (mount,), (volume,) = container["volumeMounts"], spec["volumes"]
    assert mount["name"] == volume["name"] and "persistentVolumeClaim" in volume
    arguments = _parser().parse_args(shlex.split(rayjob()["spec"]["entrypoint"])[1:])
    model = next(item for item in arguments.set if item.startswith("model.path=")).partition("=")[2]
    assert all(path.startswith(f"{mount['mountPath']}/") for path in (arguments.run_dir, model))


def test_images_have_a_fixed_tag_and_no_secret_is_written_out() -> None:
    images = {spec["containers"][0]["image"] for spec in pods().values()}
    assert len(images) == 1
    assert re.fullmatch(r"[^:]+:(?!latest$)[\w.-]+", images.pop())
    assert re.search(r"image: .*# REPLACE$", RAYJOB.read_text(), re.MULTILINE)
    assert not any("env" in spec["containers"][0] for spec in pods().values())
