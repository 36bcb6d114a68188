"""The weights of one layer of the model without its experts. All ways to compute a step use them.

Legend: H hidden, A query heads, G key-value heads, D head dimension, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from actors.checkpoint.weights import Norm
from actors.linear import Product


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """The norms and products of one layer."""

    input_norm: Norm
    qkv: Product
    """[H] -> [(A + 2 G) * D]: queries, keys, values."""
    out: Product
    """[A * D] -> [H]."""
    post_attention_norm: Norm
    gate: Product
    """[H] -> [E]: the router's scores."""
