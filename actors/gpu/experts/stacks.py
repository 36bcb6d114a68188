"""One layer's experts as two stacks on a device: one of gate and up matrices, one of down matrices.

Legend: S slots, N outputs, K inputs, F expert width, H hidden, C inputs that share a scale.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from actors.checkpoint.quantized_weight import QuantizedExpert, QuantizedWeight
from actors.checkpoint.weights import ExpertWeights

Expert: TypeAlias = ExpertWeights | QuantizedExpert

_NUM_BITS = 8
"""Bits of a quantized value; each element of a stack holds one value."""


@dataclass(frozen=True, slots=True)
class Stack:
    """One matrix per slot."""

    values: torch.Tensor
    """[S, N, K], in the rows' dtype or quantized."""
    scales: torch.Tensor | None = None
    """[S, N, K / C]; None if the values are not quantized."""

    @property
    def num_inputs_per_scale(self) -> int:
        """Number C of inputs that share a scale; 0 without scales."""
        return 0 if self.scales is None else self.values.shape[2] // self.scales.shape[2]

    @property
    def is_grouped(self) -> bool:
        """Whether an output has more than one scale."""
        return self.num_inputs_per_scale not in (0, self.values.shape[2])


@dataclass(frozen=True, slots=True)
class Stacks:
    """All matrices of a layer's experts."""

    gate_up: Stack
    """The gate matrix above the up matrix: N = 2 F, K = H."""
    down: Stack
    """The down matrix: N = H, K = F."""

    @property
    def num_slots(self) -> int:
        return self.down.values.shape[0]

    @property
    def is_quantized(self) -> bool:
        return self.down.scales is not None

    def expert(self, slot: int) -> Expert:
        """Return the expert as views of the stacks, in the form in which it was given."""
        gate, up = self.gate_up.values[slot].chunk(2)
        down = self.down.values[slot]
        if self.gate_up.scales is None or self.down.scales is None:
            return ExpertWeights(gate, up, down)
        gate_scales, up_scales = self.gate_up.scales[slot].chunk(2)
        return QuantizedExpert(
            QuantizedWeight(gate, gate_scales, _NUM_BITS),
            QuantizedWeight(up, up_scales, _NUM_BITS),
            QuantizedWeight(down, self.down.scales[slot], _NUM_BITS),
        )


class StackedLayer:
    """Keeps the weights of all slots of a layer in two stacks."""

    def __init__(self, slots: torch.Tensor, experts: Iterable[Expert]) -> None:
        """`slots` [E + 1] int64 on the device maps expert ids to slots; its last element is for id -1."""
        self._slots = slots
        self._stacks = _stack(int((slots >= 0).sum()), experts)

    def expert(self, slot: int) -> Expert:
        """Return the same as `LayerExperts.expert`."""
        return self._stacks.expert(slot)


def _stack(num_slots: int, experts: Iterable[Expert]) -> Stacks:
    """Copy one or more experts, one at a time, into stacks allocated on the first expert's device."""
    stacks: Stacks | None = None
    for slot, expert in enumerate(experts):
        if stacks is None:
            stacks = _room(num_slots, expert)
        width = expert.w1.shape[0] if isinstance(expert, ExpertWeights) else expert.w1.values.shape[0]
        _fill(stacks.gate_up, slot, slice(0, width), expert.w1)
        _fill(stacks.gate_up, slot, slice(width, None), expert.w3)
        _fill(stacks.down, slot, slice(None), expert.w2)
    assert stacks is not None
    return stacks


def _fill(stack: Stack, slot: int, outputs: slice, weight: torch.Tensor | QuantizedWeight) -> None:
    if isinstance(weight, QuantizedWeight):
        assert stack.scales is not None
        stack.values[slot, outputs] = weight.values
        stack.scales[slot, outputs] = weight.scales
    else:
        stack.values[slot, outputs] = weight


def _room(num_slots: int, expert: Expert) -> Stacks:
    """Return uninitialised stacks for experts like this one."""

    def room(weight: torch.Tensor | QuantizedWeight, num_parts: int) -> Stack:
        if isinstance(weight, QuantizedWeight):
            return Stack(
                _empty(weight.values, num_slots, num_parts), _empty(weight.scales, num_slots, num_parts)
            )
        return Stack(_empty(weight, num_slots, num_parts))

    return Stacks(gate_up=room(expert.w1, 2), down=room(expert.w2, 1))


def _empty(part: torch.Tensor, num_slots: int, num_parts: int) -> torch.Tensor:
    num_outputs, num_inputs = part.shape
    return part.new_empty((num_slots, num_parts * num_outputs, num_inputs))
