"""Compiles every Triton kernel for an H100 (sm_90) without a GPU, in the sizes of two presets; launches nothing.

`python -m tests.gpu.compile_kernels` prints one line per kernel: shared memory in bytes and what the launcher asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.presets import preset_config
from actors.checkpoint.weights import Norm
from actors.dense.batch import build_batch
from actors.dense.rope import RotaryEmbedding
from actors.expert.experts import slot_table
from actors.gpu.add_norm import add_norm
from actors.gpu.experts import few_rows
from actors.gpu.paged_attention import PagedAttention
from actors.gpu.route import route
from actors.gpu_check.build import BLOCK_SIZE, Rows, last_token

CPU = torch.device("cpu")
H100 = GPUTarget("cuda", 90, 32)


class NoDevice:
    """What Triton asks its driver before it compiles."""

    def get_current_target(self) -> GPUTarget:
        return H100

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_only(kernel: Any, grid: tuple[int, ...]) -> Callable[..., None]:
    """In place of a launch."""

    def launch(*args: Any, **options: Any) -> None:
        compiled = kernel.warmup(*args, grid=grid, **options)
        metadata = compiled.metadata
        assert "cubin" in compiled.asm
        print(
            f"{kernel.__name__}: {metadata.shared} bytes, {metadata.num_warps} warps, {metadata.num_stages} stages"
        )

    return launch


def compile_all(config: ModelConfig, dtype: torch.dtype) -> None:
    """By the launchers, over tensors on a CPU."""
    rows = Rows(dataclasses.replace(config, num_layers=1))
    chunks = [last_token(rows.sequence(num_tokens)) for num_tokens in (300, 20)]
    batch = build_batch(chunks, BLOCK_SIZE, config.sliding_window, CPU)
    tables = RotaryEmbedding(config.rope, config.head_dim, CPU).tables(batch.positions, batch.is_long)
    width = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    PagedAttention(config)(rows.cache(dtype, CPU), 0, batch, torch.zeros(2, width, dtype=dtype), tables)
    route(torch.zeros(2, config.num_experts, dtype=dtype), 0.01)
    hidden, inner, num_experts = config.hidden_size, config.intermediate_size, config.num_experts
    x, one = torch.zeros(2, hidden, dtype=dtype), torch.zeros(hidden, dtype=dtype)
    add_norm(x, x, Norm(one, one), 1e-5)
    # Nobody reads them: sizes and address are enough.
    number = torch.zeros(1, 1, 1, dtype=dtype)
    stacks = number.expand(num_experts, 2 * inner, hidden), number.expand(num_experts, hidden, inner)
    slots = slot_table(range(num_experts), num_experts)
    for num_tokens in (1, 64, 256):
        ids, weights = torch.zeros(num_tokens, 2, dtype=torch.int64), torch.ones(num_tokens, 2)
        few_rows(torch.zeros(num_tokens, hidden, dtype=dtype), ids, weights, 2 * num_tokens, slots, stacks)


def main() -> None:
    driver.set_active(NoDevice())
    JITFunction.__getitem__ = compile_only
    compile_all(preset_config("phi-3.5-moe"), torch.bfloat16)
    compile_all(preset_config("tiny"), torch.float32)


if __name__ == "__main__":
    main()
