"""A model's dimensions: all that the formulas know of it."""

from dataclasses import dataclass
from typing import Any

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class ModelShape:
    """A decoder whose layers attend and then multiply.

    parameters: all of them. active: those that a token passes through, fewer with experts. queries, values: widths of
    what a layer's attention reads, heads times their size; values are those of keys, too. inner: width of a layer's
    products between its matrices, over all of the `experts_used` that a token passes through; 0 has no experts.
    """

    parameters: int
    active: int
    layers: int
    hidden: int
    queries: int
    values: int
    inner: int
    vocabulary: int
    experts_used: int = 0

    @classmethod
    def decoder(
        cls,
        *,
        layers: int,
        hidden: int,
        heads: int,
        key_heads: int,
        head: int,
        inner: int,
        vocabulary: int,
        tied: bool = False,
        experts: int = 0,
        experts_used: int = 0,
    ) -> "ModelShape":
        """Of Llama's kind, by its config's numbers: three matrices of `inner` a layer, or of each expert. Norms are
        left out, which are less than a thousandth."""
        queries, values = heads * head, key_heads * head
        attention, product = 2 * hidden * (queries + values), 3 * hidden * inner
        head_and_embedding = vocabulary * hidden * (1 if tied else 2)
        all_of, used = (attention + product * max(number, 1) for number in (experts, experts_used))
        return cls(
            parameters=layers * all_of + head_and_embedding,
            active=layers * used + vocabulary * hidden,  # an embedding is looked up, a head multiplies
            layers=layers,
            hidden=hidden,
            queries=queries,
            values=values,
            inner=inner * max(experts_used, 1),
            vocabulary=vocabulary,
            experts_used=experts_used,
        )

    @property
    def largest_tensor(self) -> int:
        """Elements of the embedding, which no other tensor exceeds in the models that are planned for here."""
        return self.vocabulary * self.hidden

    def cache_bytes(self, dtype: str) -> int:
        """Of a token in an engine's KV cache: a key and a value in every layer."""
        return 2 * self.layers * self.values * BYTES[dtype]


def shape_of(path: str) -> ModelShape:
    """Of a model's folder or hub id, by its config: parameters are counted on a model without storage."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path)
    with torch.device("meta"):
        causal_lm = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config()
    named = list(causal_lm.named_parameters())
    total = sum(parameter.numel() for _, parameter in named)
    in_experts = sum(parameter.numel() for name, parameter in named if ".experts." in name)
    number, used = _experts(text)
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    inner = (getattr(text, "moe_intermediate_size", None) if number else None) or _inner(text)
    tied = causal_lm.get_output_embeddings().weight is causal_lm.get_input_embeddings().weight
    embedding = 0 if tied else causal_lm.get_input_embeddings().weight.numel()
    return ModelShape(
        parameters=total,
        active=total - embedding - (in_experts * (number - used) // number if number else 0),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        queries=heads * head,
        values=(getattr(text, "num_key_value_heads", None) or heads) * head,
        inner=inner * max(used, 1),
        vocabulary=text.vocab_size,
        experts_used=used,
    )


def _experts(text: Any) -> tuple[int, int]:
    """(how many there are, how many a token passes through)."""
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    number = next((int(found) for name in names if (found := getattr(text, name, None))), 0)
    return number, int(getattr(text, "num_experts_per_tok", 0) or 0) if number else 0


def _inner(text: Any) -> int:
    names = ("intermediate_size", "n_inner", "ffn_dim")
    return next((int(found) for name in names if (found := getattr(text, name, None))), 4 * text.hidden_size)
