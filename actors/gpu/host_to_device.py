"""Copies tensors from the host to the device without waiting for the work that the device does."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch

_NUM_PLACES = 8
"""Number of copies of a thread that may be in progress at the same time."""
_LEAST_BYTES = 1 << 16


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor itself if the device is a CPU, else a copy of its present content.

    A copy from ordinary memory would make the host wait for all work that is queued. A copy from pinned
    memory is only queued itself. The pinned memory is kept and used again in turn, since allocating it takes
    longer than the copy.
    """
    if device.type == "cpu":
        return tensor
    return _staging.copy(tensor, device)


@dataclass(slots=True)
class _Place:
    """Pinned memory, and the event that the last copy from it has finished."""

    memory: torch.Tensor
    done: torch.cuda.Event


class _Staging(threading.local):
    """The pinned memory of one thread."""

    def __init__(self) -> None:
        self._places: list[_Place | None] = [None] * _NUM_PLACES
        self._next = 0

    def copy(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        num_bytes = tensor.nbytes
        place = self._places[self._next]
        if place is None or len(place.memory) < num_bytes:
            size = max(_LEAST_BYTES, 1 << max(0, num_bytes - 1).bit_length())
            memory = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            place = self._places[self._next] = _Place(memory, done)
        self._next = (self._next + 1) % _NUM_PLACES
        place.done.synchronize()
        pinned = place.memory[:num_bytes].view(tensor.dtype).view(tensor.shape)
        pinned.copy_(tensor)
        there = pinned.to(device, non_blocking=True)
        place.done.record(torch.cuda.current_stream(device))
        return there


_staging = _Staging()
