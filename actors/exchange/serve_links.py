"""The star of links, seen from an expert actor: a thread for each dense actor receives, computes and answers.

Threads compute one at a time, first come first served, so that a busy dense actor cannot starve another and kernels
do not fight over cores; receiving and sending overlap with another link's compute.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from actors.errors import ExchangeError, LinkError
from actors.exchange.link import Link
from actors.exchange.message import FAILURE, RESULTS, ROWS, Message
from actors.exchange.turn import Turn

Serve: TypeAlias = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
"""(layer, rows [T, H] on the device, expert_ids [T, K] and weights [T, K] on the host, num_results) -> [N, H]."""


class LinkServer:
    """Serves links that are up until each of them ends."""

    def __init__(self, links: Sequence[Link], serve: Serve, epoch: int) -> None:
        self._links = tuple(links)
        self._serve = serve
        self._epoch = epoch
        self._turn = Turn()
        self._is_closed = False
        self._failures: list[ExchangeError] = []
        self._threads = [
            threading.Thread(target=self._run, args=(link,), name=f"link-{link.peer}", daemon=True)
            for link in self._links
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_up(self) -> bool:
        """Whether all links are being served."""
        return not self._is_closed and not self._failures

    @property
    def failure(self) -> ExchangeError | None:
        """What ended the first link that ended before `close`."""
        return self._failures[0] if self._failures else None

    def close(self) -> None:
        """End all links and wait for what is being computed. Idempotent."""
        self._is_closed = True
        for link in self._links:
            link.close()
        for thread in self._threads:
            thread.join()

    def _run(self, link: Link) -> None:
        try:
            with torch.inference_mode():
                while True:
                    self._answer(link, link.receive(None, None))
        except ExchangeError as error:
            if not self._is_closed:
                self._failures.append(error)
        except Exception as error:
            # A defect, not a fault of the line: say so instead of leaving the peer to its deadline.
            self._failures.append(LinkError(link.peer, None, f"given up ({error!r})"))
        finally:
            link.close()

    def _answer(self, link: Link, rows: Message) -> None:
        header = rows.header
        if header.epoch != self._epoch or header.kind != ROWS:
            return  # Stale.
        answer = link.outgoing(header.layer)
        try:
            with self._turn:
                expert_ids, weights = rows.routing()
                results = self._serve(header.layer, rows.payload(), expert_ids, weights, header.num_results)
            answer.write_results(header._replace(kind=RESULTS), results)
        except Exception as error:
            answer.write_failure(header._replace(kind=FAILURE), f"{type(error).__name__}: {error}")
        link.send(answer, header.layer)
