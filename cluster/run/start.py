"""`edge-opd run`: one recipe from services to an exported model."""

import asyncio
import importlib.metadata
import time
from collections.abc import Callable
from functools import partial

from ray.exceptions import RayTaskError

from cluster.config import Recipe
from cluster.errors import EXPECTED, Preempted, cause_of
from cluster.faults import Restarts
from cluster.fleet.assembly import running, start
from cluster.fleet.calls import Died
from cluster.fleet.head import watched_head
from cluster.fleet.launch import adapter_of
from cluster.fleet.placement import Plan
from cluster.fleet.ray_cluster import cluster_cards, connect, has_own_ray, metrics_address, plan_for
from cluster.fleet.services import LearnerService
from cluster.machine import machine_name
from cluster.models import called
from cluster.observe.sinks import MetricsSink
from cluster.observe.trackers import require_packages
from cluster.run.boundary import end_at_once, ending, is_lost, run_time
from cluster.run.checkpoints import Checkpoints
from cluster.run.checks import RunInputs, check_caches, check_recipe
from cluster.run.choice import Choice
from cluster.run.finish import finish
from cluster.run.inputs import pin, pins_of
from cluster.run.memory import plan_in_use, with_planned_memory
from cluster.run.pipeline import Pipeline
from cluster.run.record import append_plan, read_probes
from cluster.run.replay import Resumed, catch_up, learned_groups, outlook
from cluster.run.rundir import RunDir, run_folder, settled
from cluster.run.stop import Stop, heeding
from cluster.run.watch import announced, exporting, observer_of, watch
from cluster.sizing.claims import Look
from evidence.patience import bounded, remove_beside, retried_beside, retried_within
from evidence.records import Ids
from evidence.shards import check_unshared
from rollout.cores import cpu_flags, has_bfloat16
from rollout.tasks import build_task

NO_BFLOAT16 = (
    "bfloat16: this processor has no kernels for it, so engines compute in float32 and the learner multiplies in it; "
    "expect several times the seconds a step of one with AVX-512"
)

STARTING = "starting engines and learner"
ENDED = "resume: the run has ended already, so that nothing is left to train"


def run_recipe(recipe: Recipe, run_dir: str | None, resume: bool | None) -> int:
    """Runs a recipe; returns the exit code. ValueError for bad input, other errors name the component and the step.

    resume: whether there is a run to continue; None: it is continued where there is one.
    """
    task = build_task(recipe.task)
    require_packages(recipe.observe.trackers)
    folder = RunDir(run_folder(recipe, run_dir).resolve())
    here = partial(bounded, folder.root)
    recipe, begun = here(lambda: (settled(recipe, folder), folder.has_begun))
    resume = begun if resume is None else resume
    inputs, notes = check_recipe(recipe, task)
    if recipe.run.storage and not resume:
        check_unshared(recipe.run.storage, folder.root.name, "run.storage")
    here(partial(folder.claim, recipe, resume))
    sink, ended = MetricsSink(recipe.run.steps), False
    try:
        pins = bounded(inputs.model, partial(pins_of, recipe, inputs.model, task))
        here(partial(pin, folder.inputs, pins, resume, notes.kept))
        for note in notes.shown:
            sink.say(note)
        if resume:
            sink.stage("reading what stands in the run's folder")
            with run_time(sink):
                ended = here(folder.has_ended)
                look = partial(retried_within, recipe.faults.store_s, folder.root, partial(outlook, folder))
                sink.say(ENDED if ended else look())
        if not ended:
            asyncio.run(_run(recipe, folder, sink, resume, inputs))
        sink.close()
        sink.stage("the run's summary")
        with run_time(sink):
            code = finish(recipe, inputs.model, folder, task, notes.card)
            retried_within(recipe.faults.store_s, folder.ended, folder.note_end)
            return code
    finally:
        sink.close()
        folder.release()


async def _run(recipe: Recipe, folder: RunDir, sink: MetricsSink, resume: bool, inputs: RunInputs) -> None:
    connect()  # which has a handler of its own for SIGTERM
    if recipe.observe.ray:
        sink.say(f"figures for Prometheus: {metrics_address()}")
    with heeding(recipe.faults.grace_s) as stop, watched_head(partial(end_at_once, sink, folder, stop=stop)):
        await _survive(recipe, folder, sink, resume, inputs, stop)


async def _survive(
    recipe: Recipe, folder: RunDir, sink: MetricsSink, resume: bool, inputs: RunInputs, stop: Stop
) -> None:
    """The services, started again with what stands where one of them or a rank dies."""
    recipe, plan = await _planned(recipe, folder, sink, inputs)
    restarts, stood = Restarts(recipe.faults), asyncio.Event()
    has_shards = partial(retried_beside, recipe.faults.store_s, folder.manifest, folder.manifest.exists)
    had_shards = await has_shards()

    def can_begin() -> bool:  # without any shard the run begins again, once its services could start
        return had_shards or stood.is_set()

    def may_restart() -> bool:
        return can_begin() and restarts.are_left(time.monotonic())

    called_end, before = partial(ending, stop=stop, may_restart=may_restart), ""
    while True:
        sink.stage(STARTING)
        try:
            return await _serve(recipe, folder, sink, resume, inputs, stop, plan, stood, called_end)
        except Died as death:
            if stop.asked:  # whoever asks a whole cluster to stop may end its parts first
                raise Preempted(f"stopped by {stop.asked}, and {death}: --resume continues from what stands") from None
            if not (can_begin() and restarts.allow(time.monotonic())):
                raise
            head, newline, log = str(death).partition("\n")
            sink.say(f"{head}; the services start again{newline}{log}")
            resume, before = await has_shards(), str(death)
        except TimeoutError as error:  # of the placement: what died may have taken its node along, until another comes
            if not before:
                raise
            if not restarts.allow(time.monotonic()):
                raise RuntimeError(f"{error}; before that, {before}") from None
            sink.say(f"{error}; the services start again")


async def _planned(recipe: Recipe, folder: RunDir, sink: MetricsSink, inputs: RunInputs) -> tuple[Recipe, Plan]:
    """What runs where, which is said, and the recipe with what is planned of the GPUs' memory."""
    plan, model, said = plan_for(recipe), inputs.model, list[str]()
    sink.say(
        f"run {folder.root}: {called(recipe.model.path)} on {plan.device}, weights over {plan.transport}, "
        f"{recipe.student.num_engines} student and {recipe.teacher_engines} teacher engine(s), "
        f"{recipe.learner.num_ranks} learner rank(s), ZeRO {recipe.learner.zero_stage}"
    )
    if adapter := adapter_of(recipe, model):
        sink.say(f"LoRA of rank {adapter.rank} on {', '.join(adapter.targets)}")
    if narrow := idle_room(recipe):
        sink.say(narrow)
    if plan.device == "cpu":
        check_caches(recipe, model)
        if "bfloat16" in (recipe.student.dtype, recipe.learner.dtype) and not has_bfloat16(cpu_flags()):
            sink.say(NO_BFLOAT16)
    else:
        recipe, plan = await _with_memory(recipe, plan, model, said.append)
        for line in said:
            sink.say(line)
    sink.stage(STARTING)
    with run_time(sink):
        used = plan_in_use(recipe, plan, said)
        await retried_beside(recipe.faults.store_s, folder.memory, partial(append_plan, folder.memory, used))
    return recipe, plan


async def _with_memory(recipe: Recipe, plan: Plan, model: str, say: Callable[[str], None]) -> tuple[Recipe, Plan]:
    """As `with_planned_memory`, with what the host's other runs leave where Ray does not share the GPUs out."""
    import torch  # the version of its CUDA

    cuda = torch.version.cuda
    if not has_own_ray():
        return with_planned_memory(recipe, plan, model, cluster_cards(), cuda, say)
    with await asyncio.to_thread(Look) as look:
        return with_planned_memory(recipe, plan, model, cluster_cards(look.left), cuda, say, look.claim)


def idle_room(recipe: Recipe) -> str:
    """What of the sampling engines the staleness bound leaves empty, where services work side by side; "" where they
    can be full. One engine samples a whole group."""
    lag, rollout = recipe.run.max_policy_lag, recipe.rollout
    engines = recipe.student if rollout.sampler == "student" else recipe.teacher
    groups = min(lag + 1, recipe.run.steps) * rollout.prompts_per_step
    most, room = groups * rollout.samples_per_prompt, engines.num_engines * engines.max_num_seqs
    used = min(most, min(groups, engines.num_engines) * engines.max_num_seqs)
    if lag == 0 or used > 0.99 * room:
        return ""
    pool = rollout.sampler
    return (
        f"run.max_policy_lag = {lag} lets at most {groups} groups of {rollout.samples_per_prompt} rollouts be under "
        f"way, and {engines.num_engines} {pool} engine(s) have room for {room} rollouts ({pool}.max_num_seqs): "
        f"{1 - used / room:.0%} of it stays empty"
    )


async def _serve(
    recipe: Recipe,
    folder: RunDir,
    sink: MetricsSink,
    resume: bool,
    inputs: RunInputs,
    stop: Stop,
    plan: Plan,
    stood: asyncio.Event,
    called_end: Callable[[BaseException], str],
) -> None:
    """From the start of the services, which sets `stood` at its end, to the exported model; `Died` when a service or a
    rank is no more."""
    storage = recipe.run.storage or str(folder.shards)
    metadata = shard_metadata(recipe, folder.root.name)
    with exporting(recipe, folder) as exporters, announced(recipe, folder, called_end) as begun:
        async with running(recipe, plan, folder.config, storage, metadata) as services:
            activity = watch(services)
            with run_time(sink, takes_input=True, has_stood=stood.is_set()):
                hosts = await start(services, recipe, plan, storage, folder.root)
                if not stood.is_set():
                    await services.learner.rehearse_export(folder.export)
                stood.set()
            if len(set(hosts.values())) > 1:
                sink.say("; ".join(f"{name} on {host}" for name, host in hosts.items()))
            with run_time(sink):
                patient = partial(retried_beside, recipe.faults.store_s)
                probes = await patient(folder.probes, partial(read_probes, folder.probes, own=True))
                choice = Choice(recipe, services.learner, probes, inputs.task.rates[0])
                resumed = await catch_up(services.learner, folder, sink, recipe, choice) if resume else Resumed()
                if resumed.version and recipe.run.max_policy_lag:
                    learned = await patient(folder.manifest, partial(learned_groups, folder, sink.say))
                    await services.rollout.resume(learned)
                asked = inputs.renderer, inputs.task, stop, choice, plan.engines_sleep
                loop = Pipeline(recipe, services, folder, sink, *asked)
                begun()
                async with observer_of(recipe, folder, services, sink, activity, exporters, called_end):
                    steps = await loop.run(resumed)
                    sink.stage("exporting the model")
                    await export(services.learner, folder, loop.texts[0], recipe, loop.checkpoints, steps)


async def export(
    learner: LearnerService,
    folder: RunDir,
    text: tuple[Ids, Ids],
    recipe: Recipe,
    checkpoints: Checkpoints,
    steps: int,
) -> None:
    """RUN/export of what was trained in so many steps; where it cannot be written, that is one of the `checkpoints`.
    Weights that the run chose are none of them, since a resume looks there for those of the last step: they are in
    RUN/chosen.

    Raises:
        Died, Late: a rank is no more, or does not answer.
        RuntimeError: names what is wrong, and how to export later; so does a note on a mistake of our own.
    """
    try:
        await learner.export(folder.export, text)
        await remove_beside(folder.chosen)  # of an end before, whose export failed
    except (RuntimeError, OSError, RayTaskError) as error:  # the last is whatever the learner's process raised
        if is_lost(error):  # the services start again, and learn from what stands
            raise
        cause = cause_of(error)
        if recipe.export.choose != "last":
            checkpoints = Checkpoints(folder.chosen, recipe.faults.store_s)
        kept = f"the model is in {checkpoints.folder}: `edge-opd export {folder.root}` writes it once that is mended"
        try:
            kept_in = checkpoints.folder
            await retried_beside(recipe.faults.store_s, kept_in, partial(kept_in.mkdir, exist_ok=True))
            await checkpoints.save(learner, steps, keep=0)
        except (RuntimeError, OSError, RayTaskError) as worse:
            kept = f"no checkpoint either: {cause_of(worse)}"
        if isinstance(cause, EXPECTED):
            raise RuntimeError(f"{cause}; {kept}") from error
        cause.add_note(kept)  # below the traceback, which a mistake of our own has
        raise


def shard_metadata(recipe: Recipe, run_id: str) -> dict[str, str]:
    """What a shard says of where it came from; step and weights digest are added as it is written."""
    rule = recipe.evidence.to_json()
    return {
        "run_id": run_id,
        "mask_rule": rule,
        "model_id": called(recipe.model.path),
        "code_version": importlib.metadata.version("edge-opd"),
        "machine": machine_name(),
    }
