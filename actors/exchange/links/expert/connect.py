"""Asks a dense actor for a link: an expert actor connects to its listener until it gets a reply."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass

from torch._C._distributed_c10d import Store

from actors.errors import DeadlineError, LinkError, StaleEpochError
from actors.exchange.deadline import Deadline
from actors.exchange.links.handshake import LinkHello, LinkReply, read_address_record, read_frame, send_frame

_PAUSE_SECONDS = 0.05
"""Between two attempts."""
_SLICE_SECONDS = 0.2
"""A wait for the reply is cut into parts of this length, so that it can be given up."""
_CONNECT_SECONDS = 3.0
"""How long one attempt to connect may take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinAttempt:
    """The limits of all attempts that belong to one join."""

    deadline: Deadline
    stop: threading.Event
    """Set when the membership is given up."""

    def check(self, peer: str, awaited: str) -> None:
        """Raise LinkError if the membership was given up, DeadlineError if the deadline has passed."""
        if self.stop.is_set():
            raise LinkError(peer, None, "given up while it came up")
        if self.deadline.has_passed:
            raise DeadlineError(peer, None, awaited, self.deadline.seconds)


def connect(attempt: JoinAttempt, store: Store, peer: str, hello: LinkHello) -> socket.socket | None:
    """Return a connection that the dense actor has granted; None if it keeps the present link.

    Raises StaleEpochError if the dense actor lives in a newer epoch, LinkError if it refuses or its store is
    unreachable, and DeadlineError.
    """
    while True:
        attempt.check(peer, "link")
        try:
            record = read_address_record(store)
        except RuntimeError as error:
            raise LinkError(peer, None, f"the store for links is unreachable ({error})") from error
        connection = None if record is None else _connect(attempt, record, hello)
        if connection is not None:
            try:
                reply = _wait_for_reply(attempt, peer, connection)
            except BaseException:
                connection.close()
                raise
            if reply is not None:
                return _carry_out(peer, connection, hello, reply)
            connection.close()
        attempt.stop.wait(_PAUSE_SECONDS)


def _connect(attempt: JoinAttempt, record: tuple[str, int, bytes], hello: LinkHello) -> socket.socket | None:
    """Connect and send the hello. None if nobody answers; the next attempt reads the address again."""
    host, port, secret = record
    seconds = max(0.001, min(_CONNECT_SECONDS, attempt.deadline.remaining_seconds))
    try:
        connection = socket.create_connection((host, port), timeout=seconds)
    except OSError:
        return None
    try:
        send_frame(connection, hello, prefix=secret)
    except OSError:
        connection.close()
        return None
    return connection


def _wait_for_reply(attempt: JoinAttempt, peer: str, connection: socket.socket) -> LinkReply | None:
    """The dense actor's reply; None if the connection ends without a reply."""
    while True:
        attempt.check(peer, "reply about its link")
        connection.settimeout(min(_SLICE_SECONDS, max(0.001, attempt.deadline.remaining_seconds)))
        try:
            if connection.recv(1, socket.MSG_PEEK):
                return read_frame(connection, LinkReply, attempt.deadline)
            return None
        except TimeoutError:
            continue
        except OSError:
            return None
        except ValueError as error:
            raise LinkError(peer, None, f"sent {error}") from error


def _carry_out(
    peer: str, connection: socket.socket, hello: LinkHello, reply: LinkReply
) -> socket.socket | None:
    if reply.outcome == "link":
        return connection
    connection.close()
    if reply.outcome == "keep":
        return None
    if reply.outcome == "stale":
        raise StaleEpochError(hello.epoch, reply.epoch)
    raise LinkError(peer, None, f"refused: {reply.reason}")
