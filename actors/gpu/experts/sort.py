"""Sorts entries by the expert that they go to, on the device alone.

Legend: T tokens, K experts per token, N = T * K entries (token, choice), E experts, S slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

_MOST_AT_A_TIME = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class Entries:
    """Local entries, whose expert is on this device, sorted by slot and then by position.

    The places after the last local entry are undefined.
    """

    order: torch.Tensor
    """[N] int32: the entry at each place."""
    targets: torch.Tensor
    """[N] int32: for the entry at each place, its number among the local entries by position."""
    places: torch.Tensor
    """[N] int32: the place of each entry, or -1 if the entry is not local."""
    ends: torch.Tensor
    """[S] int32: the end of each slot's places, exclusive."""
    num_choices: int
    """K."""

    @property
    def num_slots(self) -> int:
        return len(self.ends)


def sort_entries(expert_ids: torch.Tensor, slots: torch.Tensor, num_slots: int) -> Entries:
    """Sort the entries of expert_ids [T, K] int64, which are -1 for an expert that is elsewhere.

    `slots` [E + 1] int64 maps an expert id to its slot; its last element is for id -1.
    """
    num_entries = expert_ids.numel()
    order, targets, places = torch.empty((3, num_entries), dtype=torch.int32, device=slots.device)
    ends = torch.empty(num_slots, dtype=torch.int32, device=slots.device)
    at_a_time = min(_MOST_AT_A_TIME, max(16, triton.next_power_of_2(num_entries)))
    _sort[(num_slots,)](
        expert_ids.contiguous(),
        slots,
        order,
        targets,
        places,
        ends,
        num_entries,
        NUM_EXPERTS=slots.shape[0] - 1,
        TILE=at_a_time,
        num_warps=8 if at_a_time >= 512 else 4,
    )
    return Entries(order=order, targets=targets, places=places, ends=ends, num_choices=expert_ids.shape[1])


@triton.jit
def _slots_of(expert_ids, slots, entry, num_entries, NUM_EXPERTS: tl.constexpr):
    """Return the slot of each entry; negative for an entry that is not local, and after the last entry."""
    expert = tl.load(expert_ids + entry, mask=entry < num_entries, other=-1)
    slot = tl.load(slots + tl.where(expert < 0, NUM_EXPERTS, expert))
    return tl.where(expert < 0, -1, slot).to(tl.int32)


@triton.jit
def _sort(
    expert_ids,
    slots,
    order,
    targets,
    places,
    ends,
    num_entries,
    NUM_EXPERTS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Number the entries of one slot.

    Each program takes a slot and first counts the entries of the slots before it.
    """
    own = tl.program_id(0)
    place = 0
    for start in range(0, num_entries, TILE):
        slot = _slots_of(expert_ids, slots, start + tl.arange(0, TILE), num_entries, NUM_EXPERTS)
        place += tl.sum(((slot >= 0) & (slot < own)).to(tl.int32), axis=0)
    num_here = 0
    for start in range(0, num_entries, TILE):
        entry = start + tl.arange(0, TILE)
        slot = _slots_of(expert_ids, slots, entry, num_entries, NUM_EXPERTS)
        is_own, is_here = (slot == own).to(tl.int32), (slot >= 0).to(tl.int32)
        own_place = place + tl.cumsum(is_own, axis=0) - 1
        target = num_here + tl.cumsum(is_here, axis=0) - 1
        tl.store(order + own_place, entry, mask=is_own > 0)
        tl.store(targets + own_place, target, mask=is_own > 0)
        tl.store(places + entry, own_place, mask=is_own > 0)
        tl.store(places + entry, -1, mask=(is_here == 0) & (entry < num_entries) & (own == 0))
        place += tl.sum(is_own, axis=0)
        num_here += tl.sum(is_here, axis=0)
    tl.store(ends + own, place)
