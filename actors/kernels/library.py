"""The C library with typed functions.

There is no library if it was not built at installation, or if the processor lacks the instructions.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
from pathlib import Path

import torch

_INPUTS_PER_ROW = {torch.bfloat16: 2, torch.float32: 1}
_POINTER, _COUNT, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


class Kernels:
    """The library's functions. They take addresses, where 0 means none.

    The functions check nothing: callers are responsible for shapes, dtypes, lifetimes and contiguous memory.
    """

    def __init__(self, library: ctypes.CDLL, gil_library: ctypes.PyDLL, name: str) -> None:
        """`gil_library` is the same library, called without releasing the interpreter's lock.

        It is for calls that take microseconds. If such a call released the lock, another thread would take
        the lock, and the call would have to wait until that thread releases it.
        """
        self.name = name
        """The instructions that the functions use: "avx512" or "avx2"."""
        library.phimoe_block_outputs.restype = _COUNT
        self.block_outputs: int = library.phimoe_block_outputs()
        """The number of outputs in a block of a packed weight."""
        self.coded_bound = library.phimoe_coded_bound
        """`coded_bound(num_blocks, K)` returns the largest number of bytes that `code` writes."""
        self.coded_bound.argtypes = [_COUNT] * 2
        self.coded_bound.restype = _COUNT
        self.code = library.phimoe_code
        """`code(numbers, num_blocks, K, out)` codes a weight in 12 bits per number and returns its size in
        bytes.

        numbers are bfloat16 [num_blocks, K / 2, block_outputs, 2].
        """
        self.code.argtypes = [_POINTER, _COUNT, _COUNT, _POINTER]
        self.code.restype = _COUNT
        self.linear = library.phimoe_linear
        """`linear(x, weight, bias, out, M, N, K, is_bf16, num_threads, num_bits, has_bf16_scales, group)`
        returns 0, or 3 if there is no memory.

        bias is float32. The last three arguments are as in `experts`.
        """
        self.linear.argtypes = [_POINTER] * 4 + [_COUNT] * 3 + [_INT] * 4 + [_COUNT]
        self.linear.restype = _INT
        self.experts = library.phimoe_experts
        """`experts(rows, expert_ids, weights, slots, gate_up, down, out, num_tokens, num_choices, num_slots,
        num_results, hidden_size, width, is_bf16, num_threads, num_bits, has_bf16_scales, gate_up_group,
        down_group)` returns 0, 1 for a foreign expert, 2 for a wrong num_results, or 3 if there is no memory.

        num_bits is 0 for weights that `pack` has packed, and 8 or 4 for weights of `pack_quantized`. The two
        groups are the numbers of inputs per scale.
        """
        self.experts.argtypes = [_POINTER] * 7 + [_COUNT] * 6 + [_INT] * 4 + [_COUNT] * 2
        self.experts.restype = _INT
        self.can_attend = library.phimoe_can_attend
        """`can_attend(head_dim)` returns whether `decode_attention` takes heads of this dimension."""
        self.can_attend.argtypes = [_COUNT]
        self.can_attend.restype = _INT
        self.decode_attention = library.phimoe_decode_attention
        """`decode_attention(qkv, cos, sin, keys, values, slots, block_table, starts, ends, out,
        num_sequences, num_heads, num_groups, head_dim, table_stride, block_size, is_bf16, num_threads)`
        returns nothing. The structure `attention_task` of `c/tasks.h` describes the arguments."""
        self.decode_attention.argtypes = [_POINTER] * 10 + [_COUNT] * 6 + [_INT] * 2
        self.decode_attention.restype = None
        self.layer_norm = library.phimoe_layer_norm
        """`layer_norm(x, gain, shift, out, num_rows, hidden_size, eps, is_bf16)` returns nothing. hidden_size
        is a multiple of 16."""
        self.layer_norm.argtypes = [_POINTER] * 4 + [_COUNT] * 2 + [ctypes.c_float, _INT]
        self.layer_norm.restype = None
        self.sample = library.phimoe_sample
        """`sample(logits, filters, token_ids, num_rows, vocabulary, num_threads)` returns 0, or 3 if there is
        no memory.

        logits are float32. filters are float64 [num_rows, 5]: temperature, top_k, top_p, min_p, draw.
        """
        self.sample.argtypes = [_POINTER] * 3 + [_COUNT] * 2 + [_INT]
        self.sample.restype = _INT
        self.fill_rows = gil_library.phimoe_fill_rows
        """`fill_rows(rows, step)` returns 0, or 4 if a token is not in the vocabulary.

        It takes the addresses of a `RowsTask` and a `LayerTask` of `actors.kernels.layer`, and writes the
        rows to the memory that the latter points to.
        """
        self.fill_rows.argtypes = [_POINTER] * 2
        self.fill_rows.restype = _INT
        self.decode_head = library.phimoe_decode_head
        """`decode_head(task)` returns 0, or 3 if there is no memory. It takes the address of a `HeadTask` of
        `actors.kernels.layer`."""
        self.decode_head.argtypes = [_POINTER]
        self.decode_head.restype = _INT
        self.decode_layer = library.phimoe_decode_layer
        """`decode_layer(step, layer)` returns 0, or 3 if there is no memory. It takes the addresses of a
        `LayerTask` and a `LayerWeights` of `actors.kernels.layer`."""
        self.decode_layer.argtypes = [_POINTER] * 2
        self.decode_layer.restype = _INT
        self.share_cores = library.phimoe_share_cores
        """`share_cores(num_own)` returns nothing. Of the num_threads of any call, `num_own` threads use this
        process's share of the cores. The other threads use only cores that would be idle."""
        self.share_cores.argtypes = [_INT]
        self.share_cores.restype = None
        self.decode_step = library.phimoe_decode_step
        """`decode_step(step, layers, num_layers, exchange, layer)` returns 0, 3 if there is no memory, or 16
        if it stopped within a layer's exchange.

        It takes the addresses of a `LayerTask`, of `num_layers` `LayerWeights`, of an `ExchangeTask` and of
        an int64, the number of the first layer to compute. Afterwards this is the number of the first layer
        that is not complete. If no layer is left, the rows x of the step are complete, too.
        """
        self.decode_step.argtypes = [_POINTER, _POINTER, _COUNT, _POINTER, _POINTER]
        self.decode_step.restype = _INT
        self.serve_links = library.phimoe_serve_links
        """`serve_links(task)` answers messages until anything but the plain case happens, and returns
        nothing. It takes the address of a `ServeTask` of `actors.kernels.serve`."""
        self.serve_links.argtypes = [_POINTER]
        self.serve_links.restype = None
        self.route = library.phimoe_route
        """`route(scores, num_tokens, num_experts, jitter, ids, weights, is_bf16)` returns nothing. It writes
        two int64 ids and two float32 weights per token."""
        self.route.argtypes = [_POINTER, _COUNT, _COUNT, ctypes.c_float, _POINTER, _POINTER, _INT]
        self.route.restype = None


def kernels_for(dtype: torch.dtype, num_inputs: int = 2) -> Kernels | None:
    """The library if it can compute products of this dtype with `num_inputs` inputs on this processor, else
    None."""
    kernels = load()
    if dtype not in _INPUTS_PER_ROW or num_inputs % _INPUTS_PER_ROW[dtype]:
        return None
    return kernels


def pack(kernels: Kernels, weight: torch.Tensor) -> torch.Tensor:
    """Return a copy of weight [N, K] in the order of the kernels.

    The order is [ceil(N / B), K / P, B, P] for blocks of B outputs, where outputs beyond N are zero. P inputs
    of an output lie together: 2 with bfloat16, 1 with float32. A bfloat16 weight is then coded in 12 bits per
    number, without loss (`c/coded.h`), and returned as bytes.
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
    """Return values [N, K] int8 and scales [N, K / C] in the order of the kernels (`c/quantized_body.h`).

    The result is bytes [ceil(N / B), K / C, -1] for blocks of B outputs, where outputs beyond N are zero. C
    is a multiple of 32, at most 256. scales are bfloat16 or float32, and num_bits is 8 or 4.
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
    """The four bytes [..., 4] of each lane, from its fields [..., 32 / num_bits]."""
    if num_bits == 8:
        return fields[..., [0, 2, 1, 3]].view(torch.uint8)
    low, high = fields[..., [0, 4, 1, 5]], fields[..., [2, 6, 3, 7]]
    return (low & 15 | high << 4).view(torch.uint8)


@functools.cache
def load() -> Kernels | None:
    """The library, or None if there is none for this processor."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_kernels{suffix}")
        if path.exists():
            library = ctypes.CDLL(str(path))
            library.phimoe_kernels.restype = ctypes.c_char_p
            name: bytes | None = library.phimoe_kernels()
            return None if name is None else Kernels(library, ctypes.PyDLL(str(path)), name.decode())
    return None
