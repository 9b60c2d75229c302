"""Where a failure came from decides its exit status, whatever its Python type."""

import io
import pickle
import zipfile

import pyarrow as pa
import pytest
from ray.exceptions import ObjectStoreFullError, RayTaskError
from rich.console import Console
from safetensors import SafetensorError

from cluster.errors import explained
from cluster.fleet.calls import Died
from cluster.observe.sinks import MetricsSink
from cluster.run.boundary import run_time
from evidence.patience import Hung
from rollout.waits import Late


def ended(error: BaseException, takes_input: bool = False) -> tuple[list[str], int, BaseException]:
    """The lines that a user reads, the exit status, and what left the boundary."""
    sink = MetricsSink(1)
    sink.stage("step 3: learning")
    with pytest.raises(BaseException) as caught, run_time(sink, takes_input):
        raise error
    return *explained(caught.value), caught.value


def in_an_actor(cause: Exception) -> Exception:
    wrapped = RayTaskError("step", "a traceback", cause).as_instanceof_cause()
    assert isinstance(wrapped, Exception)
    return wrapped


DAMAGED = ValueError("step-000002.arrow: sha256: found 1, expected 2")
FAILURES = {
    "a damaged shard": DAMAGED,
    "in an actor": in_an_actor(DAMAGED),
    "a late prompt": Late("rollouts of group 2: not done within 25 s"),
    "a late disk": TimeoutError(110, "Connection timed out", "metrics.jsonl"),
    "a hung disk": Hung("metrics.jsonl: found no answer"),
    "a full disk": OSError(28, "No space left on device"),
    "a reader's": SafetensorError("header too large"),
    "a reader's in an actor": in_an_actor(SafetensorError("header too large")),
    "pickle's": pickle.UnpicklingError("invalid load key"),
    "zip's": zipfile.BadZipFile("File is not a zip file"),
    "arrow's": pa.ArrowException("corrupt"),
    "Ray's": ObjectStoreFullError("the object store is full\nand more lines"),
    "two at once": ExceptionGroup("", [DAMAGED, Died("learner rank 1 died: Its process has died.")]),
}


@pytest.mark.parametrize("name", FAILURES)
def test_while_it_runs_every_failure_is_one_line_with_the_step_and_status_1(name: str) -> None:
    lines, status, error = ended(FAILURES[name])
    assert status == 1 and len(lines) == 1 and lines[0].startswith("step 3: learning: "), lines
    assert "\n" not in lines[0] and "traceback" not in lines[0]
    assert isinstance(error, Died) == (name in ("two at once", "a late prompt"))


@pytest.mark.parametrize("wrapped", [False, True])
def test_bad_input_that_shows_only_as_services_start_has_status_2(wrapped: bool) -> None:
    bad = ValueError("teacher.url: found 2 models, expected one")
    lines, status, _ = ended(ExceptionGroup("", [in_an_actor(bad) if wrapped else bad]), takes_input=True)
    assert (lines, status) == ([str(bad)], 2)
    assert ended(ExceptionGroup("", [bad, OSError("no host")]), takes_input=True)[1] == 1
    assert ended(ObjectStoreFullError("full"), takes_input=True)[1] == 1


@pytest.mark.parametrize(
    ("failure", "is_loss"),
    [
        (in_an_actor(RuntimeError("student engine 0 did not start: see root cause")), True),  # of a worker's death
        (ObjectStoreFullError("full"), True),
        (RuntimeError("the raylet of this host died, Ray's own process, and with it learner rank 0"), False),
    ],
    ids=["an actor's", "Ray's", "the driver's"],
)
def test_a_start_that_fails_after_one_that_did_not_is_a_loss_where_a_service_failed(
    failure: Exception, is_loss: bool
) -> None:
    """Without this host's raylet nothing starts: a further start would wait for its placement."""
    found = []
    for has_stood in (False, True):
        with pytest.raises(RuntimeError) as caught, run_time(MetricsSink(1), True, has_stood):
            raise ExceptionGroup("", [failure])
        found.append(caught.value)
    assert str(found[0]) == str(found[1]) and [isinstance(error, Died) for error in found] == [False, is_loss]
    with pytest.raises(ValueError, match=r"^found 2 models$"), run_time(MetricsSink(1), True, has_stood=True):
        raise ValueError("found 2 models")


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_mistake_of_ours_keeps_its_traceback(wrapped: bool) -> None:
    mistake = KeyError("ours")
    with pytest.raises(BaseException) as caught, run_time(MetricsSink(1)):
        raise in_an_actor(mistake) if wrapped else mistake
    found = caught.value.exceptions[0] if isinstance(caught.value, BaseExceptionGroup) else caught.value
    assert found is mistake or repr(found) == repr(mistake)


def test_a_path_with_brackets_is_shown_as_it_is() -> None:
    written = io.StringIO()
    sink = MetricsSink(1, Console(file=written, force_terminal=True, width=200, highlight=False))
    sink.stage("saving runs/[/a]")
    sink.stage("saving runs/[/b]")
    sink.say("run runs/[/a]")
    sink.close()
    assert "run runs/[/a]" in written.getvalue() and "saving runs/[/b]" in written.getvalue()
