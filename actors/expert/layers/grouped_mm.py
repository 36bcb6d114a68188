"""Experts of one layer as two grouped products over all of them, by torch alone.

It serves bfloat16 on CUDA without Triton.

Legend: T tokens, H hidden, K experts per token, F expert width, S slots, N results.

The host never waits for the device: the caller gives the number of results, and the bounds of the groups stay
on the device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from actors.gpu.experts.stacks import StackedLayer


class GroupedMatmulLayer(StackedLayer):
    """Computes both products with torch's `grouped_mm`."""

    def __call__(
        self, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor, num_results: int
    ) -> torch.Tensor:
        """Compute as GroupedExperts.forward does, but do not notice an expert that is not here."""
        gate_up, down = self._stacks.gate_up.values, self._stacks.down.values
        entry_slots = self._slots[expert_ids].reshape(-1)  # [T * K]; id -1 reads the last entry
        is_here = entry_slots >= 0
        # Entries without a slot here are sorted to the front and cut off. The rest is sorted by slot and then
        # by token.
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
