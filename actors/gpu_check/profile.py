"""Measures how much of a step's time on the device each kernel takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from actors.gpu_check.clock import synchronize

_WARM_UPS = 3
_MOST_KERNELS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelTime:
    """All launches of one kernel in a step."""

    name: str
    num_launches: int
    seconds: float


def kernel_times(work: Callable[[], object], device: torch.device) -> list[KernelTime]:
    """Return the kernels that take longest, the longest first; on a CPU the list is empty."""
    if device.type != "cuda":
        return []
    for _ in range(_WARM_UPS):
        work()
    synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        work()
        synchronize(device)
    kernels = [
        KernelTime(name=event.key, num_launches=event.count, seconds=event.self_device_time_total / 1e6)
        for event in recorded.key_averages()
        if event.device_type == DeviceType.CUDA
    ]
    return sorted(kernels, key=lambda kernel: -kernel.seconds)[:_MOST_KERNELS]
