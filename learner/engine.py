"""The DeepSpeed ZeRO engine: one optimizer step over packed micro-batches, full tensors out, save and load.

The only home of deepspeed. Runs inside a process group whose RANK, WORLD_SIZE, ... are already in the environment.
"""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.comm.torch import build_shm_op
from deepspeed.runtime.zero.partition_parameters import GatheredParameters
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.cpp_extension import get_default_build_root

from learner.adapter import add_adapter, merged
from learner.batches import PackedTokens
from learner.config import LearnerConfig
from learner.divergence import Divergence, divergence
from learner.ema import Ema
from learner.head import Distribution
from learner.load import load_causal_lm
from learner.logits import head_of
from learner.model import Student, checkpoint_layers
from learner.objectives import OBJECTIVES

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def zero_settings(config: LearnerConfig) -> dict[str, Any]:
    """The DeepSpeed configuration. Batch sizes are formal: `step` owns accumulation and `learner.batches` the scale.

    Gradients of micro-batches and ranks add up in float32, whatever the dtype; for stage 0 DeepSpeed has no such mix.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.grad_clip,
        "bf16": {"enabled": config.dtype == "bfloat16", "immediate_grad_update": True},
        "data_types": {"grad_accum_dtype": "fp32" if config.zero_stage else None},
        "communication_data_type": "fp32" if config.zero_stage else None,
        "zero_optimization": {"stage": config.zero_stage, "reduce_scatter": config.zero_stage > 0},
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def warmup(steps: int) -> Callable[[Optimizer], LambdaLR]:
    """lr times (k + 1) / steps in optimizer step k, from `steps` on lr itself."""
    return lambda optimizer: LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(steps, 1)))


def checkpoint_tag(step: int) -> str:
    """The name of a checkpoint's folder."""
    return f"step-{step:06d}"


def divergence_of(config: LearnerConfig, vocabulary: int) -> Divergence | None:
    """What the configured objective measures between two distributions; None: it looks at sampled tokens only.

    ValueError when more tokens are to be compared than there are.
    """
    contributions, top_k = OBJECTIVES[config.objective].contributions, config.divergence_top_k
    if top_k > vocabulary:
        raise ValueError(
            f"learner.divergence_top_k: found {top_k}, expected at most the vocabulary's {vocabulary} tokens"
        )
    if contributions is None:
        return None
    return divergence(contributions, top_k=top_k, clip=config.divergence_clip, jsd_beta=config.jsd_beta)


def sharded(module: nn.Module, config: LearnerConfig, device: torch.device) -> nn.Module:
    """A frozen module for inference on `device`; under ZeRO-3 its parameters are sharded over the ranks."""
    module.requires_grad_(False).eval()
    if config.zero_stage < 3:
        return module.to(device)
    engine, *_ = deepspeed.initialize(model=module, config=zero_settings(config))
    return engine


def whole(parameter: nn.Parameter) -> AbstractContextManager[Any]:
    """Within it the parameter has its full shape: under ZeRO-3 a collective."""
    return GatheredParameters([parameter])


def build_collectives(deadline_s: float) -> None:
    """Compiles DeepSpeed's CPU collectives where that has not been done (20 s), one process at a time, and loads them.

    The lock that torch builds under is a file which outlives its process: after a start that was killed, every later
    one would wait for it. The lock here goes with its process, so that under it a file of torch's is a leftover.

    Raises:
        TimeoutError: another process has been compiling for `deadline_s` seconds.
    """
    default = os.path.join(get_default_build_root(), "edge-opd")
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


def _unname_shared_buffers() -> None:
    """DeepSpeed's CPU collectives leave 69 MB of shared memory behind for each rank, since nothing ever unlinks it.
    Once every rank has opened it, its name has no use, and without one it goes with the processes."""
    torch.distributed.barrier()
    environment = os.environ
    place = f"{os.getuid()}_{environment['MASTER_ADDR']}_{environment['MASTER_PORT']}_{environment['RANK']}"
    Path(f"/dev/shm/deepspeed_allreduce_buffer_{place}").unlink(missing_ok=True)


class ZeroEngine:
    """A `Student` under ZeRO stage 0 to 3 with float32 master weights and AdamW."""

    def __init__(self, model_path: str, config: LearnerConfig) -> None:
        self.config = config
        on_gpu = torch.cuda.is_available()
        if not on_gpu:
            build_collectives(config.start_deadline_s / 2)  # so that a start which waits there says so
        deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo")
        _unname_shared_buffers()
        causal_lm = load_causal_lm(model_path, DTYPES[config.dtype])
        if config.lora_rank:
            add_adapter(causal_lm, config)
        if config.gradient_checkpointing:
            checkpoint_layers(causal_lm, config.zero_stage)
        self.vocabulary = len(head_of(causal_lm).weight)
        student = Student(causal_lm, config.head_chunk_tokens, divergence_of(config, self.vocabulary))
        causal_lm.config.use_cache = False
        self.hf_config = causal_lm.config
        trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        self.engine, *_ = deepspeed.initialize(
            model=student, optimizer=optimizer, config=zero_settings(config), lr_scheduler=warmup(config.warmup_steps)
        )
        if config.zero_stage == 0 and config.dtype == "bfloat16":  # DeepSpeed has taken a step without gradients there
            optimizer.state.clear()
            self.engine.optimizer.refresh_fp32_params()
        self.rank, self.num_ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()

    @property
    def device(self) -> torch.device:
        return self.engine.device

    @property
    def lr(self) -> float:
        """The learning rate of the next optimizer step."""
        return float(self.engine.get_lr()[0])

    def forward(self, tokens: PackedTokens, teacher: Distribution | None = None) -> tuple[Tensor, Tensor | None]:
        """`Student.forward` on this engine's device: [N] log-probs, and divergences from the teacher or None."""
        readings_KN = self.engine(*(tensor.to(self.device) for tensor in tokens), teacher=teacher)
        return readings_KN[0], readings_KN[1] if teacher is not None else None

    def step(self, micro_batches: Sequence[Any], loss_of: Callable[[Any], Tensor]) -> float:
        """Accumulates the gradient of every micro-batch, then takes one optimizer step.

        `loss_of` already divides by the whole step's denominator, so losses are summed: over micro-batches by
        accumulation, over ranks by undoing DeepSpeed's mean.

        Returns:
            the gradient's global norm before clipping.

        Raises:
            RuntimeError: it is not finite, on every rank: DeepSpeed skips such a step in silence, or takes it.
        """
        last = len(micro_batches) - 1
        for index, batch in enumerate(micro_batches):
            self.engine.set_gradient_accumulation_boundary(index == last)
            self.engine.backward(loss_of(batch) * self.num_ranks, scale_wrt_gas=False)
        is_plain = self.config.zero_stage == 0 and self.config.dtype == "float32"  # DeepSpeed keeps no norm then
        grads = [param.grad for _, param in self._parameters() if param.grad is not None] if is_plain else []
        norm = nn.utils.get_total_norm(grads)
        self.engine.step()
        found = float(norm if is_plain else self.engine.get_global_grad_norm())
        if not math.isfinite(found):
            raise RuntimeError(f"gradient norm: found {found}, expected a finite one: a loss or a gradient overflowed")
        return found

    def parameter_shapes(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """(Hugging Face name, dtype, full shape) of each parameter, tied ones once, without gathering."""
        return [
            (name, param.dtype, tuple(getattr(param, "ds_shape", param.shape))) for name, param in self._parameters()
        ]

    def trained_names(self) -> list[str]:
        """Of the parameters that are not frozen: all of them, or the adapter's."""
        return [name for name, param in self._parameters() if param.requires_grad]

    def full_tensors(self, groups: Sequence[Sequence[str]]) -> Iterator[tuple[str, Tensor]]:
        """(name, full tensor) group by group; under ZeRO-3 a collective: every rank iterates, one group is gathered."""
        by_name = dict(self._parameters())
        for group in groups:
            params = [by_name[name] for name in group]
            with GatheredParameters(params, enabled=self.config.zero_stage == 3):
                for name, param in zip(group, params, strict=True):
                    yield name, param.detach()

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.engine.module.causal_lm.named_parameters()

    def save(self, folder: str, client_state: dict[str, Any], ema: Ema | None = None) -> None:
        """ZeRO checkpoint `folder/step` with the optimizer, and the average beside it; every rank calls it."""
        tag = checkpoint_tag(client_state["step"])
        if ema is not None:  # first, since save_checkpoint ends by naming this checkpoint the newest
            ema.save(Path(folder) / tag)
        self.engine.save_checkpoint(folder, tag=tag, client_state=client_state)

    def load(self, folder: str, ema: Ema | None = None) -> dict[str, Any]:
        """The newest checkpoint's client state; ValueError when there is none."""
        path, client_state = self.engine.load_checkpoint(folder)
        if path is None:
            raise ValueError(f"{folder}: found no checkpoint, expected one that --resume can continue from")
        if ema is not None:
            ema.load(Path(folder) / checkpoint_tag(client_state["step"]))
        return {key: client_state[key] for key in ("step",)}

    def export(self, folder: str, tokenizer_from: str, groups: Sequence[Sequence[str]]) -> None:
        """An ordinary Hugging Face safetensors folder; every rank calls it, rank 0 writes."""
        keep = self.rank == 0
        state = {name: tensor.to("cpu", copy=True) for name, tensor in self.full_tensors(groups) if keep}
        if not keep:
            return
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        if self.config.lora_rank:
            state = merged(state, self.config)
        model = AutoModelForCausalLM.from_config(self.hf_config, dtype=DTYPES[self.config.dtype])
        missing, unexpected = model.load_state_dict(state, strict=False)
        tied = set(getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", None) or ())
        if unexpected or set(missing) - tied:
            raise RuntimeError(f"export: missing {sorted(set(missing) - tied)}, unexpected {sorted(unexpected)}")
        model.tie_weights()
        model.config.use_cache = True
        with contextlib.suppress(OSError):  # a model without one has no end tokens of its own to keep
            model.generation_config = GenerationConfig.from_pretrained(tokenizer_from)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(tokenizer_from).save_pretrained(folder)
        assert json.loads((Path(folder) / "config.json").read_text()).get("quantization_config") is None
