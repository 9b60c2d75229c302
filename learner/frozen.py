"""Models that the learner runs and never trains: a teacher under (x, r) for its distributions, the base under x."""

from functools import partial

import torch
from torch import Tensor

from learner.batches import PackedTokens
from learner.config import LearnerConfig, head_chunk
from learner.deepspeed_quirks import gathered, sharded
from learner.head import Distribution, LogprobHead
from learner.load import DTYPES, load_causal_lm
from learner.logits import head_of, logit_form
from learner.model import Trunk


class FrozenModel:
    """A model folder as it is, in the learner's compute type, so that its numerics are the student's."""

    def __init__(self, path: str, config: LearnerConfig, device: torch.device) -> None:
        causal_lm = load_causal_lm(path, DTYPES[config.dtype])
        weight, form = head_of(causal_lm).weight, logit_form(causal_lm)
        self.vocabulary = len(weight)
        self._device, self._whole = device, partial(gathered, [weight], config)
        self._head = LogprobHead(weight, head_chunk(config, len(weight), device.type == "cuda"), form=form)
        self._trunk = sharded(Trunk(causal_lm), config, device)

    def distribution(self, tokens: PackedTokens) -> Distribution:
        """Its distributions of the targets; under ZeRO-3 a collective."""
        with torch.no_grad():
            hidden_NH = self._trunk(*(part.to(self._device) for part in tokens[:-1]))
        return Distribution(hidden_NH, self._head.weight, self._head.form, self._whole)

    def logprobs(self, tokens: PackedTokens) -> Tensor:
        """float32 [N] log-probs of the targets; under ZeRO-3 a collective."""
        hidden_NH = self.distribution(tokens).hidden_NH
        with torch.no_grad(), self._whole():
            return self._head(hidden_NH, tokens.targets_N.to(self._device))[0]
