"""cluster/examples/slurm.sbatch on a real Slurm: a controller and two nodes in namespaces of this machine.

The subject is the script: requeue, signals, exit codes and logs. `ray` and `edge-opd run` are stand-ins, which take a
second where the real ones take minutes; tests/engine/test_job_submit.py runs those on several hosts.

Needs root and Debian's slurmctld, slurmd, slurm-client and munge; CI has none of them.
"""

import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hosts import Host, hosts
from tests.runs import ROOT

NEEDED = ("slurmctld", "slurmd", "sbatch", "munged", "ip")
MISSING = [name for name in NEEDED if not shutil.which(name)]
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="hosts of their own need root"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]

CONF = """
ClusterName=edge
SlurmctldHost=ctl({ctl})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool-%n
SlurmctldPidFile={home}/ctl.pid
SlurmdPidFile={home}/%n.pid
SlurmctldLogFile={home}/ctl.log
SlurmdLogFile={home}/%n.log
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
GresTypes=gpu
KillWait=10
NodeName=DEFAULT CPUs=2 Boards=1 SocketsPerBoard=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=1000 Gres=gpu:2
NodeName=n1 NodeAddr={n1} NodeHostname=n1
NodeName=n2 NodeAddr={n2} NodeHostname=n2
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""
# Says how it was called, leaves a checkpoint, and does what the file `then` says.
EDGE_OPD = """#!/usr/bin/env bash
echo "stand-in: $*"
while [ "$1" != --run-dir ]; do shift; done
mkdir -p "$2/checkpoints" && touch "$2/checkpoints/latest"
. ./then
"""
# Nodes are files of the job that live as long as `ray start --block`; a job is a child of `ray job submit`.
RAY = """#!/usr/bin/env bash
state=$(dirname "$0")/../../ray-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}
mkdir -p "$state"
case "$1 $2" in
    "start --block")
        trap 'rm "$state/node-$(hostname)"; kill $!; exit 0' TERM
        echo $$ >"$state/node-$(hostname)"
        sleep 600 & wait ;;
    "list nodes") for node in "$state"/node-*; do [ ! -e "$node" ] || echo '"node_id"'; done ;;
    "job status") echo "Job '${!#}' $(cat "$state/ended")" ;;
    "job stop") echo "stand-in: asked to stop ${!#}" ;;
    "job submit")
        while [ "$1" != -- ]; do shift; done; shift
        rm -f "$state/ended"
        "$@" & echo $! >"$state/pid"; wait $!; code=$?
        [ -e "$state/ended" ] || { [ $code -eq 0 ] && echo succeeded || echo failed; } >"$state/ended"
        [ "$(cat "$state/ended")" != failed ] ;;
esac
"""


@dataclass(frozen=True)
class Slurm:
    """A cluster, the folder of its files, and a project that its nodes see."""

    home: Path
    controller: Host
    env: dict[str, str]

    @property
    def project(self) -> Path:
        return self.home / "project"

    def ask(self, *words: str) -> str:
        """What a command on the controller's host prints."""
        done = run_on(self.controller, self.home, words, self.env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, then: str) -> str:
        """The example as a job of this size; its id."""
        (self.project / "then").write_text(then)
        small = ("--cpus-per-task=1", f"--chdir={self.project}", f"--output={self.project}/%j.log")
        said = self.ask("sh", "-c", f"cd {self.project} && sbatch --parsable {' '.join(small)} slurm.sbatch")
        return said.strip()

    def log(self, job: str) -> str:
        path = self.project / f"{job}.log"
        return path.read_text() if path.exists() else ""

    def nodes(self, job: str) -> list[str]:
        """The Ray nodes of the job's first start that still run. Slurm kills some before they can say goodbye."""
        files = self.project.glob(f"ray-{job}-0/node-*")
        return [file.name for file in files if Path("/proc", file.read_text().strip()).exists()]

    def state(self, job: str) -> str:
        """Such as "COMPLETED 0:0"."""
        shown = self.ask("scontrol", "show", "job", job)
        found = [re.findall(rf"\b{key}=(\S+)", shown)[0] for key in ("JobState", "ExitCode")]
        return " ".join(found)

    def wait(self, job: str, what: str, is_so: Callable[[], bool], seconds: float = 60) -> None:
        """Until it is so; what the job printed, where it never is."""
        deadline = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < deadline, f"{what}: not in {seconds} s ({self.state(job)})\n{self.log(job)}"
            time.sleep(0.5)


def command_on(host: Host, home: Path, name: str, words: Sequence[str]) -> list[str]:
    """`words` on a host of that name. Not by `ip netns exec`, which hides /sys/fs/cgroup, that slurmd asks for."""
    script = f'hostname {name} && mount --bind {home}/hosts /etc/hosts && exec "$@"'
    return [
        *("nsenter", f"--net=/run/netns/{host.name}", "unshare", "--mount", "--uts", "sh", "-c", script, name),
        *words,
    ]


def run_on(ctl: Host, home: Path, words: Sequence[str], env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """A command on the controller's host."""
    command = command_on(ctl, home, "ctl", words)
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def start_on(host: Host, home: Path, name: str, daemon: str, env: dict[str, str]) -> "subprocess.Popen[bytes]":
    """A daemon of Slurm in the foreground, which writes a log of its own."""
    command, nowhere = command_on(host, home, name, (daemon, "-D")), subprocess.DEVNULL
    return subprocess.Popen(command, env=env, stdout=nowhere, stderr=nowhere)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    home = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    home.chmod(0o755)  # munge trusts no folder that others may write to
    env = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SLURM_"))}
    env |= {"SLURM_CONF": str(home / "slurm.conf"), "RAY_POLL_S": "0.2", "RAY_START_S": "30"}
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, home, ignore_errors=True)
        ctl, *nodes = undo.enter_context(hosts(3))
        addresses = {"ctl": ctl.address, "n1": nodes[0].address, "n2": nodes[1].address}
        write_files(home, addresses)
        key, socket = home / "munge.key", home / "munge.socket"
        files = [f"--{name}={home}/munge.{name}" for name in ("pid-file", "log-file", "seed-file")]
        munged = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={socket}", *files]
        daemons = [subprocess.Popen(munged, env=env, stderr=subprocess.DEVNULL)]
        undo.callback(lambda: end(daemons))
        daemons.append(start_on(ctl, home, "ctl", "slurmctld", env))
        for name, host in zip(("n1", "n2"), nodes, strict=True):
            daemons.append(start_on(host, home, name, "slurmd", env))
        cluster = Slurm(home, ctl, env)
        wait_for_nodes(cluster)
        undo.callback(cluster.ask, "scancel", "--full", "--user=root")
        yield cluster


def write_files(home: Path, addresses: dict[str, str]) -> None:
    (home / "slurm.conf").write_text(CONF.format(home=home, **addresses))
    (home / "gres.conf").write_text(f"NodeName=n[1-2] Name=gpu File={home}/gpu[0-1]\n")
    for number in (0, 1):  # a device that somebody has, since Slurm looks whether it is there
        os.mknod(home / f"gpu{number}", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    (home / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{ip} {name}\n" for name, ip in addresses.items()))
    (home / "munge.key").write_bytes(os.urandom(128))
    (home / "munge.key").chmod(0o600)
    (home / "state").mkdir()
    binaries = home / "project" / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name, script in (("edge-opd", EDGE_OPD), ("ray", RAY)):
        (binaries / name).write_text(script)
        (binaries / name).chmod(0o755)
    shutil.copy(ROOT / "cluster" / "examples" / "slurm.sbatch", home / "project")


def wait_for_nodes(cluster: Slurm) -> None:
    deadline = time.monotonic() + 30
    done = None
    while time.monotonic() < deadline:
        done = run_on(cluster.controller, cluster.home, ("sinfo", "--noheader", "--format=%D %t"), cluster.env)
        if done.stdout.strip() == "2 idle":
            return
        time.sleep(1)
    logs = "".join(path.read_text()[-1500:] for path in cluster.home.glob("*.log"))
    raise AssertionError(f"the nodes do not come up: {done}\n{logs}")


def end(daemons: "list[subprocess.Popen[bytes]]") -> None:
    for daemon in reversed(daemons):
        daemon.terminate()
        try:
            daemon.wait(timeout=20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def test_a_job_whose_time_is_nearly_up_continues_after_its_requeue(slurm: Slurm) -> None:
    job = slurm.submit("sleep 600")
    slurm.wait(job, "the run's start", lambda: "stand-in: run cluster/recipes/N3.toml" in slurm.log(job))
    (slurm.project / "then").write_text("exit 0")
    slurm.ask("scancel", "--batch", "--signal=USR1", job)  # as --signal=B:USR1@120 does
    slurm.wait(job, "the requeue", lambda: slurm.state(job).startswith("PENDING"))
    assert f"stand-in: asked to stop edge-opd-{job}-0" in slurm.log(job)
    slurm.ask("scontrol", "update", f"JobId={job}", "StartTime=now")  # a requeued job waits two minutes otherwise
    slurm.wait(job, "the end", lambda: slurm.state(job) == "COMPLETED 0:0")
    log = slurm.log(job)
    first, second = re.findall(r"stand-in: run .*", log)
    run = f"--run-dir {slurm.project}/runs/N3-{job} "
    assert all(f"{run}--resume=auto " in start for start in (first, second)), "the log keeps both"
    assert f"job {job} goes back into the queue" in log


def test_a_killed_node_s_job_goes_on_in_its_folder(slurm: Slurm) -> None:
    job = slurm.submit("sleep 600")
    slurm.wait(job, "the run's start", lambda: "stand-in: run" in slurm.log(job))
    (slurm.project / "then").write_text("exit 0")
    slurm.ask("scontrol", "requeue", job)  # as Slurm does by itself when a node fails
    slurm.wait(job, "the requeue", lambda: slurm.state(job).startswith("PENDING"))
    slurm.ask("scontrol", "update", f"JobId={job}", "StartTime=now")
    slurm.wait(job, "the end", lambda: slurm.state(job) == "COMPLETED 0:0")
    assert slurm.log(job).count(f"--run-dir {slurm.project}/runs/N3-{job} --resume=auto ") == 2
    assert [path.name for path in (slurm.project / "runs").glob(f"N3-{job}*")] == [f"N3-{job}"]


def test_a_run_that_somebody_stops_fails_the_job(slurm: Slurm) -> None:
    job = slurm.submit("sleep 600")
    slurm.wait(job, "the run's start", lambda: "stand-in: run" in slurm.log(job))
    state = slurm.project / f"ray-{job}-0"
    (state / "ended").write_text("was stopped")  # as `ray job stop` does; submit then exits 0
    os.kill(int((state / "pid").read_text()), signal.SIGTERM)
    slurm.wait(job, "the end", lambda: slurm.state(job) == "FAILED 1:0")
    assert f"slurm.sbatch: found the Ray job edge-opd-{job}-0 ended without success" in slurm.log(job)


def test_a_run_that_fails_fails_the_job_and_leaves_no_node(slurm: Slurm) -> None:
    job = slurm.submit("echo edge-opd: no such model >&2; exit 2")
    slurm.wait(job, "the end", lambda: slurm.state(job) == "FAILED 1:0")
    assert "edge-opd: no such model" in slurm.log(job)
    slurm.wait(job, "the nodes' end", lambda: not slurm.nodes(job))


def test_a_cancelled_job_ends_its_nodes(slurm: Slurm) -> None:
    job = slurm.submit("sleep 600")
    slurm.wait(job, "the run's start", lambda: "stand-in: run" in slurm.log(job))
    assert len(slurm.nodes(job)) == 2
    slurm.ask("scancel", job)
    slurm.wait(job, "the end", lambda: slurm.state(job).startswith("CANCELLED"))
    slurm.wait(job, "the nodes' end", lambda: not slurm.nodes(job))
