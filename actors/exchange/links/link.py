"""One link: messages between one dense and one expert actor, in order, each way.

    dense/exchange.py, expert/server.py                                 what is said
    backends/tcp_link.py, backends/gloo_link.py, backends/nccl_link.py  how the bytes are carried

Nothing here waits: whoever owns a link polls `fileno` together with those of all other links. One thread owns a link;
only `is_ended` and `end` may be called from others.
"""

from __future__ import annotations

from typing import Protocol

from actors.exchange.message import Message


class Link(Protocol):
    """A link that is up."""

    @property
    def peer(self) -> str:
        """Who is at the other end, for people: "expert-3"."""

    @property
    def epoch(self) -> int:
        """Of the membership under which it came up. Each message carries it; one of another epoch is not meant."""

    def fileno(self) -> int:
        """Poll it for POLLIN: then `receive` may have something; and for POLLOUT while `has_unsent`: then `flush`."""

    def outgoing(self) -> Message:
        """A message to fill and hand to `send`. Raises LinkError when too many are still on their way."""

    def send(self, message: Message) -> None:
        """Send what `outgoing` gave, now as much of it as the peer takes. Raises LinkError when the link is broken."""

    @property
    def has_unsent(self) -> bool:
        """Whether the peer has not taken everything yet."""

    def flush(self) -> None:
        """Send more of what is unsent. Raises as `send` does."""

    def receive(self) -> Message | None:
        """The next message if all of it is there, valid until the next `receive`.

        Raises LinkError when the link is broken or closed, and for bytes that are no message.
        """

    @property
    def num_received(self) -> int:
        """Bytes or messages so far: a peer that is sending something long makes it grow."""

    def is_ended(self) -> bool:
        """Whether either end has closed the link; unread messages do not count."""

    def end(self) -> None:
        """End the link: the peer and whoever polls it notice at once. Idempotent."""

    def close(self) -> None:
        """`end` it and give back what it holds. Nobody may be polling it. Idempotent."""
