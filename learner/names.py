"""The names that a model's files have, which engines know: transformers 5 fuses a layer's experts, files do not."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from learner.deepspeed_quirks import full_shape


def held_tensors(causal_lm: PreTrainedModel) -> dict[str, Tensor]:
    """What a file holds of a model, by the model's own names: parameters, tied ones once, and the buffers that are
    saved (a router's correction bias)."""
    once = dict(causal_lm.named_parameters())
    state = causal_lm.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if name in once or not isinstance(tensor, nn.Parameter)}


class FileNames:
    """A model's tensors under the names of its files, and back. Both ways a tensor at a time, so that under ZeRO-3 no
    more than that is whole. What is fused is taken apart by the mapping that transformers itself loads and saves by."""

    def __init__(self, causal_lm: PreTrainedModel) -> None:
        """Before adapters, which `learner.adapter.merged` takes out again."""
        self._model = causal_lm
        held = {name: _meta(tensor) for name, tensor in held_tensors(causal_lm).items()}
        whole = revert_weight_conversion(causal_lm, held)
        converted = {name: {name: tensor} for name, tensor in held.items()}
        if whole.keys() != held.keys():  # one by one is slow: transformers walks the whole model each time
            converted = {name: revert_weight_conversion(causal_lm, {name: held[name]}) for name in held}
        self._kept = {name for name, parts in converted.items() if list(parts) == [name]}
        self.owner = {part: name for name, parts in converted.items() for part in parts}
        if _shapes(whole) != _shapes({part: t for parts in converted.values() for part, t in parts.items()}):
            odd = sorted(whole.keys() ^ self.owner.keys())[:3]
            raise ValueError(f"model.path: found {type(causal_lm).__name__}, whose files fuse its parameters: {odd}")

    def split(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """What a file has of the model's tensor of that name: itself, or its parts."""
        return {name: tensor} if name in self._kept else revert_weight_conversion(self._model, {name: tensor})

    def split_all(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A whole file's tensors."""
        return {part: piece for name, tensor in state.items() for part, piece in self.split(name, tensor).items()}

    def shapes(self, held: Mapping[str, Tensor]) -> Iterator[tuple[str, torch.dtype, tuple[int, ...]]]:
        """(name, dtype, full shape) of each of a file's tensors, without gathering anything."""
        for name, tensor in held.items():
            for part, piece in self.split(name, _meta(tensor)).items():
                yield part, piece.dtype, tuple(piece.shape)


def _meta(tensor: Tensor) -> Tensor:
    """Its dtype and full shape, without content."""
    return torch.empty(full_shape(tensor), dtype=tensor.dtype, device="meta")


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
