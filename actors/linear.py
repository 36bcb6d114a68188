"""y = x @ weight.T + bias, by the product that reads weights fastest on the device. It is chosen at load.

CPU with AVX-512 (bfloat16) or AVX2,     the project's own kernels (`actors.kernels`): the bits of a row's
bfloat16 or float32                      result do not depend on the other rows of the call
other CPU, if oneDNN takes the dtype     oneDNN's packed layout: up to twice as fast as F.linear at decode
                                         batch sizes
CUDA with Triton                         a kernel of the project for a single row, F.linear for more
otherwise                                F.linear

A quantized weight on a CPU is multiplied by the project's own kernels. Without them it is dequantized for
each call and multiplied by torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F

from actors.checkpoint.quantization import group_size
from actors.checkpoint.quantized_weight import QuantizedWeight, dequantize, from_words, quantize, to_words
from actors.devices import has_triton
from actors.kernels.layer import ProductWeights
from actors.kernels.library import Kernels, kernels_for, pack, pack_quantized
from actors.kernels.quantization import Quantization
from actors.kernels.threads import num_threads

Product: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""A function from x [rows, in], with at least one row, to y [rows, out] in x's dtype."""


def make_product(
    weight: torch.Tensor, bias: torch.Tensor | None = None, quantization: str | None = None
) -> Product:
    """Return the product with weight [out, in] and bias [out].

    On a CPU the product keeps its own copy of the weight, so callers should drop the original.
    `quantization`, if given, is a kind of `actors.checkpoint.quantization.KINDS` that CPUs serve; the weight
    is then quantized to it.
    """
    if quantization is not None:
        return _quantized(weight, bias, quantization)
    if weight.device.type != "cpu":
        return DeviceProduct(weight.contiguous(), bias)
    kernels = kernels_for(weight.dtype, weight.shape[1])
    if kernels is not None:
        return KernelProduct(kernels, weight, bias, weight.dtype)
    if _has_packed_products(weight.dtype):
        return _packed(torch.ops.mkldnn._reorder_linear_weight(weight, None), bias)
    return _plain(weight.clone(), bias)


def make_quantized_product(weight: QuantizedWeight) -> Product:
    """Return the product with a quantized weight [out, in], computed in float32 with torch's own operations.

    The product keeps the quantized weight; each call dequantizes it and drops the result.
    """
    dequantized = _dequantizer(weight)
    return lambda x: F.linear(x.float(), dequantized()).to(x.dtype)


def product_name(dtype: torch.dtype, device: torch.device, quantization: str | None = None) -> str:
    """Return the name of what `make_product` chooses, for people: "avx512", "avx2", "onednn" or "torch".

    With quantized weights (`actors.expert`) the name is "avx2 int8" or the like, on CUDA "triton int8".
    """
    if quantization is not None:
        if device.type != "cpu":
            return f"triton {quantization}"
        kernels = kernels_for(dtype)
        return f"{'torch' if kernels is None else kernels.name} {quantization}"
    if device.type != "cpu":
        return "torch"
    if (kernels := kernels_for(dtype)) is not None:
        return kernels.name
    return "onednn" if _has_packed_products(dtype) else "torch"


def _has_packed_products(dtype: torch.dtype) -> bool:
    """Return whether oneDNN takes this dtype; it refuses bfloat16 if the processor cannot convert it."""
    if not torch._C._has_mkldnn:
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def _quantized(weight: torch.Tensor, bias: torch.Tensor | None, kind: str) -> Product:
    quantized = quantize(weight, kind, group_size(kind, (weight.shape[1],)))
    kernels = kernels_for(weight.dtype, weight.shape[1])
    if kernels is not None:
        return KernelProduct(kernels, quantized, bias, weight.dtype)
    product = make_quantized_product(quantized)
    return product if bias is None else lambda x: product(x) + bias


def _dequantizer(weight: QuantizedWeight) -> Callable[[], torch.Tensor]:
    """Return a function that returns the weight [out, in] in float32."""
    num_inputs, num_bits = weight.values.shape[1], weight.num_bits
    scales = weight.scales.clone()
    if weight.values.dtype.is_floating_point:
        held = QuantizedWeight(weight.values.clone(), scales, num_bits)
        return lambda: dequantize(held)
    words = to_words(weight.values, num_bits)
    return lambda: dequantize(QuantizedWeight(from_words(words, num_bits, num_inputs), scales, num_bits))


def _plain(weight: torch.Tensor, bias: torch.Tensor | None) -> Product:
    return lambda x: F.linear(x, weight, bias)


class DeviceProduct:
    """A product on a device other than a CPU."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight, self._bias = weight, bias
        self._one_row = _one_row() if has_triton(weight.device) else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._one_row is not None and x.shape[0] == 1:
            return self._one_row(x, self.weight, self._bias)
        return F.linear(x, self.weight, self._bias)


def _one_row() -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]:
    from actors.gpu.linear import one_row

    return one_row


class KernelProduct:
    """A product by the project's kernels."""

    def __init__(
        self,
        kernels: Kernels,
        weight: torch.Tensor | QuantizedWeight,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        """`dtype` is the dtype of the rows, and of the weight if it is not quantized."""
        if isinstance(weight, QuantizedWeight):
            self._shape = weight.values.shape
            self._packed = pack_quantized(kernels, weight.values, weight.scales, weight.num_bits)
            has_bf16_scales = weight.scales.dtype == torch.bfloat16
            self._quantized = (weight.num_bits, int(has_bf16_scales), weight.num_inputs_per_scale)
        else:
            self._shape = weight.shape
            self._packed = pack(kernels, weight)
            self._quantized = (0, 0, 0)
        self._bias = None if bias is None else bias.float()
        self._is_bf16 = dtype == torch.bfloat16
        self._linear = kernels.linear
        self._addresses = (self._packed.data_ptr(), 0 if self._bias is None else self._bias.data_ptr())

    @property
    def weights(self) -> ProductWeights:
        """The weights in the form that the kernels of a layer take; valid as long as this object lives."""
        packed, bias = self._addresses
        num_bits, has_bf16_scales, group = self._quantized
        return ProductWeights(
            packed=packed, bias=bias, quantized=Quantization(group, num_bits, has_bf16_scales)
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        num_rows, (num_outputs, num_inputs) = x.shape[0], self._shape
        out = x.new_empty((num_rows, num_outputs))
        fault = self._linear(
            x.data_ptr(),
            *self._addresses,
            out.data_ptr(),
            num_rows,
            num_outputs,
            num_inputs,
            self._is_bf16,
            num_threads(),
            *self._quantized,
        )
        if fault:
            raise MemoryError(f"no memory for a product of {num_rows} rows with {num_inputs} inputs")
        return out


def _packed(weight: torch.Tensor, bias: torch.Tensor | None) -> Product:
    linear_pointwise = torch.ops.mkldnn._linear_pointwise

    def product(x: torch.Tensor) -> torch.Tensor:
        num_rows = x.shape[0]
        if num_missing := padded_rows(num_rows) - num_rows:
            x = F.pad(x, (0, 0, 0, num_missing))
        out: torch.Tensor = linear_pointwise(x, weight, bias, "none", [], "")
        return out[:num_rows]

    return product


def padded_rows(num_rows: int) -> int:
    """Return the number of rows for oneDNN: a multiple of 4, of 16 above 32 rows, of 64 above 256 rows.

    oneDNN compiles code for every number of rows that it meets and keeps it, hundreds of kilobytes each, so
    steps of all sizes would fill the memory. Four rows take no longer than one. oneDNN rounds a single row
    differently, so the padding also keeps results independent of how few rows a step has.
    """
    unit = 4 if num_rows <= 32 else 16 if num_rows <= 256 else 64
    return -(-num_rows // unit) * unit
