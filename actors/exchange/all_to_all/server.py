"""The collective transport, seen from an expert actor: a thread takes part in each step (`wire_format.py`).

Legend: T tokens, H hidden, K experts per token, N results.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

import torch

from actors.errors import ExchangeError
from actors.exchange.all_to_all.group import Group
from actors.exchange.all_to_all.wire_format import (
    TICK,
    WireFormat,
    body_views,
    exchange_headers,
    is_empty,
    make_header,
)
from actors.exchange.interface import Serve
from actors.exchange.message import Header

logger = logging.getLogger(__name__)


class AllToAllServer:
    """Serves a group that is up until it breaks or is closed."""

    def __init__(
        self, group: Group, num_dense: int, wire_format: WireFormat, serve: Serve, epoch: int
    ) -> None:
        self._group = group
        self._num_dense = num_dense
        self._format = wire_format
        self._serve = serve
        self._epoch = epoch
        self._is_closed = False
        self._has_ended = False
        self._thread = threading.Thread(target=self._run, name="all-to-all", daemon=True)
        self._thread.start()

    @property
    def is_up(self) -> bool:
        return not self._is_closed and not self._has_ended

    def close(self) -> None:
        self._is_closed = True
        self._group.close()
        self._thread.join()

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while True:
                    self._step()
        except ExchangeError as error:
            if not self._is_closed:
                logger.warning("the all-to-all group has ended: %s", error)
        except Exception:
            # In lockstep an answer cannot be replaced by an error, so the group ends.
            logger.exception("the all-to-all group ends, because its rows cannot be computed")
        finally:
            self._has_ended = True
            self._group.close()

    def _step(self) -> None:
        device, size = self._format.device, self._group.size
        idle = [make_header(TICK, self._epoch, 0, 0, 0, 0)] * size
        headers = exchange_headers(self._group, idle, self._epoch, None, device)[: self._num_dense]
        if is_empty(headers):
            return
        splits = [self._format.body_bytes(header.num_tokens) for header in headers]
        bodies = torch.empty(sum(splits), dtype=torch.uint8, device=device)
        nothing = bodies.new_empty(0)
        rest = [0] * (size - self._num_dense)
        self._group.start(bodies, splits + rest, nothing, [0] * size)(None)
        answers = self._compute(headers, torch.split(bodies, splits))
        answer_splits = [header.num_results * self._format.row_bytes for header in headers]
        self._group.start(nothing, [0] * size, answers, answer_splits + rest)(None)

    def _compute(self, headers: Sequence[Header], parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Compute the answers to all dense actors; return them one after the other, as bytes."""
        hidden = (0, self._format.hidden_size)
        results = [torch.empty(hidden, dtype=self._format.dtype, device=self._format.device)]
        for header, part in zip(headers, parts, strict=True):
            if header.num_results:
                body = body_views(part, header.num_tokens, self._format)
                ids, weights = body.expert_ids.cpu().long(), body.weights.cpu()
                results.append(self._serve(header.layer, body.rows, ids, weights, header.num_results))
        return torch.cat(results).view(torch.uint8).view(-1)
