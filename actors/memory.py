"""Measures the memory that this process holds for itself, and gives freed memory back to the system."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch


def memory_bytes(device: torch.device) -> int:
    """Return anonymous resident bytes on a CPU, or bytes allocated on the device on CUDA.

    Pages of libraries and of mapped files are not counted, since the system takes them back when it needs
    them. The kernel keeps both numbers ready (proc(5), statm), so reading them takes the same time for any
    amount of memory; smaps_rollup would walk all page tables.
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    resident, shared = (int(field) for field in Path("/proc/self/statm").read_text().split()[1:3])
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def release_free_memory() -> None:
    """Give freed heap memory back to the system, if the C library can do that.

    Loading frees a large temporary tensor for every tensor that it keeps, and the allocator would keep those
    gaps.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
