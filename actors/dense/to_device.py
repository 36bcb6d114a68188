"""From the host to the device without waiting for what the device is doing."""

from __future__ import annotations

import torch


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor itself on a CPU, else a copy of what it holds now.

    A copy from ordinary memory would make the host wait for all work under way. One from pinned memory is queued, and torch
    keeps the pinned memory until it is done.
    """
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
