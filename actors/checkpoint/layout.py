"""The tensors of a PhiMoE checkpoint, named as in its files, and the shape of each. Pure.

Legend: V vocabulary, H hidden, E experts, F expert width, Q heads * head_dim (= H), D kv_heads * head_dim.
"""

from __future__ import annotations

from collections.abc import Iterable

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.quantization import KINDS

Shape = tuple[int, ...]

EMBED = "model.embed_tokens.weight"
FINAL_NORM = "model.norm"
LM_HEAD = "lm_head"

FLOAT = "float"
"""The tensor is stored as bfloat16, float16 or float32."""


def layer_prefix(layer: int) -> str:
    return f"model.layers.{layer}."


def expert_prefix(layer: int, expert: int) -> str:
    return f"model.layers.{layer}.block_sparse_moe.experts.{expert}."


def dense_tensors(config: ModelConfig) -> dict[str, Shape]:
    """Return name -> shape of everything that a dense actor needs: all tensors but those of the experts."""
    shapes: dict[str, Shape] = {EMBED: (config.vocab_size, config.hidden_size)}
    for layer in range(config.num_layers):
        shapes |= dense_layer_tensors(config, layer)
    shapes |= _norm(FINAL_NORM, config)
    if not config.tie_word_embeddings:
        shapes[f"{LM_HEAD}.weight"] = (config.vocab_size, config.hidden_size)
    if config.lm_head_bias:
        shapes[f"{LM_HEAD}.bias"] = (config.vocab_size,)
    return shapes


def dense_layer_tensors(config: ModelConfig, layer: int) -> dict[str, Shape]:
    """Return name -> shape of one layer's norms, attention and gate."""
    hidden, at = config.hidden_size, layer_prefix(layer)
    shapes = _norm(f"{at}input_layernorm", config)
    rows = {"q": hidden, "k": config.kv_size, "v": config.kv_size, "o": hidden}
    for projection, num_rows in rows.items():
        shapes[f"{at}self_attn.{projection}_proj.weight"] = (num_rows, hidden)
        if config.attention_bias:
            shapes[f"{at}self_attn.{projection}_proj.bias"] = (num_rows,)
    shapes |= _norm(f"{at}post_attention_layernorm", config)
    shapes[f"{at}block_sparse_moe.gate.weight"] = (config.num_experts, hidden)
    return shapes


def expert_tensors(config: ModelConfig, experts: Iterable[int]) -> dict[str, Shape]:
    """Return name -> shape of these experts' weights in all layers."""
    owned = tuple(experts)
    shapes: dict[str, Shape] = {}
    for layer in range(config.num_layers):
        for expert in owned:
            shapes |= one_expert_tensors(config, layer, expert)
    return shapes


def one_expert_tensors(config: ModelConfig, layer: int, expert: int) -> dict[str, Shape]:
    """Return name -> shape of the tensors stored for w1 [F, H], w3 [F, H] and w2 [H, F], in this order."""
    return {
        part: shape
        for name, matrix in expert_matrices(config, layer, expert).items()
        for part, (shape, _) in stored_parts(config, name, matrix).items()
    }


def stored_parts(config: ModelConfig, name: str, shape: Shape) -> dict[str, tuple[Shape, str]]:
    """Return name -> (shape, dtype) of the tensors that store an expert's matrix.

    The dtype is FLOAT or a name that safetensors uses. If experts are quantized, these are the values, then
    their scales, then, for packed values, the matrix's shape (`actors.checkpoint.quantization`).
    """
    stored = config.stored_quantization
    if stored is None:
        return {name: (shape, FLOAT)}
    num_outputs, num_inputs = shape
    num_scales = 1 if stored.group_size is None else num_inputs // stored.group_size
    scale = {f"{name}_scale": ((num_outputs, num_scales), FLOAT)}
    if not stored.is_packed:
        return {name: (shape, KINDS[stored.kind].stored_dtype), **scale}
    words = -(-num_inputs * stored.num_bits // 32)
    return {f"{name}_packed": ((num_outputs, words), "I32"), **scale, f"{name}_shape": ((2,), "I64")}


def expert_matrices(config: ModelConfig, layer: int, expert: int) -> dict[str, Shape]:
    """Return name -> shape of the unquantized w1 [F, H], w3 [F, H] and w2 [H, F], in this order."""
    if not (0 <= layer < config.num_layers and 0 <= expert < config.num_experts):
        raise ValueError(
            f"no expert {expert} in layer {layer}: {config.num_experts} in {config.num_layers} layers"
        )
    at, hidden, width = expert_prefix(layer, expert), config.hidden_size, config.intermediate_size
    return {
        f"{at}w1.weight": (width, hidden),
        f"{at}w3.weight": (width, hidden),
        f"{at}w2.weight": (hidden, width),
    }


def all_tensors(config: ModelConfig) -> dict[str, Shape]:
    """Return name -> shape of all tensors of the model."""
    return dense_tensors(config) | expert_tensors(config, range(config.num_experts))


def dense_tensor_names(config: ModelConfig) -> frozenset[str]:
    return frozenset(dense_tensors(config))


def expert_tensor_names(config: ModelConfig, experts: Iterable[int]) -> frozenset[str]:
    return frozenset(expert_tensors(config, experts))


def _norm(name: str, config: ModelConfig) -> dict[str, Shape]:
    return {f"{name}.weight": (config.hidden_size,), f"{name}.bias": (config.hidden_size,)}
