"""Whether the project's Triton kernels can be used on a device."""

from __future__ import annotations

import importlib.util

import torch

_LEAST_CAPABILITY = (8, 0)
"""Ampere: the first with bfloat16 in its matrix units."""
_LEAST_FP8_CAPABILITY = (8, 9)
"""Ada: the first that Triton reads float8_e4m3fn on."""


def has_triton(device: torch.device) -> bool:
    """CUDA builds of torch bring Triton with them; elsewhere it is not looked for."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY


def has_fp8(device: torch.device) -> bool:
    """Whether those kernels take weights in fp8 there."""
    return has_triton(device) and torch.cuda.get_device_capability(device) >= _LEAST_FP8_CAPABILITY
