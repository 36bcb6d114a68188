"""Shapes of the models for which random weights can be made, and their config files. Imports no torch."""

from __future__ import annotations

from actors.checkpoint.config import ModelConfig, RopeConfig
from actors.checkpoint.download import TINY, embedded_directory
from actors.checkpoint.quantization import quantization_config

PRESETS = (TINY, "mid", "phi-3.5-moe")
"""tiny has the embedded model's shapes, mid 716M parameters, phi-3.5-moe the real model's shapes (41.9B)."""


def preset_config(preset: str) -> ModelConfig:
    """Return the config of a preset. Raises ValueError for a name that is not in PRESETS."""
    if preset == TINY:
        return ModelConfig.from_directory(embedded_directory())
    if preset == "mid":
        return _like_the_real_one(hidden=1024, width=1600, layers=8, heads=16, kv_heads=4)
    if preset == "phi-3.5-moe":
        return _like_the_real_one(hidden=4096, width=6400, layers=32, heads=32, kv_heads=8)
    raise ValueError(f"preset is {preset!r}, expected one of {', '.join(PRESETS)}")


def original_dialect(config: ModelConfig) -> dict[str, object]:
    """Return config.json's content in the original dialect; `ModelConfig.from_dict` reads it back."""
    content: dict[str, object] = {
        "architectures": ["PhiMoEForCausalLM"],
        "model_type": "phimoe",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.layer_norm_eps,
        "sliding_window": config.sliding_window,
        "attention_bias": config.attention_bias,
        "lm_head_bias": config.lm_head_bias,
        "num_local_experts": config.num_experts,
        "num_experts_per_tok": config.num_experts_per_token,
        "router_jitter_noise": config.router_jitter,
        "input_jitter_noise": 0.0,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": next(iter(config.eos_token_ids), None),
        "torch_dtype": config.stored_dtype,
        "rope_theta": config.rope.theta,
        "rope_scaling": None,
    }
    if config.rope.is_longrope:
        original_max = config.rope.original_max_position_embeddings
        content["original_max_position_embeddings"] = original_max
        content["rope_scaling"] = {
            "type": "longrope",
            "short_factor": list(config.rope.short_factor),
            "long_factor": list(config.rope.long_factor),
            "short_mscale": config.rope.short_mscale,
            "long_mscale": config.rope.long_mscale,
            "original_max_position_embeddings": original_max,
        }
    if config.stored_quantization is not None:
        content["quantization_config"] = quantization_config(config.stored_quantization)
    return content


def generation_config(config: ModelConfig) -> dict[str, object]:
    """Return the content of generation_config.json."""
    return {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
        "do_sample": False,
    }


def _like_the_real_one(*, hidden: int, width: int, layers: int, heads: int, kv_heads: int) -> ModelConfig:
    """Return Phi-3.5-MoE's constants with these sizes and with smooth, untrained factor lists."""
    half = hidden // heads // 2
    return ModelConfig(
        vocab_size=32064,
        hidden_size=hidden,
        intermediate_size=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        num_experts=16,
        num_experts_per_token=2,
        max_position_embeddings=131072,
        rope=RopeConfig(
            theta=10000.0,
            is_longrope=True,
            short_factor=tuple(1.0 + 0.05 * i / half for i in range(half)),
            long_factor=tuple(1.0 + 30.0 * i / half for i in range(half)),
            short_mscale=1.243163121016122,
            long_mscale=1.243163121016122,
            original_max_position_embeddings=4096,
        ),
        sliding_window=131072,
        layer_norm_eps=1e-5,
        router_jitter=0.01,
        attention_bias=True,
        lm_head_bias=True,
        tie_word_embeddings=False,
        stored_dtype="bfloat16",
        bos_token_id=1,
        eos_token_ids=(3, 5),
    )
