"""Experts of one layer on CUDA, by the project's Triton kernels and torch's `grouped_mm`.

Legend: T tokens, H hidden, K experts per token, E experts, N = T * K entries (token, choice).

    one token, all experts here     matrix times vector (`actors.gpu.experts.one_token`)
    many rows in bfloat16           the second product is torch's `grouped_mm`
    otherwise                       `actors.gpu.experts.products`

The host never waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F

from actors.exchange.combine import add_choices
from actors.gpu.experts.one_token import one_token, suits
from actors.gpu.experts.products import first_products, products
from actors.gpu.experts.sort import Entries, sort_entries
from actors.gpu.experts.stacks import Expert, StackedLayer
from actors.gpu.experts.weigh import weigh, weigh_and_add

_MOST_ENTRIES = 2048
"""With more entries, `grouped_mm` is the faster second product. For the first product, which gathers its rows
and ends with silu, the project's kernel is never slower."""


class TritonLayer(StackedLayer):
    """The experts of one layer; each call takes the way that suits dtype and number of rows."""

    def __init__(self, slots: torch.Tensor, experts: Iterable[Expert]) -> None:
        super().__init__(slots, experts)
        self._takes_one_token = suits(self._stacks)

    def __call__(
        self, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor, num_results: int
    ) -> torch.Tensor:
        """Compute as GroupedExperts.forward does, but do not notice an expert that is not here."""
        entries = self._sort(expert_ids)
        if self._is_for_grouped_mm(rows, expert_ids):
            return weigh(self._by_grouped_mm(rows, entries, num_results), entries, weights)
        return products(rows, entries, weights, num_results, entries.targets, self._stacks)

    def combined(self, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The sum of each token's results, [T, H]. The sum of a token with an expert of -1 is undefined."""
        num_entries, num_choices = expert_ids.numel(), expert_ids.shape[1]
        if num_entries == num_choices == 2 and self._takes_one_token:
            return one_token(rows, expert_ids, weights, self._slots, self._stacks)
        entries = self._sort(expert_ids)
        if self._is_for_grouped_mm(rows, expert_ids):
            return weigh_and_add(self._by_grouped_mm(rows, entries, num_entries), entries, weights)
        results = products(rows, entries, weights, num_entries, entries.order, self._stacks)
        return add_choices(results, num_choices)

    def _sort(self, expert_ids: torch.Tensor) -> Entries:
        return sort_entries(expert_ids, self._slots, self._stacks.num_slots)

    def _is_for_grouped_mm(self, rows: torch.Tensor, expert_ids: torch.Tensor) -> bool:
        is_taken = rows.dtype == torch.bfloat16 and not self._stacks.is_quantized
        return is_taken and expert_ids.numel() > _MOST_ENTRIES

    def _by_grouped_mm(self, rows: torch.Tensor, entries: Entries, num_results: int) -> torch.Tensor:
        """The products [num_results, H] by slot, before they are multiplied by their weights."""
        between = first_products(rows, entries, self._stacks)[:num_results]
        return F.grouped_mm(between, self._stacks.down.values.transpose(1, 2), offs=entries.ends)
