"""The experts of one layer as two stacks on a device: one tensor for all slots' gates and ups, one for their downs.

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
"""Of quantized values: one each in a number of the stack."""


@dataclass(frozen=True, slots=True)
class Stack:
    """One matrix per slot."""

    values: torch.Tensor
    """[S, N, K], of the rows' dtype or of few bits."""
    scales: torch.Tensor | None = None
    """[S, N, K / C]; None where values are the weights themselves."""

    @property
    def num_inputs_per_scale(self) -> int:
        """C; 0 without scales."""
        return 0 if self.scales is None else self.values.shape[2] // self.scales.shape[2]

    @property
    def is_grouped(self) -> bool:
        """Whether an output has more scales than one."""
        return self.num_inputs_per_scale not in (0, self.values.shape[2])


@dataclass(frozen=True, slots=True)
class Stacks:
    """All matrices of a layer's experts."""

    gate_up: Stack
    """N = 2 F, K = H: gate, then up."""
    down: Stack
    """N = H, K = F."""

    @property
    def num_slots(self) -> int:
        return self.down.values.shape[0]

    @property
    def is_quantized(self) -> bool:
        return self.down.scales is not None

    def expert(self, slot: int) -> Expert:
        """Views of the stacks, in the form in which they came."""
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
    """Weights of all slots in two stacks."""

    def __init__(self, slots: torch.Tensor, experts: Iterable[Expert]) -> None:
        """slots [E + 1] int64 on the device: expert id -> slot, with id -1 at the end."""
        self._slots = slots
        self._stacks = _stack(int((slots >= 0).sum()), experts)

    def expert(self, slot: int) -> Expert:
        """As LayerExperts.expert."""
        return self._stacks.expert(slot)


def _stack(num_slots: int, experts: Iterable[Expert]) -> Stacks:
    """Copies one expert at a time into stacks that are allocated once, on the device that the first is on. At least one expert."""
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
    """Stacks for experts like this one, not filled."""

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
