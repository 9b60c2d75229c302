"""What `cluster.fleet.ray_quirks` works around, in Ray as it is. A test that fails names a work-around that an upgrade
has made wrong or needless. One local Ray with two GPUs, which it does not look for, answers everything.
"""

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError, RayTaskError

from cluster.errors import cause_of
from cluster.fleet.calls import ask
from cluster.fleet.ray_quirks import LOST, omp_threads, reason


class Actor:
    def environment(self, name: str) -> str | None:
        return os.environ.get(name)

    def niceness(self) -> int:
        return os.nice(0)

    def fail(self) -> None:
        raise ValueError("rows: found 3, expected 4")

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray.init(
        address="local", num_cpus=8, num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
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
    return ray.get(getattr(actor, method).remote(*arguments), timeout=60)


def test_the_version_is_the_one_that_was_seen() -> None:
    assert ray.__version__ == "2.60.0"


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


@pytest.mark.parametrize("cpus", [0, 0.4, 1])
def test_an_actor_with_less_than_two_cpus_has_one_openmp_thread_unless_told(actors: Any, cpus: float) -> None:
    assert told(actors(num_cpus=cpus), "environment", "OMP_NUM_THREADS") == "1"
    several = actors(num_cpus=cpus, runtime_env={"env_vars": omp_threads(3)})
    assert told(several, "environment", "OMP_NUM_THREADS") == "3"


def test_an_actor_sees_its_own_gpu_only(actors: Any) -> None:
    seen = {told(actors(num_cpus=0, num_gpus=1), "environment", "CUDA_VISIBLE_DEVICES") for _ in range(2)}
    assert seen == {"0", "1"}


def test_actors_run_at_niceness_15(actors: Any) -> None:
    assert told(actors(num_cpus=0), "niceness") == 15
