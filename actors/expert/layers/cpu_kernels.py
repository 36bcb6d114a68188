"""Experts of one layer on a CPU with the project's own kernels: one call computes all rows of all experts.

Legend: T tokens, H hidden, K experts per token, F expert width, N results.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from actors.checkpoint.quantized_weight import QuantizedExpert, QuantizedWeight, join
from actors.checkpoint.weights import ExpertWeights
from actors.kernels.library import Kernels, kernels_for, pack, pack_quantized
from actors.kernels.quantization import Quantization
from actors.kernels.serve import ServeLayer
from actors.kernels.threads import num_threads

_ALIGNMENT = 16
"""The expert width is a multiple of this."""
_SCALE_INPUTS, _MAX_SCALE_INPUTS = 32, 256
"""How many inputs share a scale in the kernels: a multiple of the first, at most the second number. Scales
that more inputs share are repeated."""


class PackedExpert(NamedTuple):
    """One expert, its weights in the order in which the kernels read them."""

    gate_up: torch.Tensor
    """w1 and w3 together."""
    down: torch.Tensor
    """w2."""
    shape: tuple[int, int]
    """(H, F)"""
    quantization: tuple[int, bool, int, int]
    """The last arguments of `Kernels.experts`: num_bits, has_bf16_scales, and how many inputs share a scale
    in gate_up and in down. (0, False, 0, 0) for weights that are not quantized."""


class GroupedLinearLayer:
    """The experts of one layer. Their weights are packed one tensor at a time (`actors.kernels`)."""

    def __init__(
        self,
        slots: torch.Tensor,
        experts: Iterable[ExpertWeights | QuantizedExpert | PackedExpert],
        dtype: torch.dtype,
    ) -> None:
        """slots [E + 1] int64 gives the slot of each expert id, negative for an expert that is not here.

        dtype is that of the rows. Raises ValueError if quantized experts differ in the dtype of their scales.
        """
        kernels = kernels_for(dtype)
        assert kernels is not None
        self._slots = slots
        self._experts = [_pack(kernels, expert) for expert in experts]
        self._hidden_size, self.width = self._experts[0].shape
        self._gate_up = _addresses(expert.gate_up for expert in self._experts)
        self._down = _addresses(expert.down for expert in self._experts)
        self.is_bf16 = dtype == torch.bfloat16
        self._quantization = self._experts[0].quantization
        if any(expert.quantization != self._quantization for expert in self._experts):
            raise ValueError("experts have scales of bfloat16 and of float32, expected one dtype")
        self._compute = kernels.experts
        self._tables = (self._slots.data_ptr(), self._gate_up.ctypes.data, self._down.ctypes.data)

    @staticmethod
    def suits(dtype: torch.dtype, hidden_size: int, width: int, is_quantized: bool = False) -> bool:
        """Whether this processor has kernels for experts of this dtype and size."""
        if is_quantized and (hidden_size % _SCALE_INPUTS or width % _SCALE_INPUTS):
            return False
        return kernels_for(dtype, hidden_size) is not None and width % _ALIGNMENT == 0

    def expert(self, slot: int) -> PackedExpert:
        """The packed expert in a slot; see LayerExperts."""
        return self._experts[slot]

    @property
    def table(self) -> ServeLayer:
        """The addresses of slots and weights for the kernels, valid while this object lives."""
        slots, gate_up, down = self._tables
        num_bits, has_bf16_scales, *groups = self._quantization
        upper, lower = (
            Quantization(group=group, num_bits=num_bits, has_bf16_scales=has_bf16_scales) for group in groups
        )
        return ServeLayer(
            slots=slots,
            gate_up=gate_up,
            down=down,
            num_slots=len(self._gate_up),
            gate_up_quantized=upper,
            down_quantized=lower,
        )

    def __call__(
        self, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor, num_results: int
    ) -> torch.Tensor:
        """Compute as GroupedExperts.forward does."""
        out = rows.new_empty((num_results, self._hidden_size))
        rows, expert_ids, weights = rows.contiguous(), expert_ids.contiguous(), weights.contiguous()
        fault = self._compute(
            rows.data_ptr(),
            expert_ids.data_ptr(),
            weights.data_ptr(),
            *self._tables,
            out.data_ptr(),
            *expert_ids.shape,
            len(self._gate_up),
            num_results,
            self._hidden_size,
            self.width,
            self.is_bf16,
            num_threads(),
            *self._quantization,
        )
        if fault == 1:
            raise ValueError("expert_ids names an expert that is not on this rank")
        if fault == 2:
            raise ValueError(
                f"num_results is {num_results}, expected the number of expert ids that are not -1"
            )
        if fault:
            raise MemoryError(f"no memory for {num_results} rows of experts")
        return out


def _pack(kernels: Kernels, expert: ExpertWeights | QuantizedExpert | PackedExpert) -> PackedExpert:
    if isinstance(expert, PackedExpert):
        return expert
    if isinstance(expert, ExpertWeights):
        shape = (expert.w2.shape[0], expert.w2.shape[1])
        gate_up, down = pack(kernels, torch.cat((expert.w1, expert.w3))), pack(kernels, expert.w2)
        return PackedExpert(gate_up, down, shape, (0, False, 0, 0))
    shape = (expert.w2.values.shape[0], expert.w2.values.shape[1])
    upper, lower = _with_kernel_scales(join(expert.w1, expert.w3)), _with_kernel_scales(expert.w2)
    has_bf16_scales = upper.scales.dtype == lower.scales.dtype == torch.bfloat16
    if not has_bf16_scales:
        upper, lower = (weight._replace(scales=weight.scales.float()) for weight in (upper, lower))
    groups = (upper.num_inputs_per_scale, lower.num_inputs_per_scale)
    return PackedExpert(
        pack_quantized(kernels, *upper),
        pack_quantized(kernels, *lower),
        shape,
        (upper.num_bits, has_bf16_scales, *groups),
    )


def _with_kernel_scales(weight: QuantizedWeight) -> QuantizedWeight:
    shared = weight.num_inputs_per_scale
    if shared <= _MAX_SCALE_INPUTS:
        return weight
    fewer = math.gcd(shared, _MAX_SCALE_INPUTS)
    return weight._replace(scales=weight.scales.repeat_interleave(shared // fewer, dim=1))


def _addresses(weights: Iterable[torch.Tensor]) -> npt.NDArray[np.uint64]:
    return np.array([weight.data_ptr() for weight in weights], dtype=np.uint64)
