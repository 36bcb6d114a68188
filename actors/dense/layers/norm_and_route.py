"""Everything between a layer's attention and its experts: residual sum, LayerNorm, gate and router. The
choice of kernels is made once, at load.

Legend: T tokens, H hidden, E experts, K = 2 experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

from actors.checkpoint.config import ModelConfig
from actors.dense.layers.layer import Layer
from actors.dense.layers.norm import AddNorm
from actors.dense.layers.router import make_route
from actors.devices import has_triton
from actors.linear import DeviceProduct

NormedAndRouted: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""x + added and its norm, [T, H] each; expert ids [T, K] int64 and weights [T, K] float32."""

NormAndRoute: TypeAlias = Callable[[torch.Tensor, torch.Tensor, Layer], NormedAndRouted]
"""(x [T, H], added [T, H], layer) -> the sum, its norm, and the routes of the norm's rows."""


def make_norm_and_route(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, add_norm: AddNorm
) -> NormAndRoute:
    """One kernel for few tokens on CUDA with Triton, otherwise one operation after the other."""
    route, jitter = make_route(dtype, device), config.router_jitter

    def one_by_one(x: torch.Tensor, added: torch.Tensor, layer: Layer) -> NormedAndRouted:
        total, normed = add_norm(x, added, layer.post_attention_norm)
        return total, normed, *route(layer.gate(normed), jitter)

    return _in_one_kernel(config, one_by_one) if has_triton(device) else one_by_one


def _in_one_kernel(config: ModelConfig, for_many: NormAndRoute) -> NormAndRoute:
    from actors.gpu.norm_and_route import MOST_TOKENS, fits, norm_and_route

    if not fits(config.num_experts, config.hidden_size):
        return for_many
    eps, jitter = config.layer_norm_eps, config.router_jitter

    def for_few_or_many(x: torch.Tensor, added: torch.Tensor, layer: Layer) -> NormedAndRouted:
        if x.shape[0] > MOST_TOKENS:
            return for_many(x, added, layer)
        assert isinstance(layer.gate, DeviceProduct)
        return norm_and_route(x, added, layer.post_attention_norm, eps, layer.gate.weight, jitter)

    return for_few_or_many
