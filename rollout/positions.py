"""How many tokens of a model an engine takes at most, and how much memory they need: vLLM's own rules, without vLLM."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Where a config says its positions, the smallest of which counts; model_max_length counts alone (Cohere's).
POSITIONS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_target_positions",
    "max_sequence_length", "max_seq_length", "seq_len",
)  # fmt: skip
# Whose positions are those after scaling; of any other rope they are multiplied by its factor.
SCALED_ALREADY = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
BLOCK = 32  # tokens of a block of the KV cache on a CPU


def most_positions(text: "PreTrainedConfig") -> int | None:
    """The longest window that vLLM 0.32.0 takes; None where the config does not say.

    text: the config of a model's text part.
    """
    named = [int(found) for name in POSITIONS if (found := getattr(text, name, None)) is not None]
    if own := getattr(text, "model_max_length", None):
        named = [int(own)]
    if not named:
        return None
    if "gemma3" in text.model_type:  # whose positions are scaled already, whatever its rope
        return min(named)
    factors = [1.0, *(part.get("factor") or 1.0 for part in ropes(text) if part["rope_type"] not in SCALED_ALREADY)]
    return int(min(named) * factors[-1])


def ropes(text: "PreTrainedConfig") -> list[dict[str, Any]]:
    """The rotary embeddings' parameters, those of each kind of layer where they differ."""
    rope = getattr(text, "rope_parameters", None) or {}
    return [part for part in (rope, *rope.values()) if isinstance(part, dict) and "rope_type" in part]


def cache_bytes(text: "PreTrainedConfig", window: int, bytes_each: int) -> int:
    """Of one sequence of `window` tokens in a KV cache of a CPU's engine; 0 where its layers differ, or keep something
    else than keys and values of each head."""
    layers = set(getattr(text, "layer_types", None) or ["full_attention"])
    if layers != {"full_attention"} or getattr(text, "kv_lora_rank", None) or getattr(text, "multi_query", False):
        return 0
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * size * bytes_each * -(-window // BLOCK) * BLOCK)
