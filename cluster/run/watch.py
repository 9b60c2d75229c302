"""What watches a run: the observer, with the sinks that the recipe names."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from cluster.config import Recipe
from cluster.dashboard.page import PageSink, StartingPage
from cluster.fleet.assembly import Services
from cluster.observe.files import FileSink
from cluster.observe.observer import Observer, Sink
from cluster.observe.ray_sink import RaySink
from cluster.observe.sinks import MetricsSink
from cluster.observe.timeline import watching
from cluster.observe.trackers import TrackerSink
from cluster.run.rundir import RunDir
from evidence.telemetry import Activity


def watch(services: Services) -> Activity:
    """What the driver waits for from now on."""
    activity = Activity()
    services.rollout.watch = watching(activity, "rollout")
    services.learner.watch = watching(activity, "learner")
    services.learner.note = activity.add
    return activity


@contextmanager
def exporting(recipe: Recipe, folder: RunDir) -> Iterator[list[RaySink]]:
    """The sink of Ray's endpoint where `observe` names it. It tells what stands while the services start and end, when
    no observer does: a run that tells nothing has vanished."""
    if not recipe.observe.ray:
        yield []
        return
    sink = RaySink(folder.root, recipe)
    with sink.telling():
        yield [sink]


@contextmanager
def announced(recipe: Recipe, folder: RunDir, ending: Callable[[BaseException], str]) -> Iterator[Callable[[], None]]:
    """The page of a run whose services start, where `observe` names a page; what it yields is called once it begins."""
    if not recipe.observe.page:
        yield lambda: None
        return
    with StartingPage(folder.root, recipe, ending) as page:
        yield page.end


def observer_of(
    recipe: Recipe,
    folder: RunDir,
    services: Services,
    sink: MetricsSink,
    activity: Activity,
    exporters: Sequence[RaySink],
    ending: Callable[[BaseException], str],
) -> Observer:
    """The observer of a run, which hears each of its records from `sink`. ending: how one ended that ended with an
    error."""
    sinks, every_s = sinks_of(recipe, folder, exporters), recipe.observe.every_s
    observer = Observer(services.rollout.observe, activity, sinks, every_s, sink.say, ending)
    sink.observer = observer
    return observer


def sinks_of(recipe: Recipe, folder: RunDir, exporters: Sequence[RaySink]) -> list[Sink]:
    """What `observe` of the recipe names, the files first."""
    page = [PageSink(folder.root, recipe)] if recipe.observe.page else []
    trackers = [TrackerSink(name, folder.root, recipe) for name in recipe.observe.trackers]
    return [FileSink(folder.root), *page, *exporters, *trackers]
