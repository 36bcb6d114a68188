"""Quantizes and dequantizes matrices; packs their values into a checkpoint's words and unpacks them.

Legend: N outputs, K inputs, C inputs that share a scale.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from actors.checkpoint.quantization import KINDS, StoredQuantization

_ROWS_AT_A_TIME = 256
"""Rows that are quantized at a time on a CPU, so that little memory is needed beside the input and the
result. On a GPU a whole matrix is quantized at once, since every operation has to be launched."""


class _Range(NamedTuple):
    """The dtype and the bounds of the values of a kind."""

    dtype: torch.dtype
    low: float
    high: float


_RANGES = {
    "int8": _Range(torch.int8, -127, 127),
    "int4": _Range(torch.int8, -8, 7),
    "fp8": _Range(torch.float8_e4m3fn, -448, 448),
}


class QuantizedWeight(NamedTuple):
    """weight[n, k] = values[n, k] * scales[n, k // C]."""

    values: torch.Tensor
    """[N, K], int8 also for 4 bits, float8_e4m3fn for fp8."""
    scales: torch.Tensor
    """[N, K / C], bfloat16 or float32."""
    num_bits: int

    @property
    def num_inputs_per_scale(self) -> int:
        return self.values.shape[1] // self.scales.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the weight when its values are packed with `num_bits` bits each."""
        return self.values.numel() * self.num_bits // 8 + self.scales.nbytes


class QuantizedExpert(NamedTuple):
    """One expert of one layer, quantized; `ExpertWeights` is the same without quantization."""

    w1: QuantizedWeight
    """The gate's matrix [F, H]."""
    w3: QuantizedWeight
    """The up matrix [F, H]."""
    w2: QuantizedWeight
    """The down matrix [H, F]."""


def quantize(weight: torch.Tensor, kind: str, group_size: int | None) -> QuantizedWeight:
    """Quantize weight [N, K], rounding to nearest, with C = group_size inputs per scale (None means all K).

    Scales are bfloat16. The value of largest magnitude in a group becomes -8 with int4, +-127 with int8 and
    +-448 with fp8. With int4 the scale takes the sign of that value, so that all 16 values are used, and the
    error is a tenth smaller than with symmetric bounds. Values that lie outside the bounds because the scale
    was rounded are clamped. The work is done on the weight's device and gives the same bits on every device.
    """
    num_outputs, num_inputs = weight.shape
    group_size = group_size or num_inputs
    dtype, low, high = _RANGES[kind]
    values = weight.new_empty(weight.shape, dtype=dtype)
    scales = weight.new_empty((num_outputs, num_inputs // group_size), dtype=torch.bfloat16)
    rows_at_a_time = _ROWS_AT_A_TIME if weight.device.type == "cpu" else num_outputs
    for start in range(0, num_outputs, rows_at_a_time):
        rows = slice(start, start + rows_at_a_time)
        groups = weight[rows].float().view(-1, num_inputs // group_size, group_size)
        scales[rows] = _scales(groups, kind)
        # The scale of a group of zeros is 0; dividing by 1 instead keeps the zeros.
        divisors = scales[rows].float().masked_fill(scales[rows] == 0, 1).unsqueeze(-1)
        # The division is not in place, since the groups of a float32 weight are a view of it.
        groups = groups / divisors
        if not dtype.is_floating_point:
            groups.round_()
        values[rows] = groups.clamp_(low, high).view(-1, num_inputs).to(dtype)
    return QuantizedWeight(values, scales, KINDS[kind].num_bits)


def _scales(groups: torch.Tensor, kind: str) -> torch.Tensor:
    """Return the scales [N, K / C] of groups [N, K / C, C]."""
    if kind == "int4":
        extremes = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)
        return extremes / -8
    largest = groups.abs().amax(-1)
    # The divisor is a tensor, since CUDA divides by a number by multiplying with its reciprocal.
    return largest / largest.new_full((), _RANGES[kind].high)


def dequantize(weight: QuantizedWeight) -> torch.Tensor:
    """Return the weight [N, K] in float32.

    With bfloat16 scales the result is exact, since float32 holds the product of a value of 8 bits and such a
    scale. With float32 scales each product is rounded once.
    """
    num_outputs, num_groups = weight.scales.shape
    groups = weight.values.float().view(num_outputs, num_groups, -1)
    groups *= weight.scales.float().unsqueeze(-1)
    return groups.view(num_outputs, -1)


def to_words(values: torch.Tensor, num_bits: int) -> torch.Tensor:
    """Pack values [N, K] int8 into words int32 [N, ceil(K / P)] of P = 32 / num_bits fields, lowest first."""
    assert values.dtype == torch.int8
    per_word = 32 // num_bits
    num_outputs, num_inputs = values.shape
    fields = values.new_zeros((num_outputs, -(-num_inputs // per_word), per_word), dtype=torch.int32)
    fields.view(num_outputs, -1)[:, :num_inputs] = values
    fields.view(num_outputs, -1)[:, :num_inputs] += 1 << (num_bits - 1)
    words = fields[..., 0].clone()
    for index in range(1, per_word):
        words |= fields[..., index] << (num_bits * index)
    return words


def from_words(words: torch.Tensor, num_bits: int, num_inputs: int) -> torch.Tensor:
    """Unpack the words of `to_words` into values int8 [N, num_inputs].

    The lowest byte of a word must come first in memory, which is true on every machine that torch runs on.
    """
    offset = 1 << (num_bits - 1)
    fields = words.contiguous().view(torch.uint8)
    if num_bits == 4:
        fields = torch.stack((fields & 15, fields >> 4), dim=-1).view(words.shape[0], -1)
    # This maps 0 .. 2^bits - 1 to -2^(bits - 1) and up. With 8 bits the difference wraps to the same value.
    return fields[:, :num_inputs].sub(offset).view(torch.int8).contiguous()


def join(upper: QuantizedWeight, lower: QuantizedWeight) -> QuantizedWeight:
    """Return one weight with the outputs of `upper`, then of `lower`; both have the same quantization."""
    values, scales = torch.cat((upper.values, lower.values)), torch.cat((upper.scales, lower.scales))
    return QuantizedWeight(values, scales, upper.num_bits)


def stored_tensors(name: str, weight: QuantizedWeight, stored: StoredQuantization) -> dict[str, torch.Tensor]:
    """Return the tensors that store the weight `name` (an expert's "...w1.weight", ...) in a checkpoint."""
    if not stored.is_packed:
        return {name: weight.values, f"{name}_scale": weight.scales}
    return {
        f"{name}_packed": to_words(weight.values, stored.num_bits),
        f"{name}_scale": weight.scales,
        f"{name}_shape": torch.tensor(weight.values.shape, dtype=torch.int64),
    }
