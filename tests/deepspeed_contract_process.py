"""One rank of a raw DeepSpeed engine, for test_deepspeed_contract.py: what each of its quirks looks like without us.

python -m tests.deepspeed_contract_process FOLDER RANK NUM_RANKS PORT
"""

import errno
import os
import sys
import time
from pathlib import Path
from typing import Any

SIZE = 384  # squared, above ZeRO-3's persistence threshold


def engine(stage: int, dtype: str, **settings: Any) -> tuple[Any, Any]:
    import deepspeed
    import torch

    torch.manual_seed(0)
    module = torch.nn.Linear(SIZE, SIZE, bias=False, dtype=getattr(torch, dtype))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.1)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": dtype == "bfloat16"},
        "zero_optimization": {"stage": stage},
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    } | settings
    made, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    return made, optimizer


def backward(made: Any, factor: float) -> None:
    import torch

    dtype = next(made.module.parameters()).dtype
    made.backward(made(torch.ones(1, SIZE, dtype=dtype)).float().sum() * factor)


def steps_taken(optimizer: Any) -> list[float]:
    return [float(state["step"]) for state in optimizer.state.values()]


def first_step() -> dict[str, Any]:
    """Optimizer steps that each kind has taken when `initialize` returns."""
    kinds = [(stage, dtype) for stage in (0, 1, 2) for dtype in ("float32", "bfloat16")]
    return {f"{stage}-{dtype}": steps_taken(engine(stage, dtype)[1]) for stage, dtype in kinds}


def non_finite() -> dict[str, Any]:
    """(norm that is kept, whether weights moved or are not finite any more) after a step of an infinite gradient."""
    found = {}
    for stage, dtype in ((0, "float32"), (0, "bfloat16"), (1, "float32"), (1, "bfloat16"), (2, "bfloat16")):
        made, _ = engine(stage, dtype)
        before = next(made.module.parameters()).detach().clone()
        backward(made, float("inf"))
        made.step()
        after = next(made.module.parameters()).detach()
        kept = made.get_global_grad_norm()
        norm = None if kept is None else float(kept)
        found[f"{stage}-{dtype}"] = (norm, not after.equal(before), bool(after.isfinite().all()))
    return found


def kept_norm() -> dict[str, Any]:
    """The gradient norm that is kept after an ordinary step, where the exact one is SIZE."""
    found = {}
    for stage, dtype in ((0, "float32"), (0, "bfloat16"), (1, "float32"), (1, "bfloat16")):
        made, _ = engine(stage, dtype)
        backward(made, 1.0)
        made.step()
        kept = made.get_global_grad_norm()
        found[f"{stage}-{dtype}"] = None if kept is None else float(kept)
    return found


def accumulation() -> dict[str, Any]:
    """What `initialize` says of float32 sums of bfloat16 gradients, by stage."""
    found = {}
    for stage in (0, 1, 2):
        try:
            engine(stage, "bfloat16", data_types={"grad_accum_dtype": "fp32"})
            found[stage] = ""
        except (NotImplementedError, ValueError, AssertionError) as error:
            found[stage] = f"{type(error).__name__}: {error}"
    return found


def shapes() -> dict[str, Any]:
    (parameter,) = engine(3, "float32")[0].module.parameters()
    return {"shape": tuple(parameter.shape), "ds_shape": tuple(parameter.ds_shape)}


def shared_memory() -> dict[str, Any]:
    from learner.deepspeed_quirks import shared_buffer

    path = shared_buffer(int(os.environ["RANK"]))
    there = path.exists()
    return {"there": there, "bytes": path.stat().st_size if there else 0}


def latest() -> dict[str, Any]:
    """Whether `latest` is there before rank 1, which is slow, has written its file, and afterwards: by DeepSpeed, by
    us."""
    from learner.deepspeed_quirks import save_checkpoint

    made, _ = engine(1, "float32")
    rank, folder, found = int(os.environ["RANK"]), Path(sys.argv[1]), {}
    save, seen = made.checkpoint_engine.save, []

    def slow(*arguments: Any, **named: Any) -> Any:
        if rank == 1:
            end = time.monotonic() + (60 if name == "theirs" else 2)  # rank 0 may be slower than we think
            while not (place / "latest").exists() and time.monotonic() < end:
                time.sleep(0.1)
            seen.append((place / "latest").exists())
        return save(*arguments, **named)

    made.checkpoint_engine.save = slow
    for name in ("theirs", "ours"):
        place = folder / name
        if name == "theirs":
            made.save_checkpoint(str(place), tag="one", client_state={})
        else:
            save_checkpoint(made, str(place), "one", {})
        found[name] = (seen.copy(), (place / "latest").exists())
        seen.clear()
    return found


def guarded_load() -> dict[str, Any]:
    """By stage: whether a checkpoint of an engine of ours comes back whole from a disk that fails at first, and how
    torch was told to read it."""
    import torch

    from learner import deepspeed_quirks as quirks
    from learner.config import LearnerConfig

    found, told, load, save = {}, list[str](), torch.load, torch.save
    refusals = list[str]()

    def constant(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)

    def refuse(act: str) -> None:
        if act not in refusals:
            refusals.append(act)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def seen(*arguments: Any, **named: Any) -> Any:
        told.append(os.environ.get(quirks.TENSORS_ONLY, ""))
        refuse("load")
        return load(*arguments, **named)

    def saved(*arguments: Any, **named: Any) -> Any:
        refuse("save")
        return save(*arguments, **named)

    torch.load, torch.save = seen, saved
    for stage, dtype in ((0, "bfloat16"), (1, "float32"), (2, "bfloat16"), (3, "float32")):
        config, place = LearnerConfig(zero_stage=stage, dtype=dtype), f"{sys.argv[1]}/guarded-{stage}"
        module = torch.nn.Linear(SIZE, SIZE, bias=False, dtype=getattr(torch, dtype))
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
        made = quirks.initialize(module, optimizer, constant, config)
        quirks.be_patient(made, 5.0)
        backward(made, 1.0)
        made.step()
        before = quirks.own_part(next(made.module.parameters())).detach().clone()
        quirks.save_checkpoint(made, place, "one", {"step": 1})
        backward(made, 1.0)
        made.step()
        _, state = made.load_checkpoint(place, tag="one")
        same = bool(quirks.own_part(next(made.module.parameters())).equal(before))
        found[stage] = (same, state["step"], {*told}, refusals.copy())
        told.clear(), refusals.clear()
    torch.load, torch.save = load, save
    return found


def bfloat16_masters() -> dict[int, bool]:
    """Whether bfloat16 masters have memory of their own beside the weights."""
    settings = {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    found = {}
    for stage in (1, 2):
        made, _ = engine(stage, "bfloat16", bf16={"enabled": True, **settings}, data_types={"grad_accum_dtype": "bf16"})
        (master,), (weights,) = made.optimizer.single_partition_of_fp32_groups, made.optimizer.bit16_groups_flat
        assert master.dtype == weights.dtype and master.equal(weights)
        found[stage] = master.untyped_storage().data_ptr() != weights.untyped_storage().data_ptr()
    return found


def timed() -> dict[str, int]:
    """How often a forward and backward pass of the fourth step wait for the whole device: by default, and by us."""
    from deepspeed.accelerator import get_accelerator

    from learner.config import LearnerConfig
    from learner.deepspeed_quirks import zero_settings

    device, found = get_accelerator(), {}
    for name, settings in (("theirs", {}), ("ours", {"timers": zero_settings(LearnerConfig())["timers"]})):
        made, _ = engine(1, "float32", **settings)
        for _ in range(3):
            backward(made, 1.0)
            made.step()
        waits: list[object] = []
        device.synchronize = lambda *_, waits=waits: waits.append(1)
        backward(made, 1.0)
        del device.synchronize
        found[name] = len(waits)
    return found


ONE_RANK = (bfloat16_masters, timed, first_step, non_finite, kept_norm, accumulation, guarded_load)
TWO_RANKS = (shared_memory, shapes, latest)


def main(folder: str, rank: str, num_ranks: str, port: str) -> None:
    os.environ.update(
        RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=num_ranks, LOCAL_SIZE=num_ranks,
        MASTER_ADDR="127.0.0.1", MASTER_PORT=port, DS_ACCELERATOR="cpu",
    )  # fmt: skip
    import deepspeed
    import torch

    from learner.deepspeed_quirks import build_collectives, shared_buffer

    build_collectives(400)
    deepspeed.init_distributed(dist_backend="gloo")
    torch.distributed.barrier()
    results = {act.__name__: act() for act in (ONE_RANK if num_ranks == "1" else TWO_RANKS)}
    torch.save(results, Path(folder) / f"rank-{rank}.pt")
    torch.distributed.barrier()
    shared_buffer(int(rank)).unlink(missing_ok=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
