"""Lets the C kernels answer for an expert actor by themselves while nothing unusual happens.

    run         as links get messages one after the other: read, compute, answer (actors/kernels/c/serve.c)
    hand_back   something else has happened: each link continues where the kernels stopped

All decisions stay in `server.py`. While the kernels serve, the interpreter's lock is free.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from actors.exchange.links.backends.tcp_link import TcpLink
from actors.exchange.links.link import Link
from actors.exchange.message import MAGIC, Message
from actors.kernels.library import load
from actors.kernels.serve import ServeLink, ServeTables, ServeTask

_MAX_LINKS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class _Line:
    """A link, and the message that the kernels fill with its answers."""

    link: TcpLink
    outgoing: Message


class KernelServer:
    """The links and experts as the kernels see them. A change of either needs a new object.

    One thread uses it.
    """

    def __init__(self, tables: ServeTables, links: list[TcpLink], wakeup: int) -> None:
        self.tables = tables
        """The experts for which this object was made."""
        self._lines = [_Line(link=link, outgoing=link.outgoing()) for link in links]
        self._state = (ServeLink * len(links))(
            *(
                ServeLink(
                    descriptor=line.link.fileno(),
                    epoch=line.link.epoch,
                    incoming=line.link.incoming.host.data_ptr(),
                    outgoing=line.outgoing.host.data_ptr(),
                )
                for line in self._lines
            )
        )
        message_format = links[0].incoming.format
        self._ids = np.empty((message_format.max_rows, message_format.num_choices), dtype=np.int64)
        self._task = ServeTask(
            links=ctypes.addressof(self._state),
            layers=ctypes.addressof(tables.layers),
            expert_rows=tables.expert_rows.ctypes.data,
            expert_ids=self._ids.ctypes.data,
            num_links=len(links),
            num_layers=len(tables.layers),
            num_experts=len(tables.expert_rows),
            num_choices=message_format.num_choices,
            max_tokens=message_format.max_rows,
            hidden_size=message_format.hidden_size,
            width=tables.width,
            row_bytes=message_format.row_bytes,
            magic=MAGIC,
            wakeup=wakeup,
            is_bf16=tables.is_bf16,
            num_threads=tables.num_threads,
        )

    @staticmethod
    def make(tables: ServeTables, links: Iterable[Link], wakeup: int) -> KernelServer | None:
        """A server for these links; None unless all are TCP links, at least one and at most _MAX_LINKS."""
        listed = list(links)
        known = [link for link in listed if isinstance(link, TcpLink)]
        if not known or len(known) < len(listed) or len(known) > _MAX_LINKS:
            return None
        return KernelServer(tables, known, wakeup)

    def run(self) -> None:
        """Serve until something unusual happens or `wakeup` is readable. No link may have unsent bytes."""
        kernels = load()
        assert kernels is not None
        for state, line in zip(self._state, self._lines, strict=True):
            state.num_read = line.link.num_unfinished
            state.num_bytes = state.num_sent = 0
        kernels.serve_links(ctypes.addressof(self._task))

    @property
    def links(self) -> list[TcpLink]:
        """The links that are served."""
        return [line.link for line in self._lines]

    def hand_back(self, index: int) -> Message | None:
        """Let a link continue where the kernels stopped; return a complete unanswered message, if any.

        Raises LinkError for bytes that are no message.
        """
        state, line = self._state[index], self._lines[index]
        if state.num_sent < state.num_bytes:
            line.link.take_up_sending(line.outgoing, state.num_sent)
        line.link.take_up_reading(state.num_read)
        return line.link.receive() if line.link.is_held_back else None
