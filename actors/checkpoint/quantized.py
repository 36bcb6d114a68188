"""Matrices of few bits: made from whole ones, and read from and written to a checkpoint's words.

Legend: N outputs, K inputs, C inputs that share a scale.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from actors.checkpoint.quantization import StoredQuantization

_ROWS_AT_A_TIME = 256
"""So that quantizing holds little beside its input and its result."""


class QuantizedWeight(NamedTuple):
    """weight[n, k] = values[n, k] * scales[n, k // C]."""

    values: torch.Tensor
    """[N, K] int8, also for 4 bits"""
    scales: torch.Tensor
    """[N, K / C]: bfloat16 or float32"""
    num_bits: int

    @property
    def num_inputs_per_scale(self) -> int:
        return self.values.shape[1] // self.scales.shape[1]

    @property
    def nbytes(self) -> int:
        """As they are held: fields of num_bits."""
        return self.values.numel() * self.num_bits // 8 + self.scales.nbytes


class QuantizedExpert(NamedTuple):
    """One expert of one layer, as ExpertWeights."""

    w1: QuantizedWeight
    """gate [F, H]"""
    w3: QuantizedWeight
    """up [F, H]"""
    w2: QuantizedWeight
    """down [H, F]"""


def quantize(weight: torch.Tensor, kind: str, group_size: int) -> QuantizedWeight:
    """weight [N, K] rounded to nearest, C = group_size inputs a scale; scales are bfloat16.

    The value of largest magnitude becomes -8 with int4 (its sign goes into the scale: of 16 values all are used, and the
    error is a tenth smaller than with symmetric bounds), +-127 with int8.
    """
    num_outputs, num_inputs = weight.shape
    values = torch.empty(weight.shape, dtype=torch.int8)
    scales = weight.new_empty((num_outputs, num_inputs // group_size), dtype=torch.bfloat16)
    for start in range(0, num_outputs, _ROWS_AT_A_TIME):
        rows = slice(start, start + _ROWS_AT_A_TIME)
        groups = weight[rows].float().view(-1, num_inputs // group_size, group_size)
        scales[rows] = _scales(groups, kind)
        # Of a group of zeros any scale will do.
        divisors = scales[rows].float().masked_fill(scales[rows] == 0, 1).unsqueeze(-1)
        # Not in place: of a float32 weight, groups are a view.
        groups = groups / divisors
        groups.round_().clamp_(*((-127, 127) if kind == "int8" else (-8, 7)))
        values[rows] = groups.view(-1, num_inputs).to(torch.int8)
    return QuantizedWeight(values, scales, 4 if kind == "int4" else 8)


def _scales(groups: torch.Tensor, kind: str) -> torch.Tensor:
    """[N, K / C] of groups [N, K / C, C]."""
    if kind == "int4":
        extremes = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)
        return extremes / -8
    return groups.abs().amax(-1) / 127


def dequantize(weight: QuantizedWeight) -> torch.Tensor:
    """[N, K] float32, exact: a product of an integer of 8 bits and a bfloat16 scale fits, others are rounded once."""
    num_outputs, num_groups = weight.scales.shape
    groups = weight.values.float().view(num_outputs, num_groups, -1)
    groups *= weight.scales.float().unsqueeze(-1)
    return groups.view(num_outputs, -1)


def to_words(values: torch.Tensor, num_bits: int) -> torch.Tensor:
    """values [N, K] int8 -> int32 [N, ceil(K / P)] of P = 32 / num_bits fields each, the first one lowest."""
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
    """The reverse: int8 [N, num_inputs]. Bytes of a word lie lowest first, as on every machine that torch runs on."""
    offset = 1 << (num_bits - 1)
    fields = words.contiguous().view(torch.uint8)
    if num_bits == 4:
        fields = torch.stack((fields & 15, fields >> 4), dim=-1).view(words.shape[0], -1)
    # 0 .. 2^bits - 1 to -2^(bits - 1) and up; of 8 bits the difference wraps to the same.
    return fields[:, :num_inputs].sub(offset).view(torch.int8).contiguous()


def join(upper: QuantizedWeight, lower: QuantizedWeight) -> QuantizedWeight:
    """The outputs of both, quantized alike."""
    values, scales = torch.cat((upper.values, lower.values)), torch.cat((upper.scales, lower.scales))
    return QuantizedWeight(values, scales, upper.num_bits)


def stored_tensors(name: str, weight: QuantizedWeight, stored: StoredQuantization) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint that stand for `name`, an expert's "...w1.weight"."""
    if not stored.is_packed:
        return {name: weight.values, f"{name}_scale": weight.scales}
    return {
        f"{name}_packed": to_words(weight.values, stored.num_bits),
        f"{name}_scale": weight.scales,
        f"{name}_shape": torch.tensor(weight.values.shape, dtype=torch.int64),
    }
