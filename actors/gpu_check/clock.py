"""Measures durations on a device, and the device's peak rates."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from actors.gpu_check.work import Device

_WARM_UPS = 3
_GIGA = 10**9


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(work: Callable[[], object], device: torch.device, num_repeats: int) -> float:
    """Return the median time of `work` after warm-ups, from its call until the device has finished."""
    for _ in range(_WARM_UPS):
        work()
    seconds = []
    for _ in range(num_repeats):
        synchronize(device)
        began = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    return median(seconds)


def measure_device(
    dtype: torch.dtype, device: torch.device, bandwidth_gbps: float | None, tflops: float | None
) -> Device:
    """Return the device's rates, and measure those that are not given.

    The bandwidth is that of a copy (bytes read and written), in 10^9 bytes per second. The rate of operations
    is that of a product of square matrices of random numbers, in 10^12 per second.
    """
    return Device(
        bytes_per_second=_copy_rate(device) if bandwidth_gbps is None else bandwidth_gbps * _GIGA,
        flops=_product_rate(dtype, device) if tflops is None else tflops * 1000 * _GIGA,
    )


def _copy_rate(device: torch.device) -> float:
    num_bytes = 4 * 2**30 if device.type == "cuda" else 2**27
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * num_bytes / median_seconds(lambda: target.copy_(source), device, 10)


def _product_rate(dtype: torch.dtype, device: torch.device) -> float:
    size = 8192 if device.type == "cuda" else 512
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2.0 * size**3 / median_seconds(lambda: left @ right, device, 10)
