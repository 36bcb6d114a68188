"""The structure `quantization`, as tasks.h has it."""

from __future__ import annotations

import ctypes


class Quantization(ctypes.Structure):
    """How a weight is packed; num_bits 0: it is as rows are."""

    _fields_ = (("group", ctypes.c_int64), ("num_bits", ctypes.c_int), ("has_bf16_scales", ctypes.c_int))
