"""How many KV blocks a dense actor gets, and how long a sequence may be. Pure but for reading the free memory.

Without --kv-cache-bytes the cache takes a share of the memory that is free once the weights are loaded, but no more
than all sequences at their longest could use.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from actors.errors import CapacityError

_CPU_SHARE = 0.5
_CPU_MAX_BYTES = 4 * 2**30
"""Pages are taken as they are written, so this is a bound, not a cost."""
_CUDA_SHARE = 0.85
"""The rest is for activations, the exchange's buffers and fragmentation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """What fits."""

    num_blocks: int
    max_model_len: int
    """Longest prompt plus output, in tokens; one such sequence fits the cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What is asked for."""

    model_limit: int
    """max_position_embeddings."""
    max_model_len: int | None
    """What the operator asked for; None takes what the model allows and the memory holds."""
    max_num_sequences: int
    block_size: int
    bytes_per_token: int


def plan_capacity(demand: Demand, cache_bytes: int, is_fixed: bool) -> Capacity:
    """Blocks for a cache of cache_bytes, of which less is taken where less can be used, unless it is_fixed.

    Raises CapacityError where the length that was asked for exceeds the model's or does not fit.
    """
    asked = demand.max_model_len
    if asked is not None and asked > demand.model_limit:
        raise CapacityError("max_model_len", str(asked), f"at most the model's {demand.model_limit}")
    block_bytes = demand.block_size * demand.bytes_per_token
    num_blocks = cache_bytes // block_bytes
    max_model_len = min(asked or demand.model_limit, num_blocks * demand.block_size)
    if max_model_len < (asked or 1):
        needed = -(-(asked or 1) // demand.block_size) * block_bytes
        raise CapacityError(
            "kv_cache_bytes", str(cache_bytes), f"at least {needed} for one sequence of {asked or 1} tokens"
        )
    if not is_fixed:
        useful = demand.max_num_sequences * -(-max_model_len // demand.block_size)
        num_blocks = min(num_blocks, useful)
    return Capacity(num_blocks=num_blocks, max_model_len=max_model_len)


def free_cache_bytes(device: torch.device) -> int:
    """Bytes that the KV cache may take when nobody says how many."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * _CUDA_SHARE)
    with open("/proc/meminfo") as lines:
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return min(_CPU_MAX_BYTES, int(available * _CPU_SHARE))
