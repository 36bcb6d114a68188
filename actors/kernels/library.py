"""The C library behind a typed face. Where it was not built, or the processor lacks the instructions, there is none."""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
from pathlib import Path

import torch

_INPUTS_PER_ROW = {torch.bfloat16: 2, torch.float32: 1}
_POINTER, _COUNT, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


class Kernels:
    """Functions that take addresses (0 is none). Callers see to shapes, dtypes, lifetimes and contiguous memory."""

    def __init__(self, library: ctypes.CDLL, brief: ctypes.PyDLL, name: str) -> None:
        """brief: the library as it is called without giving up the interpreter's lock. Another thread would take it, and what takes
        microseconds would wait for that thread's turn to end."""
        self.name = name
        """The instructions that they use: "avx512" or "avx2"."""
        library.phimoe_block_outputs.restype = _COUNT
        self.block_outputs: int = library.phimoe_block_outputs()
        """Outputs of one block of a packed weight."""
        self.coded_bound = library.phimoe_coded_bound
        """(num_blocks, K) -> the most bytes that `code` writes."""
        self.coded_bound.argtypes = [_COUNT] * 2
        self.coded_bound.restype = _COUNT
        self.code = library.phimoe_code
        """(numbers, num_blocks, K, out) -> bytes of the coded weight; numbers are bfloat16 [num_blocks, K / 2, block_outputs, 2]."""
        self.code.argtypes = [_POINTER, _COUNT, _COUNT, _POINTER]
        self.code.restype = _COUNT
        self.linear = library.phimoe_linear
        """(x, weight, bias, out, M, N, K, is_bf16, num_threads, num_bits, has_bf16_scales, group) -> 0, 3 out of memory; bias
        is float32, and the last three are as `experts` takes them."""
        self.linear.argtypes = [_POINTER] * 4 + [_COUNT] * 3 + [_INT] * 4 + [_COUNT]
        self.linear.restype = _INT
        self.experts = library.phimoe_experts
        """(rows, expert_ids, weights, slots, gate_up, down, out, num_tokens, num_choices, num_slots, num_results,
        hidden_size, width, is_bf16, num_threads, num_bits, has_bf16_scales, gate_up_group, down_group) -> 0, 1 for a
        foreign expert, 2 for a wrong num_results, 3 out of memory. num_bits is 0 for weights that `pack` has packed, 8
        or 4 for those of `pack_quantized`, with so many inputs a scale."""
        self.experts.argtypes = [_POINTER] * 7 + [_COUNT] * 6 + [_INT] * 4 + [_COUNT] * 2
        self.experts.restype = _INT
        self.can_attend = library.phimoe_can_attend
        """(head_dim) -> whether `decode_attention` takes such heads."""
        self.can_attend.argtypes = [_COUNT]
        self.can_attend.restype = _INT
        self.decode_attention = library.phimoe_decode_attention
        """(qkv, cos, sin, keys, values, slots, block_table, starts, ends, out, num_sequences, num_heads, num_groups,
        head_dim, table_stride, block_size, is_bf16, num_threads)."""
        self.decode_attention.argtypes = [_POINTER] * 10 + [_COUNT] * 6 + [_INT] * 2
        self.decode_attention.restype = None
        self.layer_norm = library.phimoe_layer_norm
        """(x, gain, shift, out, num_rows, hidden_size, eps, is_bf16); hidden_size is a multiple of 16."""
        self.layer_norm.argtypes = [_POINTER] * 4 + [_COUNT] * 2 + [ctypes.c_float, _INT]
        self.layer_norm.restype = None
        self.sample = library.phimoe_sample
        """(logits, filters, token_ids, num_rows, vocabulary, num_threads) -> 0, 3 out of memory; logits are float32, filters
        float64 [num_rows, 5]: temperature, top_k, top_p, min_p, draw."""
        self.sample.argtypes = [_POINTER] * 3 + [_COUNT] * 2 + [_INT]
        self.sample.restype = _INT
        self.fill_rows = brief.phimoe_fill_rows
        """(rows, step) -> 0, 4 for a token that is not in the vocabulary; addresses of the structures `RowsTask` and `LayerTask`
        of `actors.kernels.layer`, which says where the rows go."""
        self.fill_rows.argtypes = [_POINTER] * 2
        self.fill_rows.restype = _INT
        self.decode_head = library.phimoe_decode_head
        """(task) -> 0, 3 out of memory; the structure `HeadTask` of `actors.kernels.layer`."""
        self.decode_head.argtypes = [_POINTER]
        self.decode_head.restype = _INT
        self.decode_layer = library.phimoe_decode_layer
        """(step, layer) -> 0, 3 out of memory; addresses of the structures of `actors.kernels.layer`."""
        self.decode_layer.argtypes = [_POINTER] * 2
        self.decode_layer.restype = _INT
        self.share_cores = library.phimoe_share_cores
        """(num_own): of num_threads in any call, so many are this process's own; the rest take only idle cores."""
        self.share_cores.argtypes = [_INT]
        self.share_cores.restype = None
        self.decode_step = library.phimoe_decode_step
        """(step, layers, num_layers, exchange, layer) -> 0, 3 out of memory, 16 stopped within a layer's exchange; layers from
        `layer` on, which is then the first that is not complete; x is complete if none is left. Structures of
        `actors.kernels.layer` and `.exchange`."""
        self.decode_step.argtypes = [_POINTER, _POINTER, _COUNT, _POINTER, _POINTER]
        self.decode_step.restype = _INT
        self.serve_links = library.phimoe_serve_links
        """(task): a structure of `actors.kernels.serve`; returns when something is not as usual."""
        self.serve_links.argtypes = [_POINTER]
        self.serve_links.restype = None
        self.route = library.phimoe_route
        """(scores, num_tokens, num_experts, jitter, ids, weights, is_bf16)."""
        self.route.argtypes = [_POINTER, _COUNT, _COUNT, ctypes.c_float, _POINTER, _POINTER, _INT]
        self.route.restype = None


def kernels_for(dtype: torch.dtype, num_inputs: int = 2) -> Kernels | None:
    """The library if it can compute products of this dtype with so many inputs on this processor."""
    kernels = load()
    if dtype not in _INPUTS_PER_ROW or num_inputs % _INPUTS_PER_ROW[dtype]:
        return None
    return kernels


def pack(kernels: Kernels, weight: torch.Tensor) -> torch.Tensor:
    """weight [N, K] in the kernels' order: [ceil(N / B), K / P, B, P] for B outputs a block, absent ones zero.

    P inputs of an output lie together: 2 of bfloat16, 1 of float32. Those of bfloat16 are then coded in 12 bits a number, to
    the bit (coded.h), as bytes. Always a copy.
    """
    num_outputs, num_inputs = weight.shape
    per_row, per_block = _INPUTS_PER_ROW[weight.dtype], kernels.block_outputs
    num_blocks = -(-num_outputs // per_block)
    packed = weight.new_zeros((num_blocks, num_inputs // per_row, per_block, per_row))
    whole = num_outputs // per_block
    split = weight[: whole * per_block].view(whole, per_block, num_inputs // per_row, per_row)
    packed[:whole] = split.transpose(1, 2)
    if whole < num_blocks:
        rest = weight[whole * per_block :].view(-1, num_inputs // per_row, per_row)
        packed[whole, :, : rest.shape[0]] = rest.transpose(0, 1)
    if weight.dtype != torch.bfloat16:
        return packed
    coded = torch.empty(kernels.coded_bound(num_blocks, num_inputs), dtype=torch.uint8)
    num_bytes = kernels.code(packed.data_ptr(), num_blocks, num_inputs, coded.data_ptr())
    del packed
    return coded[:num_bytes].clone()


def pack_quantized(
    kernels: Kernels, values: torch.Tensor, scales: torch.Tensor, num_bits: int
) -> torch.Tensor:
    """values [N, K] int8 and scales [N, K / C] in the kernels' order (quantized_body.h), as bytes [ceil(N / B), K / C, -1].

    C is a multiple of 32, at most 256; scales are bfloat16 or float32; num_bits is 8 or 4. Absent outputs are zero.
    """
    assert values.dtype == torch.int8
    (num_outputs, num_inputs), num_groups = values.shape, scales.shape[1]
    per_block, per_lane = kernels.block_outputs, 32 // num_bits
    num_blocks, scale_bytes = -(-num_outputs // per_block), scales.element_size() * per_block
    group = num_inputs // num_groups
    packed = torch.zeros(
        (num_blocks, num_groups, scale_bytes + group * per_block * num_bits // 8), dtype=torch.uint8
    )
    for block in range(num_blocks):
        rows = slice(block * per_block, min((block + 1) * per_block, num_outputs))
        count = rows.stop - rows.start
        packed[block, :, :scale_bytes].view(scales.dtype)[:, :count] = scales[rows].T
        lanes = packed[block, :, scale_bytes:].view(num_groups, group // per_lane, per_block, 4)[:, :, :count]
        fields = values[rows].view(count, num_groups, group // per_lane, per_lane).permute(1, 2, 0, 3)
        lanes.copy_(_lanes(fields, num_bits))
    return packed


def _lanes(fields: torch.Tensor, num_bits: int) -> torch.Tensor:
    """The four bytes of each lane [..., 4] of its fields [..., 32 / num_bits]."""
    if num_bits == 8:
        return fields[..., [0, 2, 1, 3]].view(torch.uint8)
    low, high = fields[..., [0, 4, 1, 5]], fields[..., [2, 6, 3, 7]]
    return (low & 15 | high << 4).view(torch.uint8)


@functools.cache
def load() -> Kernels | None:
    """The library, None where there is none for this processor."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_kernels{suffix}")
        if path.exists():
            library = ctypes.CDLL(str(path))
            library.phimoe_kernels.restype = ctypes.c_char_p
            name: bytes | None = library.phimoe_kernels()
            return None if name is None else Kernels(library, ctypes.PyDLL(str(path)), name.decode())
    return None
