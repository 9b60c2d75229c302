"""One rank of a real DeepSpeed engine, for test_zero.py: runs the scenarios of a job file, one after another.

    python -m tests.zero_process JOB RANK NUM_RANKS PORT

Each scenario builds an engine of its own and acts once; rank r's results go to JOB's folder as rank-r.pt.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evidence.records import TrainRow

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from learner.ema import Ema
    from learner.engine import ZeroEngine
    from learner.train import Trainer

Tensors = dict[str, "Tensor"]


@dataclass(frozen=True)
class Scenario:
    """What one engine is told (fields of LearnerConfig) and given, and the name of an act in ACTS."""

    rows: list[TrainRow]
    learner: dict[str, Any]
    act: str = "step"
    extra: dict[str, Any] = field(default_factory=dict)
    frozen: dict[str, str] = field(default_factory=dict)  # "teacher" and "base" to a model's folder
    model: str = ""  # another folder than the job's
    bucket: int = 0  # gradients that ZeRO 1 and 2 reduce at one time, in the place of ours


@dataclass(frozen=True)
class Job:
    model: str
    scenarios: dict[str, Scenario]


def named_tensors(engine: "ZeroEngine") -> "Iterator[tuple[str, Tensor]]":
    return engine.full_tensors([[name] for name, _, _ in engine.parameter_shapes()])


def full_parameters(engine: "ZeroEngine") -> Tensors:
    return copied(named_tensors(engine))


def copied(named: "Iterable[tuple[str, Tensor]]") -> Tensors:
    return {name: tensor.to("cpu", copy=True) for name, tensor in named}


def trained(engine: "ZeroEngine") -> "list[tuple[str, Parameter]]":
    return [(name, param) for name, param in engine.engine.module.causal_lm.named_parameters() if param.requires_grad]


def record_gradients(engine: "ZeroEngine") -> list[Tensors]:
    """A list that gets the full float32 gradients just before each of DeepSpeed's optimizer steps."""
    from deepspeed.utils import safe_get_full_grad

    seen: list[Tensors] = []
    deepspeed_step = engine.engine.step

    def step(*args: Any, **kwargs: Any) -> Any:
        named = trained(engine)
        seen.append({name: safe_get_full_grad(param).float().cpu().clone() for name, param in named})
        return deepspeed_step(*args, **kwargs)

    engine.engine.step = step
    return seen


def step(engine: "ZeroEngine", trainer: "Trainer", scenario: Scenario) -> dict[str, Any]:
    """One training step: gradients of every update, parameters before and after, the report."""
    shapes = [(name, str(dtype), shape) for name, dtype, shape in engine.parameter_shapes()]
    before, gradients = full_parameters(engine), record_gradients(engine)
    report = trainer.step(scenario.rows)
    after = full_parameters(engine)
    return {"shapes": shapes, "before": before, "gradients": gradients, "report": report, "after": after}


def in_buckets(engine: "ZeroEngine", trainer: "Trainer", scenario: Scenario) -> dict[str, Any]:
    """`step`, and how often DeepSpeed reduced gradients."""
    zero, counted = engine.engine.optimizer, []
    reduce = zero.reduce_ipg_grads
    zero.reduce_ipg_grads = lambda *args, **kwargs: (counted.append(1), reduce(*args, **kwargs))[1]
    return step(engine, trainer, scenario) | {"reduced": len(counted)}


def two_steps(engine: "ZeroEngine", trainer: "Trainer", scenario: Scenario) -> dict[str, Any]:
    """Two training steps on the same rows: both reports, and the float32 master weights around them."""
    from deepspeed.utils import safe_get_full_fp32_param

    def weights() -> Tensors:
        return {name: safe_get_full_fp32_param(param).cpu().clone() for name, param in trained(engine)}

    seen, reports = [weights()], []
    for _ in range(2):
        reports.append(trainer.step(scenario.rows))
        seen.append(weights())
    return {"reports": reports, "weights": seen}


def adapter_steps(engine: "ZeroEngine", trainer: "Trainer", scenario: Scenario) -> dict[str, Any]:
    """Two training steps of a float32 adapter: its parameters around them, and those of everything else that moved."""
    names, seen = set(engine.trained_names()), [full_parameters(engine)]
    for _ in range(2):
        trainer.step(scenario.rows)
        seen.append(full_parameters(engine))
    others = seen[0].keys() - names
    moved = [name for name in others if not seen[0][name].equal(seen[-1][name])]
    return {"weights": [{name: one[name] for name in sorted(names)} for one in seen], "moved": moved}


def sixteen_bits(engine: "ZeroEngine", trainer: "Trainer", scenario: Scenario) -> dict[str, Any]:
    """Two training steps: the float32 masters around them, joined of this rank's parts; the gradients; and the bytes
    beyond the weights that stand when the first gradient is whole, and between two steps."""
    import torch

    from learner.adamw_16bit import joined

    zero, counted, after = engine.engine.optimizer, [], []
    assert all(
        storages([weights]) <= storages(zero.bit16_groups_flat) for weights in zero.single_partition_of_fp32_groups
    )
    before, others = full_parameters(engine), set(standing(engine))
    gradients, deepspeed_step = record_gradients(engine), engine.engine.step

    def count() -> None:
        recorded = storages(tensor for one in [*gradients, *after] for tensor in one.values())
        counted.append(sum(size for at, size in standing(engine).items() if at not in others | recorded))

    def step() -> None:
        count()
        deepspeed_step()

    def masters() -> Tensors:
        parts = []
        for weight in zero.single_partition_of_fp32_groups:
            part = joined(weight.detach(), zero.optimizer.state[weight]["low"])
            ranks = [torch.empty_like(part) for _ in range(engine.num_ranks)]
            torch.distributed.all_gather(ranks, part)
            parts.append(torch.cat(ranks))
        (flat,), found, offset = parts, {}, 0
        for name, parameter in trained(engine):
            found[name] = flat[offset : offset + parameter.numel()].view(parameter.shape)
            offset += parameter.numel()
        return found

    engine.engine.step, reports = step, []
    for _ in range(2):
        reports.append(trainer.step(scenario.rows))
        after.append(masters())
        count()
    weights = full_parameters(engine)
    held = {"bytes": counted, "trained": sum(parameter.numel() for _, parameter in trained(engine))}
    return {"before": before, "gradients": gradients, "masters": after, "weights": weights, "reports": reports} | held


def storages(tensors: "Iterable[Tensor]") -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def standing(engine: "ZeroEngine") -> dict[int, int]:
    """Bytes of each storage of numbers that this process holds, by its place."""
    import gc

    import torch

    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    tensors += [parameter.grad for _, parameter in trained(engine) if parameter.grad is not None]
    floating = [one.untyped_storage() for one in tensors if one.is_floating_point()]
    return {storage.data_ptr(): storage.nbytes() for storage in floating}


def score(engine: "ZeroEngine", trainer: "Trainer", scenario: Scenario) -> dict[str, Any]:
    """The learner's own log-probs of each row."""
    return {"logprobs": [trainer.score(row.prompt_ids, row.response_ids) for row in scenario.rows]}


def live_teacher(engine: "ZeroEngine", trainer: "Trainer", scenario: Scenario) -> dict[str, Any]:
    """Trains once, scores both prompts of each row with the trained student, and steps on those columns."""
    import numpy as np

    trainer.step(scenario.rows)
    rows = []
    for row, context_prompt in zip(scenario.rows, scenario.extra["context_prompts"], strict=True):
        with_r, without = (
            np.array(trainer.score(prompt, row.response_ids), np.float32) for prompt in (context_prompt, row.prompt_ids)
        )
        ones = np.ones(len(with_r), np.float32)
        rows.append(
            TrainRow(
                row.rollout_id,
                row.guided,
                row.prompt_ids,
                context_prompt,
                row.response_ids,
                with_r,
                without,
                with_r - without,
                ones,
            )
        )
    return {"rows": rows, "report": trainer.step(rows)}


def checkpoint(engine: "ZeroEngine", trainer: "Trainer", scenario: Scenario) -> dict[str, Any]:
    """Saves after one step, goes on for one more, loads, and repeats that one: optimizer state must come back too."""
    folder = scenario.extra["folder"]
    trainer.step(scenario.rows)
    saved = full_parameters(engine)
    sealed = engine.save(folder, {"step": 7})
    trainer.step(scenario.rows)
    onwards = full_parameters(engine)
    client_state = engine.load(folder, 7)
    loaded = full_parameters(engine)
    trainer.step(scenario.rows)
    return {
        "saved": saved,
        "sealed": sealed,
        "about": engine.checkpoint_bytes(),
        "onwards": onwards,
        "client_state": client_state,
        "loaded": loaded,
        "repeated": full_parameters(engine),
    }


def resume(engine: "ZeroEngine", trainer: "Trainer", scenario: Scenario) -> dict[str, Any]:
    """Four steps with an average, a checkpoint after the first; then a fresh engine repeats the other three."""
    from learner.ema import Ema
    from learner.engine import ZeroEngine
    from learner.train import Trainer

    folder, rate = scenario.extra["folder"], scenario.extra["rate"]
    before, gradients = full_parameters(engine), record_gradients(engine)
    ema, kept = Ema(rate, named_tensors(engine), keep=engine.rank == 0), engine.keeper()
    steps = [averaged_step(engine, trainer, scenario, ema)]
    kept.add()
    engine.save(folder, {"step": 1}, ema, kept)
    for _ in range(3):
        steps.append(averaged_step(engine, trainer, scenario, ema))
        kept.add()
    kept.put(4)
    meant = full_parameters(engine)

    fresh = ZeroEngine(scenario.extra["model"], engine.config)
    restored = Ema(rate, named_tensors(fresh), keep=fresh.rank == 0)
    kept = fresh.keeper()
    fresh.load(folder, 1, restored, kept)
    at_once = {"average": copied(restored), "lr": fresh.lr}
    again = []
    for _ in range(3):
        again.append(averaged_step(fresh, Trainer(fresh, fresh.config), scenario, restored))
        kept.add()
    kept.put(4)
    means = {"mean": meant, "mean_again": full_parameters(fresh)}
    fresh.engine.destroy()
    return {"before": before, "gradients": gradients, "steps": steps, "restored": at_once, "again": again} | means


def keep(engine: "ZeroEngine", trainer: "Trainer", scenario: Scenario) -> dict[str, Any]:
    """Three steps; the mean of the last two, and then the second's weights, are put in the place of the third's, scored
    and saved."""
    mean, best, after = engine.keeper(), engine.keeper(), []
    for version in (1, 2, 3):
        trainer.step(scenario.rows)
        after.append(full_parameters(engine))
        if version > 1:
            mean.add()
        if version < 3:
            best.take()
    try:
        mean.put(3)
    except RuntimeError as error:
        refused = str(error)
    mean.put(2)
    found = {"afters": after, "refused": refused, "mean": full_parameters(engine)} | score(engine, trainer, scenario)
    engine.save(scenario.extra["folder"], {"step": 3})
    best.put(1)
    return found | {"best": full_parameters(engine)}


def averaged_step(engine: "ZeroEngine", trainer: "Trainer", scenario: Scenario, ema: "Ema") -> dict[str, Any]:
    metrics = trainer.step(scenario.rows).metrics
    ema.update(named_tensors(engine))
    return {"lr": metrics["lr"].value, "after": full_parameters(engine), "average": copied(ema)}


def load_nothing(engine: "ZeroEngine", trainer: "Trainer", scenario: Scenario) -> dict[str, Any]:
    try:
        engine.load(scenario.extra["folder"], 1)
    except ValueError as error:
        return {"error": str(error)}
    return {"error": ""}


def overflow(engine: "ZeroEngine", trainer: "Trainer", scenario: Scenario) -> dict[str, Any]:
    import torch

    before, told = full_parameters(engine), ""
    try:
        trainer.step(scenario.rows)
    except RuntimeError as error:
        told = str(error)
    trainer.skips = True
    skipped = trainer.step(scenario.rows)
    after = full_parameters(engine)
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    return {"error": told, "skipped": skipped.nonfinite_updates, "logprobs": len(skipped.logprobs), "moved": moved}


def export(engine: "ZeroEngine", trainer: "Trainer", scenario: Scenario) -> dict[str, Any]:
    """Trains once, exports parameter by parameter, and scores the rows."""
    trainer.step(scenario.rows)
    groups = [[name] for name, _, _ in engine.parameter_shapes()]
    engine.rehearse_export(scenario.extra["folder"])
    engine.export(scenario.extra["folder"], groups)
    engine.save(scenario.extra["folder"] + "-checkpoints", {"step": 1})
    return {"after": full_parameters(engine)} | score(engine, trainer, scenario)


def gather(engine: "ZeroEngine", trainer: "Trainer", scenario: Scenario) -> dict[str, Any]:
    """Bytes of full parameters that this rank holds beside its shards while the tensors of a push pass by: before, the
    most at any of them, and after; and the bytes of each group that is gathered together."""
    from cluster.weights.source import export_groups

    groups, parameters = export_groups(engine), dict(engine.engine.module.causal_lm.named_parameters())

    def held() -> int:
        return sum(parameter.data.nbytes for parameter in parameters.values())  # a shard's parameter has no data

    before, most, sizes = held(), 0, dict.fromkeys(range(len(groups)), 0)
    place = {name: index for index, group in enumerate(groups) for name in group}
    for name, tensor in engine.full_tensors(groups):
        most, sizes[place[name]] = max(most, held()), sizes[place[name]] + tensor.nbytes
    return {"held": (before, most, held()), "groups": list(sizes.values())}


ACTS: dict[str, Callable[["ZeroEngine", "Trainer", Scenario], dict[str, Any]]] = {
    act.__name__: act
    for act in (
        step,
        in_buckets,
        two_steps,
        adapter_steps,
        sixteen_bits,
        score,
        live_teacher,
        checkpoint,
        resume,
        keep,
        load_nothing,
        overflow,
        export,
        gather,
    )
}


def run(model: str, scenario: Scenario, num_ranks: int) -> dict[str, Any]:
    from learner import deepspeed_quirks
    from learner.config import LearnerConfig
    from learner.engine import ZeroEngine
    from learner.frozen import FrozenModel
    from learner.train import Trainer

    config = LearnerConfig(num_ranks=num_ranks, **scenario.learner)
    ours = deepspeed_quirks.CPU_BUCKET
    deepspeed_quirks.CPU_BUCKET = scenario.bucket or ours
    engine = ZeroEngine(scenario.model or model, config)
    deepspeed_quirks.CPU_BUCKET = ours
    models = {role: FrozenModel(path, config, engine.device) for role, path in scenario.frozen.items()}
    result = ACTS[scenario.act](engine, Trainer(engine, config, **models), scenario)
    result["frozen"] = [sum(p.numel() for p in model._trunk.parameters()) for model in models.values()]
    engine.engine.destroy()
    return result


def main(job_file: str, rank: str, num_ranks: str, port: str) -> None:
    os.environ.update(
        RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=num_ranks, LOCAL_SIZE=num_ranks,
        MASTER_ADDR="127.0.0.1", MASTER_PORT=port, DS_ACCELERATOR="cpu",
    )  # fmt: skip
    import torch

    job: Job = torch.load(job_file, weights_only=False)
    results = {}
    for name, scenario in job.scenarios.items():
        print(f"scenario {name}", flush=True)
        results[name] = run(job.model, scenario, int(num_ranks))
    torch.save(results, Path(job_file).parent / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
