"""A model as the cost model sees it: its numbers of weights, bytes and operations."""

from __future__ import annotations

import math
from dataclasses import dataclass

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.layout import dense_layer_tensors, dense_tensors, one_expert_tensors

_ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Sizes of a model, counted from the tensors of its checkpoint."""

    num_layers: int
    hidden_size: int
    num_experts: int
    num_experts_per_token: int
    item_bytes: int
    """Bytes of one weight, and of one feature of a key or value."""
    is_bf16: bool
    dense_layer_weights: int
    """Weights of attention, norms and gate of one layer."""
    expert_weights: int
    """Weights of one expert of one layer."""
    head_weights: int
    """Weights of the head over the vocabulary, which a step reads once."""
    dense_weights: int
    """All weights but those of the experts; the embedding is included."""
    kv_size: int
    """Features of the key of one token and layer; the value has as many."""
    sliding_window: int | None
    max_position_embeddings: int

    def weight_bytes(self, bf16_share: float = 1.0) -> float:
        """Bytes of one weight of a product. bf16_share: bytes held per byte of bfloat16 weights."""
        return self.item_bytes * (bf16_share if self.is_bf16 else 1.0)

    def dense_bytes(self, bf16_share: float = 1.0) -> float:
        """Bytes of a dense actor's weights. The embedding and the norms are not coded, so `bf16_share` does
        not apply."""
        products = self.num_layers * self.dense_layer_weights + self.head_weights
        others = max(0, self.dense_weights - products)
        return products * self.weight_bytes(bf16_share) + others * self.item_bytes

    def expert_bytes(self, bf16_share: float = 1.0) -> float:
        """Bytes of one expert in one layer."""
        return self.expert_weights * self.weight_bytes(bf16_share)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values over all layers, as `actors.dense.kv_cache` stores them."""
        return self.num_layers * 2 * self.kv_size * self.item_bytes

    def seen(self, context_tokens: float) -> float:
        """Positions that the last of `context_tokens` tokens attends to."""
        return context_tokens if self.sliding_window is None else min(context_tokens, self.sliding_window)


def model_shape(config: ModelConfig, dtype: str = "auto") -> Shape:
    """The sizes of a model. dtype: "auto" takes the stored one, or float32 if the config names none.

    Raises ValueError for an unknown dtype.
    """
    name = (config.stored_dtype or "float32") if dtype == "auto" else dtype
    if name not in _ITEM_BYTES:
        raise ValueError(f"dtype is {dtype!r}, expected auto or one of {', '.join(_ITEM_BYTES)}")
    return Shape(
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        num_experts=config.num_experts,
        num_experts_per_token=config.num_experts_per_token,
        item_bytes=_ITEM_BYTES[name],
        is_bf16=name == "bfloat16",
        dense_layer_weights=_count(dense_layer_tensors(config, 0)),
        expert_weights=_count(one_expert_tensors(config, 0, 0)),
        head_weights=config.vocab_size * config.hidden_size,
        dense_weights=_count(dense_tensors(config)),
        kv_size=config.kv_size,
        sliding_window=config.sliding_window,
        max_position_embeddings=config.max_position_embeddings,
    )


def _count(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())
