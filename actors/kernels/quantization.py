"""The structure `quantization`. Its fields are those of `c/tasks.h`, in the same order."""

from __future__ import annotations

import ctypes


class Quantization(ctypes.Structure):
    """How a weight is packed. With num_bits 0 it is not quantized and has the dtype of the rows."""

    _fields_ = (("group", ctypes.c_int64), ("num_bits", ctypes.c_int), ("has_bf16_scales", ctypes.c_int))
