"""The DeepSpeed ZeRO engine: one optimizer step over packed micro-batches, full tensors out, save and load.

Runs inside a process group whose RANK, WORLD_SIZE, ... are already in the environment.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from learner import deepspeed_quirks as quirks
from learner.adamw_16bit import AdamW16Bit
from learner.adapter import add_adapter
from learner.batches import PackedTokens
from learner.config import OPTIMIZERS, LearnerConfig, head_chunk
from learner.disk import read, written
from learner.divergence import Divergence, divergence
from learner.ema import Ema
from learner.export import TEXT, Exporter
from learner.head import Distribution
from learner.kept import KeptWeights
from learner.load import DTYPES, load_causal_lm
from learner.logits import head_of
from learner.memory import give_back
from learner.model import Student, checkpoint_layers
from learner.names import held_tensors
from learner.objectives import OBJECTIVES
from learner.parts import PartClock
from learner.recompute import keep_products
from learner.schedule import rate_factor
from learner.sealed import SealedFile, seal


def schedule(config: LearnerConfig, num_updates: int) -> quirks.Schedule:
    """lr times `rate_factor` in each optimizer step."""
    factor = rate_factor(config.lr_schedule, config.lr_end, config.warmup_steps, num_updates)
    return lambda optimizer: LambdaLR(optimizer, factor)


def optimizer_of(parameters: Sequence[nn.Parameter], config: LearnerConfig) -> Optimizer:
    """The configured optimizer, as DeepSpeed takes it."""
    settings: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay}
    if config.optimizer == "adamw_16bit":
        return AdamW16Bit(parameters, **settings)
    return torch.optim.AdamW(parameters, **settings, fused=True)


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


class ZeroEngine:
    """A `Student` under ZeRO stage 0 to 3 with float32 master weights and AdamW, of the bytes that the recipe gives it.

    num_updates: the optimizer steps of the whole run, over which a schedule falls. patience_s: for which a disk is
    tried again that refuses a file of a checkpoint or of the export.
    """

    def __init__(self, model_path: str, config: LearnerConfig, num_updates: int = 1, patience_s: float = 0.0) -> None:
        self.config, self._patience_s = config, patience_s
        quirks.join(config.start_deadline_s)
        causal_lm = load_causal_lm(model_path, DTYPES[config.dtype])
        self._exporter = Exporter(model_path, causal_lm, config)
        self._names = self._exporter.names
        if config.lora_rank:
            add_adapter(causal_lm, config)
        if config.gradient_checkpointing:
            checkpoint_layers(causal_lm, config.zero_stage)
        elif config.zero_stage < 3 and not torch.cuda.is_available():  # its checkpoints cannot keep anything
            keep_products(causal_lm)
        self.vocabulary = len(head_of(causal_lm).weight)
        chunk = head_chunk(config, self.vocabulary, torch.cuda.is_available())
        student = Student(causal_lm, chunk, divergence_of(config, self.vocabulary))
        trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
        self.engine = quirks.initialize(student, optimizer_of(trained, config), schedule(config, num_updates), config)
        quirks.be_patient(self.engine, patience_s)
        self.clock = PartClock(self.engine.device.type == "cuda")
        causal_lm.base_model.register_forward_hook(lambda *_: self.clock.mark("forward"))
        quirks.around_reduction(self.engine, lambda: self.clock.mark("backward"), lambda: self.clock.mark("reduce"))
        self._give_back()
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
        readings_KN = self.engine(*tokens.to(self.device), teacher=teacher)
        return readings_KN[0], readings_KN[1] if teacher is not None else None

    def step(self, micro_batches: Sequence[Any], loss_of: Callable[[Any], Tensor], skips: bool = False) -> float:
        """Accumulates the gradient of every micro-batch, then takes one optimizer step.

        `loss_of` already divides by the whole step's denominator, so losses are summed: over micro-batches by
        accumulation, over ranks by undoing DeepSpeed's mean.

        Returns:
            the gradient's global norm before clipping.

        Raises:
            RuntimeError: it is not finite, on every rank, unless such a step is skipped. No weight has moved then.
        """
        last = len(micro_batches) - 1
        for index, batch in enumerate(micro_batches):
            self.engine.set_gradient_accumulation_boundary(index == last)
            loss = loss_of(batch) * self.num_ranks
            self.clock.mark("head")
            self.engine.backward(loss, scale_wrt_gas=False)
            del loss
            self._give_back()
            self.clock.mark("backward")
        before = quirks.norm_before_step([param for _, param in self._parameters()], self.config)
        norm = quirks.take_step(self.engine, before, skips)
        self._give_back()
        self.clock.mark("optimizer")
        return norm

    def _give_back(self) -> None:
        """The next micro-batch has other lengths: its tensors would not fit where this one's were."""
        if self.device.type == "cpu":
            give_back()

    def parameter_shapes(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """(name, dtype, full shape) of each tensor of the model's files, tied ones once, without gathering.

        What is fused here has the names of its parts; under an adapter, which engines get alone, its own.
        """
        held = self._held()
        if self.config.lora_rank:
            return [(name, tensor.dtype, quirks.full_shape(tensor)) for name, tensor in held.items()]
        return list(self._names.shapes(held))

    def trained_names(self) -> list[str]:
        """Of the parameters that are not frozen: all of them, or the adapter's."""
        return [name for name, param in self._parameters() if param.requires_grad]

    def full_tensors(self, groups: Sequence[Sequence[str]]) -> Iterator[tuple[str, Tensor]]:
        """(name, full tensor) of `parameter_shapes`' names group by group; under ZeRO-3 a collective: every rank
        iterates, one group is gathered."""
        held, owner = self._held(), {} if self.config.lora_rank else self._names.owner
        for group in groups:
            owners = list(dict.fromkeys(owner.get(name, name) for name in group))
            with quirks.gathered([held[name] for name in owners], self.config):
                parts: dict[str, Tensor] = {}
                for name in group:
                    if name not in parts:
                        at = owner.get(name, name)
                        parts = self._names.split(at, held[at].detach()) if owner else {at: held[at].detach()}
                    yield name, parts[name]

    def keeper(self) -> KeptWeights:
        """Nothing yet, of what this rank trains."""
        return KeptWeights([param for _, param in self._parameters() if param.requires_grad], self.rank)

    def _held(self) -> dict[str, Tensor]:
        return held_tensors(self.engine.module.causal_lm)

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.engine.module.causal_lm.named_parameters()

    def checkpoint_bytes(self) -> int:
        """About what a checkpoint of all ranks takes: the weights, and of each one that is trained its master and its
        two moments."""
        sizes = [(math.prod(quirks.full_shape(param)), param) for _, param in self._parameters()]
        trained = sum(size for size, param in sizes if param.requires_grad)
        weights = sum(size * param.element_size() for size, param in sizes)
        return weights + (4 + OPTIMIZERS[self.config.optimizer].moments) * trained

    def save(self, folder: str, client_state: dict[str, Any], *beside: Ema | KeptWeights) -> list[SealedFile]:
        """ZeRO checkpoint `folder/step` with the optimizer, and other weights beside it; every rank calls it, and gets
        what it has written."""
        tag = checkpoint_tag(client_state["step"])
        place = Path(folder) / tag
        for weights in beside:
            written(self._patience_s, place, partial(weights.save, place))
        quirks.save_checkpoint(self.engine, folder, tag, client_state)
        return written(self._patience_s, place, partial(seal, place, self.rank))

    def load(self, folder: str, step: int, *beside: Ema | KeptWeights) -> dict[str, Any]:
        """The client state of the checkpoint at `step`; every rank calls it. ValueError when there is none."""
        tag = checkpoint_tag(step)
        if not (Path(folder) / tag).is_dir():
            raise ValueError(f"{folder}: found no checkpoint {tag}, expected one that --resume can continue from")
        _, client_state = self.engine.load_checkpoint(folder, tag=tag)
        for weights in beside:
            read(self._patience_s, partial(weights.load, Path(folder) / tag))
        return {key: client_state[key] for key in ("step",)}

    def rehearse_export(self, folder: str) -> None:
        """`Exporter.rehearse` of this model, on rank 0; no collective."""
        if self.rank == 0:
            shapes = {n: torch.empty(shape, dtype=d, device="meta") for n, d, shape in self.parameter_shapes()}
            self._exporter.rehearse(shapes, Path(folder))

    def export(self, folder: str, groups: Sequence[Sequence[str]], text: PackedTokens = TEXT) -> None:
        """`Exporter.write` of this model: an ordinary Hugging Face folder. Every rank calls it, rank 0 writes."""
        keep = self.rank == 0
        with torch.no_grad():
            logprobs = self.forward(text)[0].cpu()
        state = {name: tensor.to("cpu", copy=True) for name, tensor in self.full_tensors(groups) if keep}
        if keep:
            self._exporter.write(state, logprobs, Path(folder), text, self._patience_s)
