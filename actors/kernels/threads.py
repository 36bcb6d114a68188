"""How many threads a product has: this process's share of the cores, and as many again that only take what would idle.

The processes of a host take turns: while a dense actor computes, its expert actors wait, and the other way round. A spare
thread gives way to every other thread of the machine (actors/kernels/c/pool.c), so whoever computes has the idle cores too.
"""

from __future__ import annotations

import os

import torch

from actors.kernels.library import load

_num_spare = 0


def share_cores(num_own: int) -> None:
    """This process's share is so many cores. Call it before the first product, from a thread that is bound to no core."""
    global _num_spare
    torch.set_num_threads(num_own)
    kernels = load()
    if kernels is not None:
        kernels.share_cores(num_own)
        _num_spare = max(0, min(num_own, len(os.sched_getaffinity(0)) - num_own))


def num_threads() -> int:
    """What the kernels are given as num_threads."""
    return torch.get_num_threads() + _num_spare
