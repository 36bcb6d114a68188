"""Compiles every Triton kernel for an H100 (sm_90) without a GPU, in the sizes of two presets, and launches
none.

`python -m tests.gpu.compile_kernels` prints one line per kernel: its shared memory in bytes, warps and
stages.
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
from actors.checkpoint.dummy.presets import preset_config
from actors.checkpoint.weights import Norm
from actors.dense.batch import build_batch
from actors.dense.layers.paged_attention import PagedAttention
from actors.dense.layers.rope import RotaryEmbedding
from actors.expert.experts import slot_table
from actors.gpu.add_norm import add_norm
from actors.gpu.attention.merge import merge
from actors.gpu.experts.one_token import one_token
from actors.gpu.experts.products import products
from actors.gpu.experts.sort import sort_entries
from actors.gpu.experts.stacks import Stack, Stacks
from actors.gpu.experts.weigh import weigh, weigh_and_add
from actors.gpu.linear import one_row
from actors.gpu.norm_and_route import norm_and_route
from actors.gpu.route import route
from actors.gpu_check.build import BLOCK_SIZE, Rows, last_token

CPU = torch.device("cpu")
H100 = GPUTarget("cuda", 90, 32)


class NoDevice:
    """Answers the questions that Triton asks its driver before it compiles."""

    def get_current_target(self) -> GPUTarget:
        return H100

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_only(kernel: Any, grid: tuple[int, ...]) -> Callable[..., None]:
    """Return a function that compiles the kernel and prints a line, in place of a launch."""

    def launch(*args: Any, **options: Any) -> None:
        compiled = kernel.warmup(*args, grid=grid, **options)
        metadata = compiled.metadata
        assert "cubin" in compiled.asm
        print(
            f"{kernel.__name__}: {metadata.shared} bytes, {metadata.num_warps} warps, "
            f"{metadata.num_stages} stages"
        )

    return launch


def compile_all(config: ModelConfig, dtype: torch.dtype) -> None:
    """Compile the kernels by calling their launchers with tensors on a CPU."""
    rows = Rows(dataclasses.replace(config, num_layers=1))
    chunks = [last_token(rows.sequence(num_tokens)) for num_tokens in (300, 20)]
    batch = build_batch(chunks, BLOCK_SIZE, config.sliding_window)
    tables = RotaryEmbedding(config.rope, config.head_dim, CPU).tables(batch.positions, batch.is_long)
    width = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    paged, cache = PagedAttention(config), rows.cache(dtype, CPU)
    queries = paged.rotate_and_write(cache, 0, batch, torch.zeros(2, width, dtype=dtype), tables)
    assert batch.decode is not None
    paged.attend(cache, 0, batch.decode, queries)
    route(torch.zeros(2, config.num_experts, dtype=dtype), 0.01)
    hidden, inner, num_experts = config.hidden_size, config.intermediate_size, config.num_experts
    x, one = torch.zeros(2, hidden, dtype=dtype), torch.zeros(hidden, dtype=dtype)
    norm, gate = Norm(one, one), torch.zeros(num_experts, hidden, dtype=dtype)
    add_norm(x, x, norm, 1e-5)
    norm_and_route(x, x, norm, 1e-5, gate, 0.01)
    one_row(x[:1], gate, None)
    parts, sums = torch.zeros(2, 4, 64, dtype=dtype), torch.zeros(4, 2)
    merge(parts, sums, parts, sums)
    # No kernel reads the tensors; their sizes and addresses are enough.
    number = torch.zeros(1, 1, 1, dtype=dtype)
    shapes = (num_experts, 2 * inner, hidden), (num_experts, hidden, inner)
    whole = Stacks(*(Stack(number.expand(shape)) for shape in shapes))
    compile_experts(whole, hidden, dtype, (1, 64, 128, 256, 2048))
    slots, ids, weights = (
        slot_table(range(num_experts), num_experts),
        torch.zeros(1, 2).long(),
        torch.ones(1, 2),
    )
    one_token(x[:1], ids, weights, slots, whole)
    for quantized, per_scale in ((torch.int8, 64), (torch.float8_e4m3fn, None)):
        stacks = []
        for shape in shapes:
            scales = torch.zeros(1, 1, 1, dtype=torch.bfloat16)
            num_scales = 1 if per_scale is None else shape[2] // per_scale
            stacks.append(Stack(number.to(quantized).expand(shape), scales.expand(*shape[:2], num_scales)))
        compile_experts(Stacks(*stacks), hidden, dtype, (1, 64, 128, 256, 2048))
        one_token(x[:1], ids, weights, slots, Stacks(*stacks))


def compile_experts(stacks: Stacks, hidden: int, dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    slots = slot_table(range(stacks.num_slots), stacks.num_slots)
    for num_tokens in sizes:
        ids, weights = torch.zeros(num_tokens, 2, dtype=torch.int64), torch.ones(num_tokens, 2)
        entries = sort_entries(ids, slots, stacks.num_slots)
        rows = torch.zeros(num_tokens, hidden, dtype=dtype)
        results = products(rows, entries, weights, 2 * num_tokens, entries.order, stacks)
        weigh(results, entries, weights)
        weigh_and_add(results, entries, weights)


def main() -> None:
    driver.set_active(NoDevice())
    JITFunction.__getitem__ = compile_only
    compile_all(preset_config("phi-3.5-moe"), torch.bfloat16)
    compile_all(preset_config("tiny"), torch.float32)


if __name__ == "__main__":
    main()
