"""How many threads a product has: this process's share of the cores, and at most as many spare threads.

A spare thread runs only on cores that would be idle: it gives way to every other thread of the machine
(`c/pool.c`). While a dense actor of a host computes, its expert actors wait, and the other way round. With
spare threads, the process that computes also uses the cores of those that wait.
"""

from __future__ import annotations

import os

import torch

from actors.kernels.library import load

_num_spare = 0


def share_cores(num_own: int) -> None:
    """Set this process's share of the cores to `num_own`.

    Call this before the first product, from a thread that is bound to no core: spare threads may use the
    cores that the calling thread may use.
    """
    global _num_spare
    torch.set_num_threads(num_own)
    kernels = load()
    if kernels is not None:
        kernels.share_cores(num_own)
        _num_spare = max(0, min(num_own, len(os.sched_getaffinity(0)) - num_own))


def num_threads() -> int:
    """The number of threads that the kernels are given: own and spare threads together."""
    return torch.get_num_threads() + _num_spare
