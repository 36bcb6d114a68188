"""How an expert actor comes to a link: it knocks at a dense actor's door until it is let in or sent away."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass

from torch._C._distributed_c10d import Store

from actors.errors import DeadlineError, LinkError, StaleEpochError
from actors.exchange.deadline import Deadline
from actors.exchange.links.handshake import LinkHello, LinkReply, read_address_record, read_frame, send_frame

_PAUSE_SECONDS = 0.05
_SLICE_SECONDS = 0.2
_CONNECT_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinAttempt:
    """What all attempts of one join have in common."""

    deadline: Deadline
    stop: threading.Event
    """Set by whoever gives the membership up."""

    def check(self, peer: str, awaited: str) -> None:
        """Raise LinkError or DeadlineError when it is too late to go on."""
        if self.stop.is_set():
            raise LinkError(peer, None, "given up while it came up")
        if self.deadline.has_passed:
            raise DeadlineError(peer, None, awaited, self.deadline.seconds)


def connect(attempt: JoinAttempt, store: Store, peer: str, hello: LinkHello) -> socket.socket | None:
    """The connection that the dense actor has granted; None where it goes on with the link that is there.

    Raises StaleEpochError when it lives in a newer epoch, LinkError when it refuses or the store is gone,
    DeadlineError.
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
    """None where nobody answers: the next attempt may find another card."""
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
    """None where the connection ends without one."""
    while True:
        attempt.check(peer, "verdict on its link")
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
