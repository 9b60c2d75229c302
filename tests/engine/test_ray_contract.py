"""What `cluster.fleet.ray_quirks` works around, in Ray as it is. A test that fails names a work-around that an upgrade
has made wrong or needless. One local Ray with two GPUs, which it does not look for, answers everything.
"""

import asyncio
import faulthandler
import multiprocessing
import os
import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import ray
from ray._private import ray_constants, services
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group

from cluster.errors import cause_of
from cluster.fleet.calls import ask
from cluster.fleet.ray_quirks import (
    LOST,
    ask_for_a_token,
    forget_worker_script,
    keep_token_private,
    omp_threads,
    reason,
    see_own_gpus,
    start_fewer_processes,
    stay_on_loopback,
)
from tests.listeners import Watch, family


class Actor:
    def environment(self, name: str) -> str | None:
        return os.environ.get(name)

    def settled(self) -> str | None:
        see_own_gpus(os.environ, ray.get_runtime_context().get_accelerator_ids()["GPU"])
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    def niceness(self) -> int:
        return os.nice(0)

    def spawned(self, is_forgotten: bool) -> list[str]:
        """The modules of a process that it spawns."""
        if is_forgotten:
            forget_worker_script(sys.modules["__main__"])
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return list(pool.apply(eval, ("[*__import__('sys').modules]",)))

    def fail(self) -> None:
        raise ValueError("rows: found 3, expected 4")

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    stay_on_loopback()
    start_fewer_processes()
    ask_for_a_token(os.environ)
    faulthandler.dump_traceback_later(300, exit=True)  # pytest's own limit is of the tests alone
    ray.init(
        address="local", num_cpus=8, num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    faulthandler.cancel_dump_traceback_later()
    yield
    ray.shutdown()


@pytest.fixture
def actors(local_ray: None) -> Iterator[Any]:
    """Makes actors with the given options, and ends them."""
    made = []

    def make(**options: Any) -> Any:
        made.append(ray.remote(Actor).options(**options).remote())
        return made[-1]

    yield make
    for actor in made:
        ray.kill(actor)


def told(actor: Any, method: str, *arguments: Any) -> Any:
    return ray.get(getattr(actor, method).remote(*arguments), timeout=25)


def test_the_version_is_the_one_that_was_seen() -> None:
    assert ray.__version__ == "2.60.0"


def test_a_local_ray_has_no_process_that_a_run_asks_nothing_of(local_ray: None) -> None:
    words = [word for process in psutil.Process().children() for word in process.cmdline()]
    python = {Path(word).name for word in words if word.endswith(".py") and "/ray/" in word}
    assert not python and any(word.endswith("gcs_server") for word in words)


def test_no_one_class_is_above_the_errors_of_a_lost_actor() -> None:
    shared = set.intersection(*({base for base in kind.__mro__ if issubclass(base, Exception)} for kind in LOST))
    assert not [base for base in shared if not issubclass(RayTaskError, base)]


def test_why_an_actor_is_no_more_stands_in_the_last_line(actors: Any) -> None:
    actor = actors(num_cpus=0)
    with pytest.raises(RayActorError) as death:
        told(actor, "die")
    lines = str(death.value).splitlines()
    assert len(lines) > 1 and lines[-1].startswith("The actor is dead because its worker process has died.")
    assert "Some common causes" in lines[-1] and "Some common causes" not in reason(death.value)
    assert reason(death.value).startswith("The actor is dead because its worker process has died.")


def test_an_actor_that_is_gone_is_one_line_for_the_next_caller_too(actors: Any) -> None:
    actor = actors(num_cpus=0)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"^learner rank 1 died: The actor is dead because [^\n]*$"):
            asyncio.run(ask("learner rank 1", actor, "die"))


def test_an_error_arrives_as_two_classes_with_a_traceback_for_its_text(actors: Any) -> None:
    with pytest.raises(ValueError) as raised:
        told(actors(num_cpus=0), "fail")
    assert isinstance(raised.value, RayTaskError)
    assert "Traceback" in str(raised.value) or len(str(raised.value).splitlines()) > 1
    assert type(cause_of(raised.value)) is ValueError
    assert str(cause_of(raised.value)) == "rows: found 3, expected 4"


def test_what_an_actor_spawns_runs_the_workers_script_unless_that_is_forgotten(actors: Any) -> None:
    actor = actors(num_cpus=0)
    assert "ray" in told(actor, "spawned", False), "Ray's script is no longer run"
    assert "ray" not in told(actor, "spawned", True)
    assert told(actor, "environment", "PATH"), "the actor does not go on"


@pytest.mark.parametrize("cpus", [0, 0.4, 1])
def test_an_actor_with_less_than_two_cpus_has_one_openmp_thread_unless_told(actors: Any, cpus: float) -> None:
    assert told(actors(num_cpus=cpus), "environment", "OMP_NUM_THREADS") == "1"
    several = actors(num_cpus=cpus, runtime_env={"env_vars": omp_threads(3)})
    assert told(several, "environment", "OMP_NUM_THREADS") == "3"


def test_an_actor_sees_its_own_gpu_only(actors: Any) -> None:
    seen = {told(actors(num_cpus=0, num_gpus=1), "environment", "CUDA_VISIBLE_DEVICES") for _ in range(2)}
    assert seen == {"0", "1"}


def test_whoever_shares_a_gpu_has_the_first_that_ray_sees(actors: Any) -> None:
    """`cluster.sizing.claims` counts on it."""
    group = placement_group([{"CPU": 1, "GPU": 1}])
    try:
        ray.get(group.ready(), timeout=25)
        shares = [actors(num_cpus=0.3, num_gpus=0.33, placement_group=group) for _ in range(3)]
        assert {told(actor, "environment", "CUDA_VISIBLE_DEVICES") for actor in shares} == {"0"}
    finally:
        remove_placement_group(group)


def test_gpus_keep_the_names_that_a_host_has_for_them(actors: Any) -> None:
    hosts = {"env_vars": {"CUDA_VISIBLE_DEVICES": "GPU-b,MIG-a"}}
    made = [actors(num_cpus=0, num_gpus=1, runtime_env=hosts) for _ in range(2)]
    assert {told(actor, "environment", "CUDA_VISIBLE_DEVICES") for actor in made} == {"GPU-b", "MIG-a"}


def test_where_ray_hides_no_gpu_every_actor_sees_all_unless_it_settles(actors: Any) -> None:
    hosts = {"CUDA_VISIBLE_DEVICES": "3,2", "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}
    made = [actors(num_cpus=0, num_gpus=1, runtime_env={"env_vars": hosts}) for _ in range(2)]
    assert {told(actor, "environment", "CUDA_VISIBLE_DEVICES") for actor in made} == {"3,2"}
    assert {told(actor, "settled") for actor in made} == {"2", "3"}
    without = actors(num_cpus=0, runtime_env={"env_vars": hosts})
    assert told(without, "settled") == "3,2"  # so that whoever asks a node's driver knows which cards are the node's


def test_actors_run_at_niceness_15(actors: Any) -> None:
    assert told(actors(num_cpus=0), "niceness") == 15


def test_the_loopback_as_a_nodes_address_is_replaced_where_clusters_are_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services.ray._private.worker, "_global_node", None)
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
    assert services.resolve_ip_for_localhost("127.0.0.1") == "127.0.0.1" == services.get_node_ip_address()
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    assert services.resolve_ip_for_localhost("127.0.0.1") == services.get_node_ip_address()


def test_a_local_ray_listens_on_the_loopback_and_asks_for_a_token_but_for_its_metrics(actors: Any) -> None:
    told(actors(num_cpus=0), "niceness")
    watch = Watch()
    watch.look(family(os.getpid()))
    assert {one.reach for one in watch.found()} == {"loopback"}
    node = ray.nodes()[0]
    assert node["NodeManagerAddress"] == "127.0.0.1"
    gcs = int(ray.get_runtime_context().gcs_address.rpartition(":")[2])
    services = {
        "NodeInfoGcsService/GetAllNodeInfo": gcs,
        "NodeManagerService/GetNodeStats": node["NodeManagerPort"],
        "ObjectManagerService/Pull": node["ObjectManagerPort"],
    }
    for method, port in services.items():
        assert answer_to_a_stranger(port, f"/ray.rpc.{method}") == "UNAUTHENTICATED", method
        assert answer_to_a_stranger(port, "/grpc.health.v1.Health/Check") in ("OK", "UNIMPLEMENTED"), method
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    assert opener.open(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=20).status == 200


def answer_to_a_stranger(port: int, method: str) -> str:
    """What a service of Ray's answers to an empty call without a token."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary(method)(b"", timeout=20)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def test_a_token_is_this_runs_own_unless_the_user_has_one() -> None:
    mine: dict[str, str] = {}
    ask_for_a_token(mine)
    assert mine.keys() == {"RAY_AUTH_TOKEN"} and len(mine["RAY_AUTH_TOKEN"]) == 64
    for name, value in (("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "a"), ("RAY_AUTH_TOKEN_PATH", "/b")):
        theirs = {name: value}
        ask_for_a_token(theirs)
        assert theirs == {name: value}


@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_nobody_else_may_read_the_token_that_ray_has_written(tmp_path: Path, mode: int) -> None:
    keep_token_private(tmp_path)  # there is none
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("0123")
    token.chmod(mode)
    keep_token_private(tmp_path)
    assert token.stat().st_mode & 0o777 == 0o600 and token.read_text() == "0123"
