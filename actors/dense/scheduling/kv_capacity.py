"""How many KV blocks a dense actor gets, and how long a sequence may be. Everything but reading the free
memory is pure.

Without --kv-cache-bytes the cache takes a share of the memory that is free once the weights are loaded, but
no more than all sequences could use at their greatest length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from actors.errors import CapacityError

_CPU_SHARE = 0.5
_CPU_MAX_BYTES = 4 * 2**30
"""The operating system assigns pages when they are first written, so this is a bound and not a cost."""
_CUDA_SHARE = 0.85
"""The rest is for activations, the exchange's buffers and fragmentation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """What fits into the cache."""

    num_blocks: int
    max_model_len: int
    """Greatest length of prompt plus output, in tokens; one sequence of this length fits the cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What the model and the operator ask for."""

    model_limit: int
    """The model's max_position_embeddings, in tokens."""
    max_model_len: int | None
    """The length in tokens that the operator asked for. None means as much as the model allows and the memory
    holds."""
    max_num_sequences: int
    block_size: int
    bytes_per_token: int


def plan_capacity(demand: Demand, cache_bytes: int, is_fixed: bool) -> Capacity:
    """Blocks that fit `cache_bytes`, at most as many as the sequences can use unless `is_fixed`.

    Raises CapacityError if `max_model_len` exceeds the model's limit or does not fit.
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
    """Bytes that the KV cache may take if the operator sets no size."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * _CUDA_SHARE)
    with open("/proc/meminfo") as lines:
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return min(_CPU_MAX_BYTES, int(available * _CPU_SHARE))
