"""Tiny random models of families that differ from Llama in what matters here, made by their own configurations."""

from pathlib import Path
from typing import Any

import torch
import transformers

VOCAB = 320
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16}
ROUTED["first_k_dense_replace"] = 1
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
GPT2 = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64}

# name: the model's class, without its ending; the configuration's; what it has beside SIZES
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("Llama", "Llama", {}),
    "gemma3": ("Gemma3", "Gemma3Text", {"head_dim": 8, "final_logit_softcapping": 4.0}),
    "gemma4": (
        "Gemma4", "Gemma4Text",
        {"head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0,
         "final_logit_softcapping": 5.0},
    ),
    "nanochat": ("NanoChat", "NanoChat", {"final_logit_softcapping": 3.0}),
    "granite": ("Granite", "Granite", {"logits_scaling": 6.0, "embedding_multiplier": 3.0}),
    "granitemoe": ("GraniteMoe", "GraniteMoe", {"logits_scaling": 6.0, "num_local_experts": 4}),
    "cohere": ("Cohere", "Cohere", {"logit_scale": 0.3}),
    "cohere2": ("Cohere2", "Cohere2", {"logit_scale": 0.3}),
    "hyperclovax": ("HyperCLOVAX", "HyperCLOVAX", {"logits_scaling": 0.4}),
    "phi": ("Phi", "Phi", {}),
    "phi3": ("Phi3", "Phi3", {}),
    "gpt2": ("GPT2LMHead", "GPT2", GPT2),
    "gpt_neox": ("GPTNeoX", "GPTNeoX", {"tie_word_embeddings": False}),
    "gptj": ("GPTJ", "GPTJ", GPT2 | {"rotary_dim": 4}),
    "bloom": ("Bloom", "Bloom", {"n_head": 4, "n_layer": 2}),
    "mpt": ("Mpt", "Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2}),
    "falcon": ("Falcon", "Falcon", {}),
    "stablelm": ("StableLm", "StableLm", {}),
    "qwen3_moe": ("Qwen3Moe", "Qwen3Moe", EXPERTS | {"head_dim": 8}),
    "mixtral": ("Mixtral", "Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "phimoe": ("Phimoe", "Phimoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": (
        "Qwen2Moe", "Qwen2Moe", EXPERTS | {"shared_expert_intermediate_size": 16},
    ),
    "olmoe": ("Olmoe", "Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "deepseek_v3": ("DeepseekV3", "DeepseekV3", ROUTED | LATENT | {"head_dim": 4, "num_key_value_heads": 4}),
    "glm4_moe": ("Glm4Moe", "Glm4Moe", ROUTED | {"head_dim": 8}),
    "llama4_text": ("Llama4", "Llama4Text", {"num_local_experts": 4, "head_dim": 8, "intermediate_size_mlp": 48}),
    "minicpm3": ("MiniCPM3", "MiniCPM3", LATENT),
    "deepseek_v32": ("DeepseekV32", "DeepseekV32", ROUTED | LATENT | {"head_dim": 4, "num_key_value_heads": 4}),
    "glm_moe_dsa": ("GlmMoeDsa", "GlmMoeDsa", ROUTED | LATENT | {"head_dim": 4, "num_key_value_heads": 4}),
    "apertus": ("Apertus", "Apertus", {}),
}  # fmt: skip


def tiny(family: str, folder: Path, seed: int = 0, **settings: Any) -> Path:
    """Saves a random float32 model of that family as an ordinary Hugging Face folder, and returns the folder."""
    name, config, own = FAMILIES[family]
    ending = "Model" if name.endswith("LMHead") else "ForCausalLM"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = getattr(transformers, name + ending)(getattr(transformers, config + "Config")(**SIZES | own | settings))
        for buffer in made.state_dict().keys() - dict(made.named_parameters()).keys():
            if buffer.endswith("bias"):  # a router's correction, which is 0 before training
                torch.nn.init.normal_(made.get_buffer(buffer), std=0.1)
    made.save_pretrained(folder)
    return folder


def wrapped_gemma3(folder: Path, **sizes: int) -> Path:
    """The same of a Gemma 3 that takes images, whose text part is a `Gemma3ForCausalLM`."""
    text = transformers.Gemma3TextConfig(**SIZES | {"head_dim": 8, "sliding_window": 16} | sizes)
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    eyes = transformers.SiglipVisionConfig(**vision, image_size=28, patch_size=14)
    config = transformers.Gemma3Config(
        text_config=text.to_dict(),
        vision_config=eyes.to_dict(),
        mm_tokens_per_image=4,
        image_token_index=text.vocab_size - 1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    return folder
