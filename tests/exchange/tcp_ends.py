"""Links over TCP whose two ends are in the test's own process."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from actors.exchange.links.backends.tcp_link import TcpLink
from actors.exchange.links.expert.server import LinkServer
from actors.exchange.message import MessageFormat


def tcp_ends(
    message_format: MessageFormat, seconds: float, dense: str = "dense-0", expert: str = "expert-0"
) -> tuple[TcpLink, TcpLink]:
    """Return the dense end and the expert end of a new link between the named actors."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    return (
        TcpLink(expert, 1, ours, message_format, seconds),
        TcpLink(dense, 1, theirs, message_format, seconds),
    )


@contextmanager
def served_ends(
    server: LinkServer, num_links: int, message_format: MessageFormat, seconds: float
) -> Iterator[list[TcpLink]]:
    """Yield the dense ends of new links that `server` serves. It is closed with them."""
    ends: list[TcpLink] = []
    try:
        for index in range(num_links):
            ours, theirs = tcp_ends(message_format, seconds, f"dense-{index}")
            ends.append(ours)
            server.add(theirs)
        yield ends
    finally:
        server.close()
        for end in ends:
            end.close()
