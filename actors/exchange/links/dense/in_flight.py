"""The state of a dispatch and of its requests, from the dispatch to its combine.

Legend: T tokens, H hidden, K experts per token, n results of one message.

A dispatch is sent as requests, one message each. Normally every (token, expert) pair is in one request and
each request is answered. When a request is sent again, in part or as a whole, to another peer, the dispatch
begins to track single (token, expert) pairs ("targets"). The first answer counts; every holder computes the
same bits.
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
"""[n] indices into T * K, ascending."""

_NONE: Ids = np.empty(0, dtype=np.int64)


@dataclass(kw_only=True, slots=True, eq=False)
class Dispatch:
    """Rows of one layer that were sent, and the results that have come back so far."""

    layer: int
    rows: torch.Tensor
    """[T, H]; kept so that rows can be sent again."""
    expert_ids: torch.Tensor
    """[T, K]"""
    weights: torch.Tensor
    """[T, K]"""
    arrived: torch.Tensor
    """[T * K, H]: a stretch for each request of the first sending, and one for targets without a holder."""
    num_owed: int
    """Targets without a result."""
    order: list[Targets] = field(default_factory=list)
    """The targets of each stretch of `arrived`, in the order of the stretches."""
    answered: list[Targets] = field(default_factory=list)
    """Targets of answered requests; used only until single targets are tracked."""
    owed: npt.NDArray[np.bool_] | None = None
    """[T * K]: whether a target is still owed; None until single targets are tracked."""
    sources: Ids | None = None
    """[T * K]: where in `arrived` a target's result belongs; made together with `owed`."""
    parked: Ids = field(default_factory=lambda: _NONE)
    """Targets whose experts no linked peer holds at present."""
    parked_until: float | None = None
    """When parked targets fail, on the monotonic clock; None before a target is parked."""
    last_failure: ExpertFailedError | None = None
    """The newest report of an expert actor that could not compute some of the rows."""
    failure: ExchangeError | None = None
    """Why the whole dispatch will stay unanswered; None while an answer is possible."""

    @staticmethod
    def of(layer: int, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor) -> Dispatch:
        """A dispatch before its first sending: rows [T, H], expert_ids and weights [T, K] on the host."""
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
        """The part [n, H] of `arrived` that takes the results of the next request of the first sending."""
        start = sum(len(part) for part in self.order)
        self.order.append(targets)
        return self.arrived[start : start + len(targets)]

    def keep_book(self) -> npt.NDArray[np.bool_]:
        """Track single targets from now on; return `owed`. All stretches must have been given out."""
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
        """Store the results [n, H] of a request of this dispatch."""
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
        """[T, H]: the sum over K of the results that have arrived."""
        num_tokens, num_choices = self.expert_ids.shape
        if num_tokens == 1:
            return add_one(self.arrived, [target for part in self.order for target in part])
        return add_arrived(self.arrived, self.order, num_choices)


@dataclass(kw_only=True, slots=True, eq=False)
class Request:
    """One message with rows, and what is known about its answer."""

    sequence: int
    dispatch: Dispatch | None
    """None when the dispatch no longer waits for the answer."""
    targets: Targets
    num_results: int
    stretch: torch.Tensor | None
    """The part [n, H] of `Dispatch.arrived` for the results, if the request belongs to the first sending."""
    sent_at: float
    """On the monotonic clock."""
    tried: frozenset[str] = frozenset()
    """Names of the peers that could not compute these rows."""
    is_hedged: bool = False
    """Whether all rows that are still owed were sent to another holder as well."""
