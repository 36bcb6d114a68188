"""LayerNorm with weight and bias, by the project's kernels if they support the model. The choice is made
once, at load.

Legend: T tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.weights import Norm
from actors.devices import has_triton
from actors.kernels.layer import NormWeights
from actors.kernels.library import Kernels, kernels_for

Normalise: TypeAlias = Callable[[torch.Tensor, Norm], torch.Tensor]
"""(x [T, H], weights) -> [T, H] in x's dtype; statistics are float32."""

AddNorm: TypeAlias = Callable[[torch.Tensor, torch.Tensor, Norm], tuple[torch.Tensor, torch.Tensor]]
"""(x [T, H], added [T, H], weights) -> x + added, and its norm."""

_ALIGNMENT = 16
"""The kernel supports hidden sizes that are multiples of this."""


def make_norm(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Normalise:
    """The norm of all layers. All steps of a model use the same function, so that a row's bits do not depend
    on the other rows in its step."""
    kernels = norm_kernels(config, dtype, device)
    eps = config.layer_norm_eps
    if kernels is None:
        return lambda x, norm: F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, eps)
    return _in_one_call(kernels, eps, dtype == torch.bfloat16)


def make_add_norm(config: ModelConfig, device: torch.device, normalise: Normalise) -> AddNorm:
    """A residual sum and its norm: one kernel with Triton, otherwise the sum and then `normalise`."""
    if has_triton(device):
        from actors.gpu.add_norm import add_norm

        return lambda x, added, norm: add_norm(x, added, norm, config.layer_norm_eps)

    def one_by_one(x: torch.Tensor, added: torch.Tensor, norm: Norm) -> tuple[torch.Tensor, torch.Tensor]:
        total = x + added
        return total, normalise(total, norm)

    return one_by_one


def norm_kernels(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Kernels | None:
    """The kernels, or None if they do not support device, dtype or hidden size."""
    if device.type != "cpu" or config.hidden_size % _ALIGNMENT:
        return None
    return kernels_for(dtype)


def norm_weights(norm: Norm) -> NormWeights:
    """The addresses of the weights for the kernels of a step. They are valid as long as `norm` lives."""
    return NormWeights(gain=norm.weight.data_ptr(), shift=norm.bias.data_ptr())


def _in_one_call(kernels: Kernels, eps: float, is_bf16: bool) -> Normalise:
    layer_norm = kernels.layer_norm

    def normalise(x: torch.Tensor, norm: Norm) -> torch.Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        addresses = (x.data_ptr(), norm.weight.data_ptr(), norm.bias.data_ptr(), out.data_ptr())
        layer_norm(*addresses, *x.shape, eps, is_bf16)
        return out

    return normalise
