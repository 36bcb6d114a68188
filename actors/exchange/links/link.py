"""One link: messages between one dense and one expert actor, in order, each way.

    dense/exchange.py, expert/server.py                                 use links
    backends/tcp_link.py, backends/gloo_link.py, backends/nccl_link.py  carry the bytes

No method waits: the owner of a link polls its `fileno` together with those of all other links. One thread
owns a link; other threads may call only `is_ended` and `end`.
"""

from __future__ import annotations

from typing import Protocol

from actors.exchange.message import Message


class Link(Protocol):
    """A link that is up."""

    @property
    def peer(self) -> str:
        """The name of the actor at the other end: "expert-3"."""

    @property
    def epoch(self) -> int:
        """The epoch of the membership in which the link came up.

        Every message carries it; messages of another epoch are dropped.
        """

    def fileno(self) -> int:
        """The descriptor to poll.

        After POLLIN call `receive`. Poll for POLLOUT while `has_unsent`, and then call `flush`.
        """

    def outgoing(self) -> Message:
        """A message to fill and pass to `send`. Raises LinkError if too many are still being sent."""

    def send(self, message: Message) -> None:
        """Send a message that `outgoing` gave; as much of it as the peer takes goes out at once.

        Raises LinkError if the link is broken.
        """

    @property
    def has_unsent(self) -> bool:
        """Whether the peer has not yet taken all bytes of the sent messages."""

    def flush(self) -> None:
        """Send more of the unsent bytes. Raises LinkError as `send` does."""

    def receive(self) -> Message | None:
        """The next message if it is complete, else None. It is valid until the next `receive`.

        Raises LinkError if the link is broken or closed, and for bytes that are no message.
        """

    @property
    def num_received(self) -> int:
        """A count that grows as the peer sends: bytes over TCP, messages over gloo."""

    def is_ended(self) -> bool:
        """Whether either end has closed the link; unread messages do not count."""

    def end(self) -> None:
        """End the link. The peer and a thread that polls the link notice at once. Idempotent."""

    def close(self) -> None:
        """End the link and free its sockets and memory. No thread may be polling it. Idempotent."""
