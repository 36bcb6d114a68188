"""Whether the weights fit into memory, and how many keys and values fit beside them.

The rules are those that the actors follow themselves.
"""

from __future__ import annotations

import math

from cluster.commands.plan.hardware import Hardware
from cluster.commands.plan.shape import Shape
from cluster.commands.plan.step import Layout

GPU_CACHE_SHARE = 0.85
CPU_CACHE_SHARE = 0.5
CPU_MAX_CACHE_BYTES = 4 * 2**30
"""Equal to the constants of `actors.dense.scheduling.kv_capacity`, which imports torch; a test compares
them."""
EXPERT_SHARE = 0.9
"""Share of an expert actor's memory that its weights may take. The rest holds rows, buffers of the exchange
and fragmentation."""
BLOCK_TOKENS = 16
"""The default of `block_size`."""


def cache_tokens(shape: Shape, hardware: Hardware, layout: Layout) -> int:
    """Tokens whose keys and values one dense actor can hold; 0 if the weights of some actor do not fit.

    If each actor has a GPU: 2 Pa + KV <= Ca and 2 Pe <= Ce (MegaScale-Infer, equations 7 and 8, with P
    weights of 2 bytes). On a CPU host all actors share the memory.
    """
    slots = math.ceil(shape.num_experts * layout.expert_replicas / max(1, layout.expert_actors))
    expert_bytes = slots * shape.num_layers * shape.expert_bytes(hardware.bf16_weight_share)
    dense_bytes = shape.dense_bytes(hardware.bf16_weight_share)
    if hardware.kind == "cpu":
        total = dense_bytes * layout.dense_actors + expert_bytes * max(1, layout.expert_actors)
        free = hardware.memory_bytes - total
        num_bytes = min(CPU_MAX_CACHE_BYTES, free * CPU_CACHE_SHARE)
    else:
        if layout.expert_actors and expert_bytes > hardware.memory_bytes * EXPERT_SHARE:
            return 0
        held = dense_bytes + (0 if layout.expert_actors else expert_bytes)
        num_bytes = (hardware.memory_bytes - held) * GPU_CACHE_SHARE
    return max(0, int(num_bytes // shape.kv_bytes_per_token))


def cache_sequences(num_tokens: int, context_tokens: int) -> int:
    """Sequences of `context_tokens` tokens that fit into a cache of `num_tokens` tokens, in whole blocks."""
    return num_tokens // BLOCK_TOKENS // math.ceil(context_tokens / BLOCK_TOKENS)
