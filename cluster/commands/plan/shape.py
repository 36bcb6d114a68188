"""A model as the cost model sees it: numbers of weights, bytes and operations."""

from __future__ import annotations

import math
from dataclasses import dataclass

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.layout import dense_layer_tensors, dense_tensors, one_expert_tensors

_ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Counted from the tensors that a checkpoint of the model holds."""

    num_layers: int
    hidden_size: int
    num_experts: int
    num_experts_per_token: int
    item_bytes: int
    """Of a weight, and of a key's or value's feature."""
    is_bf16: bool
    dense_layer_weights: int
    """Attention, norms and gate of one layer."""
    expert_weights: int
    """One expert of one layer."""
    head_weights: int
    """Read once per step: the head over the vocabulary."""
    dense_weights: int
    """Everything but the experts, the embedding included."""
    kv_size: int
    """Features of the keys of one token and layer; as many of the values."""
    sliding_window: int | None
    max_position_embeddings: int

    def weight_bytes(self, bf16_share: float = 1.0) -> float:
        """Of one weight of a product. bf16_share: of their bytes, what those of bfloat16 are held in."""
        return self.item_bytes * (bf16_share if self.is_bf16 else 1.0)

    def dense_bytes(self, bf16_share: float = 1.0) -> float:
        """The embedding and the norms stay as they are."""
        products = self.num_layers * self.dense_layer_weights + self.head_weights
        others = max(0, self.dense_weights - products)
        return products * self.weight_bytes(bf16_share) + others * self.item_bytes

    def expert_bytes(self, bf16_share: float = 1.0) -> float:
        """One expert in one layer."""
        return self.expert_weights * self.weight_bytes(bf16_share)

    @property
    def kv_bytes_per_token(self) -> int:
        """Over all layers, as `actors.dense.kv_cache` stores them."""
        return self.num_layers * 2 * self.kv_size * self.item_bytes

    def seen(self, context_tokens: float) -> float:
        """Positions that a token at the end of so many looks at."""
        return context_tokens if self.sliding_window is None else min(context_tokens, self.sliding_window)


def model_shape(config: ModelConfig, dtype: str = "auto") -> Shape:
    """dtype: "auto" takes the stored one, float32 where the config says none. Raises ValueError for another name."""
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
