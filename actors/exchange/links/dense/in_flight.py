"""What is under way between a dispatch and its combine.

Legend: T tokens, H hidden, K experts per token, n results of one message.

A dispatch is sent as requests, one message each. In the plain course every (token, expert) is in one request and each
request is answered. When a request is sent again, in part or as a whole, to somebody else, the dispatch begins to keep
book of single (token, expert) pairs ("targets"); whoever answers first, the bits are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from actors.errors import ExchangeError, ExpertFailedError
from actors.exchange.combine import add_arrived, add_one
from actors.exchange.row_assignment import Ids

Targets: TypeAlias = Ids | Sequence[int]
"""[n] into T * K, ascending."""

_NONE: Ids = np.empty(0, dtype=np.int64)


@dataclass(kw_only=True, slots=True, eq=False)
class Dispatch:
    """Rows of one layer on their way."""

    layer: int
    rows: torch.Tensor
    """[T, H]; kept, so that they can be sent again"""
    expert_ids: torch.Tensor
    """[T, K]"""
    weights: torch.Tensor
    """[T, K]"""
    arrived: torch.Tensor
    """[T * K, H], a stretch for each request of the first sending, the rest behind them"""
    num_owed: int
    """Targets without a result."""
    order: list[Targets] = field(default_factory=list)
    """Stretch by stretch of `arrived`: the targets."""
    answered: list[Targets] = field(default_factory=list)
    """Targets of answered requests, until book is kept."""
    owed: npt.NDArray[np.bool_] | None = None
    """[T * K]: the book, where one is kept."""
    sources: Ids | None = None
    """[T * K]: where in `arrived` a target's result belongs; made with the book."""
    parked: Ids = field(default_factory=lambda: _NONE)
    """Targets whose experts nobody holds at present."""
    parked_until: float | None = None
    last_failure: ExpertFailedError | None = None
    """What the last expert actor said that could not compute some of the rows."""
    failure: ExchangeError | None = None
    """Why the dispatch as a whole will not be answered."""

    @staticmethod
    def of(layer: int, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor) -> Dispatch:
        """One of which nothing was sent yet: rows [T, H], expert_ids and weights [T, K], both on the host."""
        num_routes = expert_ids.numel()
        return Dispatch(
            layer=layer,
            rows=rows,
            expert_ids=expert_ids,
            weights=weights,
            arrived=rows.new_empty((num_routes, rows.shape[1])),
            num_owed=num_routes,
        )

    def next_stretch(self, targets: Targets) -> torch.Tensor:
        """[n, H] of `arrived` for the results of the next request of the first sending."""
        start = sum(len(part) for part in self.order)
        self.order.append(targets)
        return self.arrived[start : start + len(targets)]

    def keep_book(self) -> npt.NDArray[np.bool_]:
        """From now on single targets are tracked. All stretches must have been given out."""
        if self.owed is None:
            self.owed = np.ones(len(self.arrived), dtype=np.bool_)
            for targets in self.answered:
                self.owed[targets] = False
            self.sources = np.empty(len(self.arrived), dtype=np.int64)
            self.sources[np.concatenate([np.asarray(part) for part in self.order])] = np.arange(
                len(self.arrived)
            )
        return self.owed

    def fulfil(self, request: Request, results: torch.Tensor) -> None:
        """Take results [n, H] of one of its requests."""
        if self.owed is None:
            assert request.stretch is not None
            request.stretch.copy_(results)
            self.answered.append(request.targets)
            self.num_owed -= request.num_results
            return
        targets = np.asarray(request.targets)
        assert self.sources is not None
        places = torch.from_numpy(self.sources[targets]).to(results.device)
        self.arrived.index_copy_(0, places, results)
        self.num_owed -= int(np.count_nonzero(self.owed[targets]))
        self.owed[targets] = False

    def result(self) -> torch.Tensor:
        """[T, H]: the sum over K of what has arrived."""
        num_tokens, num_choices = self.expert_ids.shape
        if num_tokens == 1:
            return add_one(self.arrived, [target for part in self.order for target in part])
        return add_arrived(self.arrived, self.order, num_choices)


@dataclass(kw_only=True, slots=True, eq=False)
class Request:
    """One message with rows, and what is known of its answer."""

    sequence: int
    dispatch: Dispatch | None
    """None when nobody waits for the answer any longer."""
    targets: Targets
    num_results: int
    stretch: torch.Tensor | None
    """[n, H] of `Dispatch.arrived` where the request belongs to the first sending."""
    sent_at: float
    tried: frozenset[str] = frozenset()
    """Names of those that could not compute these rows."""
    is_hedged: bool = False
    """Whether the rows have gone elsewhere as well."""
