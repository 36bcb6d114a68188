"""One link: messages between one dense and one expert actor, in order, each way.

    links.py (dense), serve_links.py (expert)     what is said
    link.py                                       how it is carried: tcp.py, gloo.py, nccl.py

Either end may send while the other sends; the receiver need not have asked first. A link has one user thread,
and `close` may be called from any other.
"""

from __future__ import annotations

from typing import Protocol

from actors.exchange.deadline import Deadline
from actors.exchange.message import Message


class Link(Protocol):
    """A link that is up."""

    @property
    def peer(self) -> str:
        """Who is at the other end, for people: "expert-3"."""

    def outgoing(self, layer: int | None) -> Message:
        """A message to fill and hand to `send`. Waits, with the link's deadline, until one is free."""

    def send(self, message: Message, layer: int | None) -> None:
        """Send what `outgoing` gave. It may still be under way at return.

        Raises LinkError when the link is broken or closed, DeadlineError when the peer does not take the bytes.
        """

    def receive(self, layer: int | None, deadline: Deadline | None) -> Message:
        """The next message, valid until the next `receive`. None waits until the link ends.

        Raises as `send` does; also LinkError for bytes that are no message. After an error the link is of no use.
        """

    def close(self) -> None:
        """End the link: the peer, and a thread of this process that waits on it, notice at once. Idempotent."""
