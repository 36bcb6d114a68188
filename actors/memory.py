"""How much memory this process holds for itself."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch


def memory_bytes(device: torch.device) -> int:
    """Anonymous resident bytes on a CPU, bytes allocated on the device on CUDA.

    Pages of libraries and of mapped files are not counted: the kernel takes them back when it needs them. The kernel keeps both
    numbers (proc(5), statm), so that asking costs the same however much there is; smaps_rollup would walk all page tables.
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    resident, shared = (int(field) for field in Path("/proc/self/statm").read_text().split()[1:3])
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def release_free_memory() -> None:
    """Give freed heap back to the system, where the C library can do that.

    Loading frees a large temporary for every tensor that it keeps; the allocator would hold on to the gaps.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
