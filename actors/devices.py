"""Tells whether the project's Triton kernels can be used on a device."""

from __future__ import annotations

import importlib.util

import torch

_LEAST_CAPABILITY = (8, 0)
"""Ampere, the first generation with bfloat16 in its matrix units."""
_LEAST_FP8_CAPABILITY = (8, 9)
"""Ada, the first generation on which Triton reads float8_e4m3fn."""


def has_triton(device: torch.device) -> bool:
    """Return whether Triton is installed and the device is a GPU of compute capability 8.0 or more.

    CUDA builds of torch include Triton; for other devices nothing is searched.
    """
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY


def has_fp8(device: torch.device) -> bool:
    """Return whether the Triton kernels can read weights in fp8 on this device."""
    return has_triton(device) and torch.cuda.get_device_capability(device) >= _LEAST_FP8_CAPABILITY
