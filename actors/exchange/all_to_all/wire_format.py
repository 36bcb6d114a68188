"""The messages of one step of the collective transport, as both sides see them.

Legend: T tokens of one part, H hidden, K experts per token, N results, W ranks.

    headers   [W, 8] int64, one for each rank, with the sizes of the bodies and answers; each dense actor
              tells all ranks whether it sends rows to any actor, so all ranks know whether bodies and
              answers follow
    bodies    dense -> expert   expert_ids [T, K] int32, weights [T, K] float32, padding to 64 bytes, then
                                rows [T, H]
    answers   expert -> dense   results [N, H]

Between two dense or two expert actors only headers travel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from actors.errors import LinkError, StaleEpochError
from actors.exchange.all_to_all.group import Group
from actors.exchange.message import HEADER_BYTES, MAGIC, Header, align


@dataclass(frozen=True, kw_only=True, slots=True)
class WireFormat:
    """The properties of rows on which all ranks agree."""

    hidden_size: int
    num_choices: int
    """K"""
    dtype: torch.dtype
    device: torch.device

    @property
    def row_bytes(self) -> int:
        return self.hidden_size * self.dtype.itemsize

    def rows_offset(self, num_tokens: int) -> int:
        """Byte of a body at which its rows start."""
        return align(num_tokens * self.num_choices * 8)

    def body_bytes(self, num_tokens: int) -> int:
        """Size of a body, padded so that the next body is aligned."""
        return self.rows_offset(num_tokens) + align(num_tokens * self.row_bytes)


class Body(NamedTuple):
    """Views of one body's bytes, on the device."""

    expert_ids: torch.Tensor
    """[T, K] int32"""
    weights: torch.Tensor
    """[T, K] float32"""
    rows: torch.Tensor
    """[T, H]"""


def body_views(part: torch.Tensor, num_tokens: int, wire_format: WireFormat) -> Body:
    """The views of a body. `part` has body_bytes(num_tokens) bytes."""
    shape = (num_tokens, wire_format.num_choices)
    end = num_tokens * wire_format.num_choices * 4
    start = wire_format.rows_offset(num_tokens)
    rows = part[start : start + num_tokens * wire_format.row_bytes].view(wire_format.dtype)
    return Body(
        expert_ids=part[:end].view(torch.int32).view(shape),
        weights=part[end : 2 * end].view(torch.float32).view(shape),
        rows=rows.view(num_tokens, wire_format.hidden_size),
    )


TICK = 0
"""Kind of a header whose sender sends no rows to any actor in this step."""


def make_header(
    kind: int, epoch: int, sequence: int, layer: int, num_tokens: int, num_results: int
) -> Header:
    """A header of this transport. `kind` is ROWS or TICK."""
    return Header(MAGIC, kind, epoch, sequence, layer, num_tokens, num_results, 0)


def is_empty(headers: Sequence[Header]) -> bool:
    """Whether a step ends with these headers, because no actor sends rows."""
    return all(header.kind == TICK for header in headers)


def exchange_headers(
    group: Group, headers: Sequence[Header], epoch: int, layer: int | None, device: torch.device
) -> list[Header]:
    """Send a header to each rank and return those of all ranks.

    Raises ExchangeError, also for a header of another protocol or epoch.
    """
    source = torch.tensor(headers, dtype=torch.int64).view(torch.uint8).reshape(-1).to(device)
    output = torch.empty_like(source)
    splits = [HEADER_BYTES] * group.size
    group.start(output, splits, source, splits)(layer)
    fields = output.cpu().numpy().view(np.int64).reshape(group.size, -1)
    received = [Header(*row) for row in fields.tolist()]
    for rank, header in enumerate(received):
        if header.magic != MAGIC:
            raise LinkError(f"rank {rank}", layer, f"sent a header that starts with {header.magic:#x}")
        if header.epoch != epoch:
            raise StaleEpochError(header.epoch, epoch)
    return received
