"""Shards are the write-ahead log: weights are the newest checkpoint and what was learned from the shards after it.

A shard that stands costs no rollout: after a checkpoint was loaded, the learner takes the same steps from the same
shards, to the same weights.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa

from cluster.config import Recipe
from cluster.fleet.services import LearnerService
from cluster.observe.sinks import MetricsSink
from cluster.run.checkpoints import Checkpoints
from cluster.run.choice import Choice
from cluster.run.record import StepRecord, append_step, read_steps, step_record
from cluster.run.rundir import RunDir
from evidence.advantage import reward_sums
from evidence.manifest import Manifest
from evidence.patience import retried_beside
from evidence.records import ShardInfo
from evidence.shards import find_shard, group_names, read_shard
from evidence.sidecar import write_student
from learner.report import LearnedStep
from rollout.stages import StageTime, StepTime
from rollout.worker import StepRollouts


@dataclass(frozen=True)
class Resumed:
    """What the learner holds. loaded: of it, the version of the checkpoint, before what was learned again. bound: what
    the student's engines were to differ by from the learner, nats a token."""

    version: int = 0
    loaded: int = 0
    bound: float | None = None


def outlook(folder: RunDir) -> str:
    """What a resume will find, as far as a look at the folder shows, before anything starts."""
    checkpoint = next((one.step for one in Checkpoints(folder.checkpoints).complete() if not one.fault), 0)
    written = {info.step for info in Manifest(folder.manifest).written().values()}
    end = next(step for step in itertools.count(checkpoint) if step not in written)
    first = f"the checkpoint at step {checkpoint}" if checkpoint else "the initial weights, without a checkpoint,"
    shards = f" and the shards of steps {checkpoint + 1} to {end}" if end > checkpoint else " and no shard after it"
    return f"resume: from {first}{shards}"


async def catch_up(
    learner: LearnerService, folder: RunDir, sink: MetricsSink, recipe: Recipe, choice: Choice
) -> Resumed:
    """Brings the learner to the newest version that the folder can give. Shards beyond it are superseded.

    Raises:
        OSError: the store of the shards does not answer.
    """
    sink.stage("resuming from what stands")
    patient, manifest = partial(retried_beside, recipe.faults.store_s), Manifest(folder.manifest)
    recorded = await patient(folder.metrics, partial(read_steps, folder.metrics))
    version = loaded = await Checkpoints(folder.checkpoints, recipe.faults.store_s).load(learner, sink.say)
    await choice.resume(version)
    trained = await patient(folder.manifest, manifest.trained)
    for info in await standing(folder, version, recipe, sink.say):
        sink.stage(f"step {info.step + 1}: learning again from its shard")
        begun = time.perf_counter()
        shard = await patient(info.uri, partial(find_shard, folder.root, info))
        learned = await learner.learn(replace(info, uri=shard))
        if info.uri not in trained:
            await patient(folder.student, partial(write_student, learned.logprobs, str(folder.student), info.step))
            await patient(folder.manifest, partial(manifest.ensure_trained, info.uri, info.step))
        if info.step not in recorded:
            wall_s = time.perf_counter() - begun
            record = await patient(info.uri, partial(_record, info, learned, wall_s, folder, recipe))
            await patient(folder.metrics, partial(append_step, folder.metrics, record))
            sink.show_step(record)
        version = info.step + 1
        await choice.see_again(version)
    if version:
        sink.say(f"resumed at step {version}")
    await patient(folder.manifest, partial(supersede_after, folder, version))
    bounds = [record.canary_bound for record in recorded.values() if record.canary_bound]
    return Resumed(version, loaded, next(reversed(bounds), None))


def require_same_weights(resumed: Resumed, digest: str, folder: RunDir, say: Callable[[str], None]) -> None:
    """What was pushed first is what was pushed when the run was there: where a checkpoint gave it, to the last bit;
    where it was learned again, the sums of the learner may come in another order, which is said.

    Raises:
        RuntimeError: the weights of a checkpoint are others.
    """
    record = read_steps(folder.metrics).get(resumed.version - 1)
    if record is None or record.weights_digest in (None, digest):
        return
    what = f"weights at step {resumed.version}: found the digest {digest}, expected {record.weights_digest}"
    if resumed.version == resumed.loaded:
        raise RuntimeError(f"{what} as in {folder.metrics}: the checkpoint holds other weights than the run had")
    say(f"{what}: learned again from their shards, they differ in rounding")


async def standing(folder: RunDir, version: int, recipe: Recipe, say: Callable[[str], None]) -> list[ShardInfo]:
    """The shards to learn from, from step `version` on, without a gap. One that is damaged or gone ends them, and is
    named."""
    patient = partial(retried_beside, recipe.faults.store_s)
    written = {info.step: info for info in (await patient(folder.manifest, Manifest(folder.manifest).written)).values()}
    found: list[ShardInfo] = []
    while (info := written.get(version + len(found))) is not None:
        try:
            await patient(info.uri, partial(_whole, folder, info), (FileNotFoundError,))
        except (ValueError, FileNotFoundError) as error:
            say(f"step {info.step + 1} is sampled again: {error}")
            break
        found.append(info)
    if recipe.teacher.kind == "snapshot":  # the weights that it took are only there where it takes them
        end = version + len(found)
        return found[: max(end - end % recipe.teacher.snapshot_every - version, 0)]
    return found


def _whole(folder: RunDir, info: ShardInfo) -> pa.Table:
    return read_shard(find_shard(folder.root, info), expected=info)


def supersede_after(folder: RunDir, step: int) -> None:
    """The shards of steps that are sampled again."""
    manifest = Manifest(folder.manifest)
    for uri, info in manifest.written().items():
        if info.step >= step:
            manifest.append_superseded(uri)


def learned_groups(folder: RunDir, say: Callable[[str], None] = print) -> list[str]:
    """Names of the groups in the shards that stand, as the manifest says. Where an older version wrote it, which did
    not say, the shards are read. One that is damaged or gone is named, and then none is returned: from here on each
    step learns from its own groups.
    """
    found: list[str] = []
    for info in Manifest(folder.manifest).written().values():
        try:
            found += info.groups or group_names(_whole(folder, info))
        except (ValueError, FileNotFoundError) as error:
            say(f"groups that a step took ahead are sampled again, and those it left are not: {error}")
            return []
    return found


def _record(info: ShardInfo, learned: LearnedStep, wall_s: float, folder: RunDir, recipe: Recipe) -> StepRecord:
    """Of a step whose line the end of the run before came before: what its shard and the learner say."""
    table = read_shard(find_shard(folder.root, info))
    rewards = reward_sums(table["reward"].to_pylist(), table["group_id"].to_pylist())
    oldest, newest = min(table["policy_version_min"].to_pylist()), max(table["policy_version_max"].to_pylist())
    produced = StepRollouts(info.step, info, 0, 0, oldest, newest, {}, 0.0, rewards)
    took = StepTime(wall_s, {"learn": StageTime(wall_s, learned.row_tokens)})
    record = step_record(info.step, produced, learned, took, None, recipe.rollout.sampler)
    unknown = dict.fromkeys(("refused", "dropped", "truncated", "nonfinite_rollouts"))  # by anybody any more
    return replace(record, **unknown)  # type: ignore[arg-type]
