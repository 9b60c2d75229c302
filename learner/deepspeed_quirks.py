"""The only home of deepspeed: what it does that nobody would guess, and what is done about it here.

Each was seen in DeepSpeed 0.19.8; tests/engine/test_deepspeed_contract.py fails by its name when an upgrade changes it.

- ZeRO 0 in bfloat16 takes a step without gradients as it starts, so that AdamW's first real step would be its second:
  `initialize` forgets it.
- A step whose gradient norm is not finite is skipped in silence, or taken (ZeRO 0 in float32), where no norm is kept
  either: `norm_before_step`, `take_step`.
- ZeRO 0 in bfloat16 cannot add gradients up in float32: `zero_settings`.
- With bfloat16 masters ZeRO 1 and 2 keep the weights twice: `share_masters`.
- Under ZeRO-3 a parameter's shape is [0], and the full one is `ds_shape`: `full_shape`.
- Under ZeRO-3 a checkpoint's weights are the float32 masters, and small parameters stay gathered after a step:
  `put_own_part` replaces the masters too, and lets go of what is gathered.
- CPU collectives leave 69 MB of shared memory behind for each rank: `unname_shared_buffers`.
- A rank that fails to write a file leaves the others where they would meet it, and what is asked for next meets them
  there: each file is tried again where it is written, `be_patient`.
- It reads checkpoints as pickles that may make anything, so that a file in one can run code: `guarded`.
- They are compiled under torch's lock, a file that outlives its process, so that every start after a killed one would
  wait for ever: `build_collectives`.
- It times its throughput, for which the whole device is waited for before each forward pass: `zero_settings`.
- `latest` names a checkpoint once rank 0's files are there, and a kill then leaves one that cannot be loaded:
  `save_checkpoint` writes none. The driver does (`cluster.run.checkpoints`).
"""

import hashlib
import math
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import deepspeed
import torch
from deepspeed.comm.torch import build_shm_op
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.runtime.zero.partition_parameters import GatheredParameters, ZeroParamStatus
from deepspeed.utils import safe_set_local_fp32_param
from deepspeed.utils.tensor_fragment import fragment_address
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.serialization import safe_globals
from torch.utils.cpp_extension import get_default_build_root

from learner.config import LearnerConfig
from learner.disk import PatientFiles, written
from learner.owned import require_own

More = ParamSpec("More")
Read = TypeVar("Read")
Schedule = Callable[[Optimizer], LambdaLR]


CPU_BUCKET = 1 << 23  # gradients that ZeRO 1 and 2 copy, and widen, at one time; DeepSpeed's own 5e8 are all there are


def zero_settings(config: LearnerConfig) -> dict[str, Any]:
    """The DeepSpeed configuration. Batch sizes are formal: `step` owns accumulation and `learner.batches` the scale.

    Gradients of micro-batches and ranks add up in float32, whatever the dtype; for stage 0 DeepSpeed has no such mix.
    With 16 bits an optimizer of our own gets the weights themselves, and only ranks add up in float32.
    """
    own = config.optimizer == "adamw_16bit"
    small = config.zero_stage in (1, 2) and not torch.cuda.is_available()
    bucket = {"reduce_bucket_size": CPU_BUCKET} if small else {}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.grad_clip,
        "bf16": {
            "enabled": config.dtype == "bfloat16",
            "immediate_grad_update": True,
            "bf16_master_weights_and_grads": own,
            "bf16_optimizer_states": own,
        },
        "data_types": {"grad_accum_dtype": "bf16" if own else "fp32" if config.zero_stage else None},
        "communication_data_type": "fp32" if config.zero_stage else None,
        "zero_optimization": {"stage": config.zero_stage, "reduce_scatter": config.zero_stage > 0} | bucket,
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": own,
        "steps_per_print": 10**9,
        "timers": {"throughput": {"enabled": False}},
    }


def join(start_deadline_s: float) -> None:
    """Joins the ranks that the environment names; on CPUs their collectives are compiled first, if need be."""
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        build_collectives(start_deadline_s / 2)  # so that a start which waits there says so
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo")
    unname_shared_buffers()


def build_collectives(deadline_s: float) -> None:
    """Compiles DeepSpeed's CPU collectives where that has not been done (20 s), one process at a time, and loads them.
    `make setup` has done it. Each environment has its own: ninja compiles again where headers have another path.

    The lock that torch builds under is a file which outlives its process: after a start that was killed, every later
    one would wait for it. The lock here goes with its process, so that under it a file of torch's is a leftover.

    Raises:
        TimeoutError: another process has been compiling for `deadline_s` seconds.
    """
    environment = hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]
    default = os.path.join(get_default_build_root(), "edge-opd", environment)
    folder = Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", default))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "build.lock", timeout=deadline_s):
            for leftover in folder.glob("deepspeed_*/lock"):
                leftover.unlink()
            build_shm_op()
    except Timeout:
        raise TimeoutError(
            f"{folder}: another process has been compiling DeepSpeed's collectives there for {deadline_s:g} s"
        ) from None


def shared_buffer(rank: int) -> Path:
    """The shared memory of a rank's CPU collectives, 69 MB."""
    environment = os.environ
    place = f"{os.getuid()}_{environment['MASTER_ADDR']}_{environment['MASTER_PORT']}_{rank}"
    return Path(f"/dev/shm/deepspeed_allreduce_buffer_{place}")


def unname_shared_buffers() -> None:
    """Nothing ever unlinks them. Once every rank has opened one, its name has no use, and without one it goes with the
    processes."""
    torch.distributed.barrier()
    shared_buffer(int(os.environ["RANK"])).unlink(missing_ok=True)


# What the checkpoint of an optimizer holds beside tensors and plain values. None of it does anything as it is made.
HELD = [LossScaler, ZeroStageEnum, fragment_address]
TENSORS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # which torch obeys, whatever its caller asks for


def guarded(read: Callable[Concatenate[Any, More], Read]) -> Callable[Concatenate[Any, More], Read]:
    """`read`, whose first argument is the folder of a checkpoint, or of several: nobody else may write to it, and what
    it gives are tensors, plain values and `HELD`.

    Raises:
        ValueError: names the file that others may write to, or what else was found, which was not made.
    """

    @wraps(read)
    def reading(folder: Any, /, *more: More.args, **named: More.kwargs) -> Read:
        require_own(Path(folder))
        before = os.environ.get(TENSORS_ONLY, "0")
        os.environ[TENSORS_ONLY] = "1"
        try:
            with safe_globals(HELD):
                return read(folder, *more, **named)
        except pickle.UnpicklingError as error:
            what = next((line for line in str(error).splitlines() if "GLOBAL" in line), "another pickle").strip()
            raise ValueError(f"{folder}: found {what[:120]!r}, expected tensors and plain values") from None
        finally:
            os.environ[TENSORS_ONLY] = before

    return reading


def initialize(module: nn.Module, optimizer: Optimizer, schedule: Schedule, config: LearnerConfig) -> Any:
    """DeepSpeed's engine over a module that learns."""
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=optimizer, config=zero_settings(config), lr_scheduler=schedule
    )
    if config.zero_stage == 0 and config.dtype == "bfloat16":
        optimizer.state.clear()
        engine.optimizer.refresh_fp32_params()
    if config.optimizer == "adamw_16bit":
        share_masters(engine.optimizer)
    engine.load_checkpoint = guarded(engine.load_checkpoint)
    return engine


def share_masters(zero: Any) -> None:
    """Makes the masters of this rank, which have the weights' type, the weights themselves."""
    rank, unpadded = torch.distributed.get_rank(), zero._get_groups_without_padding
    for weights, master in zip(
        zero.parallel_partitioned_bit16_groups, zero.single_partition_of_fp32_groups, strict=True
    ):
        master.data = weights[rank]
    zero._link_all_hp_params()  # what it linked when it was made holds the others
    # In a checkpoint a part of the weights would bring all of them.
    zero._get_groups_without_padding = lambda groups: [part.clone() for part in unpadded(groups)]


def around_reduction(engine: Any, before: Callable[[], None], after: Callable[[], None]) -> None:
    """Both are called around what DeepSpeed does over the ranks at the end of a backward pass. ZeRO 1 to 3 reduce full
    buckets before, and ZeRO-3 gathers weights within the passes."""
    reduce = engine.allreduce_gradients

    @wraps(reduce)
    def reducing(*arguments: Any, **named: Any) -> None:
        before()
        reduce(*arguments, **named)
        after()

    engine.allreduce_gradients = reducing


def norm_before_step(parameters: Sequence[nn.Parameter], config: LearnerConfig) -> Tensor | None:
    """The gradient's global norm where DeepSpeed keeps none: at ZeRO 0 in float32."""
    if config.zero_stage > 0 or config.dtype != "float32":
        return None
    return nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def take_step(engine: Any, before: Tensor | None, skips: bool) -> float:
    """The engine's optimizer step. A gradient that is not finite moves no weight: DeepSpeed skips such a step in
    silence, or, where it keeps no norm, takes it.

    Returns:
        the gradient's global norm before clipping.

    Raises:
        RuntimeError: it is not finite, on every rank, unless such a step `skips`.
    """
    if before is not None and not math.isfinite(before):
        engine.zero_grad()
    else:
        engine.step()
    found = float(engine.get_global_grad_norm() if before is None else before)
    if not math.isfinite(found) and not skips:
        raise RuntimeError(f"gradient norm: found {found}, expected a finite one: a loss or a gradient overflowed")
    return found


def full_shape(tensor: Tensor) -> tuple[int, ...]:
    """Of a parameter that may be sharded."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def gathered(tensors: Sequence[Tensor], config: LearnerConfig) -> AbstractContextManager[Any]:
    """Within it the parameters have their full shapes: under ZeRO-3 a collective."""
    sharded_ones = [tensor for tensor in tensors if hasattr(tensor, "ds_shape")]
    return GatheredParameters(sharded_ones, enabled=config.zero_stage == 3)


def own_part(parameter: nn.Parameter) -> Tensor:
    """What this rank holds of a parameter: under ZeRO-3 its shard, flat."""
    part: Tensor = getattr(parameter, "ds_tensor", parameter.data)
    return part


def put_own_part(parameter: nn.Parameter, values: Tensor) -> None:
    """Replaces it; every rank does so with its own. No gradient is to be pending."""
    own_part(parameter).data.copy_(values)
    if hasattr(parameter, "ds_id"):
        safe_set_local_fp32_param(parameter, values)
        if parameter.ds_status == ZeroParamStatus.AVAILABLE:
            parameter.partition()


def sharded(module: nn.Module, config: LearnerConfig, device: torch.device) -> nn.Module:
    """A frozen module for inference on `device`; under ZeRO-3 its parameters are sharded over the ranks."""
    module.requires_grad_(False).eval()
    if config.zero_stage < 3:
        return module.to(device)
    engine, *_ = deepspeed.initialize(model=module, config=zero_settings(config))
    return engine


def be_patient(engine: Any, seconds: float) -> None:
    """What the engine writes of a checkpoint, and reads, is tried again for `seconds` where the disk refuses."""
    engine.checkpoint_engine = PatientFiles(engine.checkpoint_engine, seconds)
    copy = engine._copy_recovery_script
    engine._copy_recovery_script = lambda place: written(seconds, place, partial(copy, place))


def save_checkpoint(engine: Any, folder: str, tag: str, client_state: dict[str, Any]) -> None:
    """Every rank's files; every rank calls it. Nothing is the newest checkpoint by that alone."""
    engine.save_checkpoint(folder, tag=tag, client_state=client_state, save_latest=False)
    torch.distributed.barrier()


@guarded
def checkpoint_state(folder: Path) -> dict[str, Tensor]:
    """(name, full tensor) of a checkpoint of any stage and number of ranks, without a process group: the module's own
    tensors, which ranks share below ZeRO-3, and there the float32 masters.

    folder: of the one checkpoint.
    """
    shared = folder / "mp_rank_00_model_states.pt"
    if shared.is_file():  # zero_to_fp32 reads no checkpoint of ZeRO 0, and none of ZeRO 1 in bfloat16
        return dict(torch.load(shared, map_location="cpu", weights_only=False)["module"])
    return dict(get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), folder.name))
