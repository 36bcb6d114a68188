"""How much memory this process holds for itself."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch


def memory_bytes(device: torch.device) -> int:
    """Private resident bytes on a CPU, bytes allocated on the device on CUDA.

    Shared pages, those of libraries and of files that other processes map too, are nobody's in particular.
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    fields = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(field[1]) * 1024 for field in fields if field[0].startswith("Private_"))


def release_free_memory() -> None:
    """Give freed heap back to the system, where the C library can do that.

    Loading frees a large temporary for every tensor that it keeps; the allocator would hold on to the gaps.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
