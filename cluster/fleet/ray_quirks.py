"""The only home of what Ray does that nobody would guess, and of what is done about it here.

Each was seen in Ray 2.60.0; tests/engine/test_ray_contract.py fails by its name when an upgrade changes it.

- Three errors report that an actor's process is no more; above them is only the class of every Ray error. Why it is no
  more stands in the last line of one and in the first of the others: `LOST`, `reason`.
- With a node go its actors, and where it was the driver's, all of them: their errors name the owner or the node, not
  the actor: `lost`.
- What a method raises arrives as an error of two classes, the method's and RayTaskError, whose text is a traceback. Its
  `cause` is what was raised: `cluster.errors.cause_of`, in commands that have no Ray too.
- An actor with less than two CPUs gets OMP_NUM_THREADS=1, unless its runtime environment sets another: `omp_threads`.
- An actor sees its own GPU only, as GPU 0, whatever others are on its host: `local_rank`. Where the host has
  RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES, every actor sees all, and would use the first: `see_own_gpus`. Ray
  numbers GPUs as their driver does, and CUDA by speed. A Ray of one's own hands out the first that it sees.
- Actors run at niceness 15, so that beside other work on their host they starve. RAY_worker_niceness=0, set before Ray
  starts, changes it; docs/troubleshooting.md says so, and nothing is done about it here.
- Every service listens on all interfaces, also of a local Ray, and 127.0.0.1 as the node's address is replaced by the
  host's own. Where clusters are off, as by default on macOS, all of them listen on the loopback: `stay_on_loopback`.
- A local Ray starts three processes of Python, two seconds of a processor, of which a run asks nothing: of the
  autoscaler, of the dashboard, also where that is off (`ray.init` waits for it), and for drivers that show logs. Two of
  them listen, and answer everyone on the host: `start_fewer_processes`.
- Once its head (gcs_server) is gone, `ray.nodes` and `remove_placement_group` do not return, and a minute later Ray
  ends the driver with status 1 and lines of its own: `cluster.fleet.head` (tests/engine/test_head.py).
- A process that multiprocessing spawns in an actor runs Ray's worker script first, and so imports Ray, as one that it
  spawns elsewhere runs the script that was started (findings/ray-actors-children-run-its-worker.sh):
  `forget_worker_script`.
- A local Ray writes a token that is not there yet to ~/.ray/auth_token, which every user may read as the umask usually
  is: `ask_for_a_token`, `keep_token_private`.
"""

import os
import secrets
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from types import ModuleType

from ray._private import ray_constants
from ray._private.node import Node
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError

from cluster.sizing.cards import AS_LISTED, DEVICES, ORDER


class Died(RuntimeError):
    """An actor's process, or the engine in it, is no more."""


LOST = (RayActorError, OutOfMemoryError, NodeDiedError)


def reason(lost: Exception) -> str:
    """Of one of `LOST`, in one line: what Ray knows."""
    told = getattr(lost, "cause", None) or lost  # raised in another actor
    lines = str(told).splitlines()
    return lines[-1].partition(" Some common causes")[0] if isinstance(told, RayActorError) else lines[0]


def lost(name: str, error: Exception) -> Exception:
    """What an error of `LOST` says of the actor called `name`, in one line: that it died, or with it its Ray node."""
    said = str(getattr(error, "cause", None) or error)
    if "Owner's node has crashed" in said:
        return RuntimeError(f"the raylet of this host died, Ray's own process, and with it {name}")
    if isinstance(error, NodeDiedError) or "its node has died" in said:
        return Died(f"the Ray node of {name} died: {reason(error)}")
    return Died(f"{name} died: {reason(error)}")


def omp_threads(threads: int) -> dict[str, str]:
    """The environment variable with which an actor's process has as many OpenMP threads as it should."""
    return {"OMP_NUM_THREADS": str(threads)}


def stay_on_loopback() -> None:
    """A local Ray that this process starts from now on is not seen by other hosts."""
    ray_constants.ENABLE_RAY_CLUSTER = False


def start_fewer_processes() -> None:
    """A local Ray that this process starts from now on has none for an autoscaler, a dashboard or drivers' logs."""
    Node.start_monitor = Node.start_api_server = Node.start_log_monitor = _start_nothing


def _start_nothing(node: Node, **asked: object) -> None:
    pass


def ask_for_a_token(environment: MutableMapping[str, str]) -> None:
    """A local Ray asks for a token that nobody but this process and its children has, unless the user has chosen."""
    if not any(name in environment for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # the mode follows: Ray reads that as it is imported


def keep_token_private(home: Path) -> None:
    """Nobody but its owner may read the token that Ray has written there."""
    path = home / ".ray" / "auth_token"
    if path.is_file() and path.stat().st_uid == os.getuid() and path.stat().st_mode & 0o077:
        path.chmod(0o600)


def see_own_gpus(environment: MutableMapping[str, str], given: Sequence[str]) -> None:
    """Before CUDA starts in an actor's process: it sees the GPUs that Ray has given the actor, by the driver's numbers.

    given: their numbers or UUIDs; none for an actor without.
    """
    environment.setdefault(ORDER, AS_LISTED)
    if given:
        in_order = sorted(given, key=lambda name: (len(name), name))  # Ray gives them in any
        environment[DEVICES] = ",".join(in_order)


def forget_worker_script(main: ModuleType) -> None:
    """What is spawned from now on runs no script first. main: the actor's `__main__`."""
    if hasattr(main, "__file__"):
        del main.__file__


def local_rank(rank: int, hosts: Sequence[str], environment: Mapping[str, str]) -> int:
    """Which GPU of those that it sees is the rank's.

    hosts: of every rank. environment: of the rank's process.
    """
    return 0 if environment.get(DEVICES) else hosts[:rank].count(hosts[rank])
