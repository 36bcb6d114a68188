"""The C library behind a typed face. Where it was not built, or the processor lacks the instructions, there is none."""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
from pathlib import Path

import torch

BLOCK_OUTPUTS = 64
"""Outputs of one block of a packed weight; linear.c has the same number."""

_INPUTS_PER_ROW = {torch.bfloat16: 2, torch.float32: 1}


class Kernels:
    """Functions that take addresses. Callers see to shapes, dtypes and lifetimes."""

    def __init__(self, library: ctypes.CDLL) -> None:
        support = {torch.bfloat16: library.phimoe_has_bfloat16, torch.float32: library.phimoe_has_float32}
        self.dtypes = frozenset(dtype for dtype, is_supported in support.items() if is_supported())
        """What this processor can compute."""
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        self.linear = library.phimoe_linear
        self.linear.argtypes = [pointer] * 4 + [count] * 3 + [ctypes.c_int] * 2
        self.linear.restype = None
        """(x, weight, bias, out, M, N, K, is_bf16, num_threads); bias is float32 or 0."""
        self.grouped_linear = library.phimoe_grouped_linear
        self.grouped_linear.argtypes = [pointer] * 6 + [count] * 3 + [ctypes.c_int] * 2
        self.grouped_linear.restype = None
        """(x, starts, weights, bias, scales, out, num_groups, N, K, is_bf16, num_threads)."""


def kernels_for(dtype: torch.dtype, num_inputs: int) -> Kernels | None:
    """The library if it can compute products of this dtype with so many inputs on this processor."""
    kernels = _load()
    if kernels is None or dtype not in kernels.dtypes or num_inputs % _INPUTS_PER_ROW[dtype]:
        return None
    return kernels


def pack(weight: torch.Tensor) -> torch.Tensor:
    """weight [N, K] in the kernels' order: [ceil(N / 64), K / P, 64, P], absent outputs zero; always a copy."""
    num_outputs, num_inputs = weight.shape
    per_row = _INPUTS_PER_ROW[weight.dtype]
    num_blocks = -(-num_outputs // BLOCK_OUTPUTS)
    packed = weight.new_zeros((num_blocks, num_inputs // per_row, BLOCK_OUTPUTS, per_row))
    whole = num_outputs // BLOCK_OUTPUTS
    split = weight[: whole * BLOCK_OUTPUTS].view(whole, BLOCK_OUTPUTS, num_inputs // per_row, per_row)
    packed[:whole] = split.transpose(1, 2)
    if whole < num_blocks:
        rest = weight[whole * BLOCK_OUTPUTS :].view(-1, num_inputs // per_row, per_row)
        packed[whole, :, : rest.shape[0]] = rest.transpose(0, 1)
    return packed


@functools.cache
def _load() -> Kernels | None:
    folder = Path(__file__).parent
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = folder / f"_linear{suffix}"
        if path.exists():
            _share_openmp()
            return Kernels(ctypes.CDLL(str(path)))
    return None


def _share_openmp() -> None:
    """Let the library find the OpenMP runtime that torch has loaded: a second one would be a second pool of threads.

    Where torch brings none under that name, the kernels run on one thread.
    """
    root = Path(torch.__file__).parent
    for folder in (root / "lib", root.parent / "torch.libs"):
        for path in sorted(folder.glob("libgomp*")):
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            return
