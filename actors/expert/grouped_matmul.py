"""Experts of one layer as two grouped products over all of them: bfloat16 on CUDA. Run on a CPU only where
this was written, never on CUDA.

Legend: T tokens, H hidden, K experts per token, F expert width, S slots, N results.

No step asks the device anything: the number of results is the caller's, the group bounds stay on the device.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import torch
import torch.nn.functional as F

from actors.checkpoint.weights import ExpertWeights

Stacks: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""gate_up [S, 2F, H] and down [S, H, F]."""


class GroupedMatmulLayer:
    """Weights of all slots in two stacks."""

    def __init__(self, slots: torch.Tensor, experts: Iterable[ExpertWeights]) -> None:
        """slots [E + 1] int64 on the device: expert id -> slot, with id -1 at the end."""
        self._slots = slots
        self._stacks = stack_experts(slots, experts)

    def expert(self, slot: int) -> ExpertWeights:
        """As LayerExperts.expert."""
        return stacked_expert(self._stacks, slot)

    def __call__(
        self, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor, num_results: int
    ) -> torch.Tensor:
        """As GroupedExperts.forward; an expert of another rank is not noticed."""
        return many_rows(rows, expert_ids, weights, num_results, self._slots, self._stacks)


def many_rows(
    rows: torch.Tensor,
    expert_ids: torch.Tensor,
    weights: torch.Tensor,
    num_results: int,
    slots: torch.Tensor,
    stacks: Stacks,
) -> torch.Tensor:
    """Results [num_results, H] as `GroupedExperts.forward`; slots as GroupedMatmulLayer takes them."""
    gate_up, down = stacks
    entry_slots = slots[expert_ids].reshape(-1)  # [T * K]; -1 is the table's last entry
    is_here = entry_slots >= 0
    # Entries that are elsewhere sort to the front and are cut off; what remains is by slot, in token order.
    by_slot, order = torch.sort(entry_slots, stable=True)
    chosen, by_slot = order[-num_results:], by_slot[-num_results:]
    edges = torch.arange(1, len(down) + 1, device=rows.device)
    ends = torch.searchsorted(by_slot, edges).to(torch.int32)  # [S], end of each slot's rows
    gathered = rows.index_select(0, chosen // expert_ids.shape[1])  # [N, H]
    gate, up = F.grouped_mm(gathered, gate_up.transpose(1, 2), offs=ends).chunk(2, dim=-1)
    products = F.grouped_mm(F.silu(gate) * up, down.transpose(1, 2), offs=ends)  # [N, H]
    scaled = products.float() * weights.reshape(-1, 1).index_select(0, chosen)
    results = torch.empty_like(gathered)
    targets = (torch.cumsum(is_here, 0) - 1).index_select(0, chosen)
    return results.index_copy_(0, targets, scaled.to(rows.dtype))


def stacked_expert(stacks: Stacks, slot: int) -> ExpertWeights:
    """Views of the stacks."""
    w1, w3 = stacks[0][slot].chunk(2)
    return ExpertWeights(w1, w3, stacks[1][slot])


def stack_experts(slots: torch.Tensor, experts: Iterable[ExpertWeights]) -> Stacks:
    """Copies one expert at a time into stacks that are allocated once; slots as GroupedMatmulLayer takes them."""
    num_slots = int((slots >= 0).sum())
    gate_up = down = None
    for slot, expert in enumerate(experts):
        width, hidden = expert.w1.shape
        if gate_up is None or down is None:
            gate_up = expert.w1.new_empty((num_slots, 2 * width, hidden))
            down = expert.w2.new_empty((num_slots, hidden, width))
        gate_up[slot, :width] = expert.w1
        gate_up[slot, width:] = expert.w3
        down[slot] = expert.w2
    assert gate_up is not None and down is not None
    return gate_up, down
