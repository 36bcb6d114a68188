"""The collective transport, seen from a dense actor: every rank takes part in every step (`wire_format.py`).

Legend: T tokens, H hidden, K experts per token, t tokens of one actor, n results of one actor.

Steps of the collective keep all ranks in lockstep, so a dense actor without rows takes part with empty
messages. Its ticking thread does that, which also gives every wait a deadline. A single dense actor ticks
three times per deadline. With several, each ticks every few milliseconds while all are idle, so that it soon
joins an actor that begins to send. While another actor sends, it takes part in every step at once, so that
the sender does not have to wait in every layer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from actors.errors import ExchangeError, LinkError
from actors.exchange.all_to_all.fair_lock import FairLock
from actors.exchange.all_to_all.group import Group
from actors.exchange.all_to_all.wire_format import (
    TICK,
    WireFormat,
    body_views,
    exchange_headers,
    is_empty,
    make_header,
)
from actors.exchange.combine import add_arrived
from actors.exchange.expert_load import ExpertLoad
from actors.exchange.interface import Handle
from actors.exchange.message import ROWS
from actors.exchange.row_assignment import Ids, Share, owner_table, split_rows

_TICKS_PER_DEADLINE = 3
_SHARED_TICK_SECONDS = 0.005
_NO_LAYER = -1

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Answers:
    """A step of the collective whose answers are on the way."""

    layer: int
    num_choices: int
    arrived: torch.Tensor
    """[T * K, H], actor by actor, each in the order of its answers; valid after `wait`."""
    targets: tuple[Ids, ...]
    """[n] indices into T * K for each actor: where its results belong."""
    wait: Callable[[int | None], None]
    """Waits for the answers; see `Group.start`."""
    keep: tuple[torch.Tensor, ...]
    """Tensors that must live until the collective has ended."""


class AllToAllExchange:
    """Exchange over a group that is up. After an ExchangeError it is closed; later calls raise that error."""

    kernels = None

    def __init__(
        self,
        group: Group,
        experts_of_actor: Sequence[Sequence[int]],
        wire_format: WireFormat,
        load: ExpertLoad,
        epoch: int,
        deadline_seconds: float,
    ) -> None:
        """`experts_of_actor` is in the order of the expert ranks.

        Raises ValueError for an expert that no actor holds.
        """
        self._group = group
        self._owners = owner_table(experts_of_actor, load.num_experts)
        self._load = load
        self._num_actors = len(experts_of_actor)
        self._num_dense = group.size - self._num_actors
        self._format = wire_format
        self._epoch = epoch
        self._sequence = 0
        self._last: _Answers | None = None
        self._failure: ExchangeError | None = None
        # The lock is fair: with another lock the ticking thread might take part in step after step.
        self._lock = FairLock()
        self._closing = threading.Event()
        alone = deadline_seconds / _TICKS_PER_DEADLINE
        self._tick_seconds = alone if self._num_dense == 1 else min(alone, _SHARED_TICK_SECONDS)
        self._last_step_at = time.monotonic()
        self._is_others_step = False
        """Whether only other dense actors sent rows in the last step."""
        self._ticker = threading.Thread(target=self._tick, name="all-to-all-ticks", daemon=True)
        self._ticker.start()

    def dispatch(
        self, layer: int, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> Handle:
        ids, scales = expert_ids.cpu().numpy(), weights.cpu().numpy()
        self._load.count(layer, ids)
        shares = split_rows(ids, self._owners[ids])
        return self._guarded(lambda: self._step(layer, rows, shares, scales))

    def combine(self, handle: Handle) -> torch.Tensor:
        assert isinstance(handle, _Answers)
        self._guarded(lambda: handle.wait(handle.layer))
        return add_arrived(handle.arrived, handle.targets, handle.num_choices)

    @property
    def is_ready(self) -> bool:
        return self._failure is None

    def maintain(self) -> None:
        """Do nothing: the ticking thread checks the group."""

    def interrupt(self) -> None:
        if self._failure is None:
            self._failure = LinkError("expert actors", None, "this exchange is closed")
        self._group.close()

    def close(self) -> None:
        if self._failure is None:
            self._failure = LinkError("expert actors", None, "this exchange is closed")
        self._closing.set()
        self._group.close()
        if threading.current_thread() is not self._ticker:
            self._ticker.join()

    def _step(
        self, layer: int, rows: torch.Tensor, shares: Sequence[Share], weights: npt.NDArray[np.float32]
    ) -> _Answers:
        """Take part in one step: exchange headers and bodies, and begin to receive the answers."""
        if self._last is not None:
            self._last.wait(self._last.layer)
        self._last_step_at = time.monotonic()
        self._sequence += 1
        of_rank = {self._num_dense + share.holder: share for share in shares}
        sent_tokens = [
            len(of_rank[rank].tokens) if rank in of_rank else 0 for rank in range(self._group.size)
        ]
        kind = ROWS if shares else TICK
        headers = [
            make_header(
                kind,
                self._epoch,
                self._sequence,
                layer,
                sent_tokens[rank],
                len(of_rank[rank].targets) if rank in of_rank else 0,
            )
            for rank in range(self._group.size)
        ]
        received = exchange_headers(self._group, headers, self._epoch, layer, self._format.device)
        is_idle = is_empty(received[: self._num_dense])
        self._is_others_step = not (is_idle or shares)
        if is_idle:
            return _empty_answers(layer, rows, self._format.num_choices)
        self._exchange_bodies(layer, rows, of_rank, weights, sent_tokens)
        self._last = self._begin_answers(layer, rows, shares, [header.num_results for header in headers])
        return self._last

    def _exchange_bodies(
        self,
        layer: int,
        rows: torch.Tensor,
        of_rank: dict[int, Share],
        weights: npt.NDArray[np.float32],
        sent_tokens: Sequence[int],
    ) -> None:
        splits = [self._format.body_bytes(num_tokens) for num_tokens in sent_tokens]
        source = torch.empty(sum(splits), dtype=torch.uint8, device=self._format.device)
        for rank, part in enumerate(torch.split(source, splits)):
            if rank in of_rank:
                share = of_rank[rank]
                body = body_views(part, len(share.tokens), self._format)
                body.expert_ids.copy_(torch.from_numpy(share.expert_ids))
                body.weights.copy_(torch.from_numpy(weights[share.tokens]))
                tokens = torch.from_numpy(share.tokens).to(rows.device)
                torch.index_select(rows, 0, tokens, out=body.rows)
        nothing = source.new_empty(0)
        self._group.start(nothing, [0] * self._group.size, source, splits)(layer)

    def _begin_answers(
        self, layer: int, rows: torch.Tensor, shares: Sequence[Share], num_results: Sequence[int]
    ) -> _Answers:
        arrived = rows.new_empty((sum(num_results), rows.shape[1]))
        splits = [count * self._format.row_bytes for count in num_results]
        nothing = torch.empty(0, dtype=torch.uint8, device=rows.device)
        output = arrived.view(torch.uint8).view(-1)
        wait = self._group.start(output, splits, nothing, [0] * self._group.size)
        return _Answers(
            layer=layer,
            num_choices=self._format.num_choices,
            arrived=arrived,
            targets=tuple(share.targets for share in shares),
            wait=wait,
            keep=(output, nothing),
        )

    def _tick(self) -> None:
        """Take part in a step without rows whenever the last step was some time ago."""
        rows = torch.empty(
            (0, self._format.hidden_size), dtype=self._format.dtype, device=self._format.device
        )
        weights = np.empty((0, self._format.num_choices), np.float32)
        while self._is_others_step or not self._closing.wait(self._tick_seconds / 2):
            is_early = time.monotonic() - self._last_step_at < self._tick_seconds / 2
            if is_early and not self._is_others_step:
                continue
            try:
                self._guarded(lambda: self._step(_NO_LAYER, rows, [], weights))
            except ExchangeError:
                return  # The error is kept in _failure; the next call of the engine raises it.

    def _guarded(self, act: Callable[[], _T]) -> _T:
        """Run `act` as the only user of the group; after an error close the group."""
        with self._lock:
            if self._failure is not None:
                raise self._failure
            try:
                return act()
            except ExchangeError as error:
                self._failure = self._failure or error
                self._closing.set()
                self._group.close()
                raise self._failure from error


def _empty_answers(layer: int, rows: torch.Tensor, num_choices: int) -> _Answers:
    """The answers of a step in which no actor has sent rows."""
    return _Answers(
        layer=layer,
        num_choices=num_choices,
        arrived=rows.new_empty((0, rows.shape[1])),
        targets=(),
        wait=lambda layer: None,
        keep=(),
    )
