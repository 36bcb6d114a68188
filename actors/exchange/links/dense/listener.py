"""The listener of a dense actor, at which expert actors can ask for a link at any time of its life.

An expert actor reads the address and a secret from the dense actor's store, connects and says who it is. It
waits while its epoch is newer than any that this actor was told of. It gets no link if its epoch is older
than the newest, or if the newest membership does not name it.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from torch._C._distributed_c10d import Store

from actors.errors import ExchangeError
from actors.exchange.deadline import Deadline
from actors.exchange.links.handshake import (
    NO_LINK,
    SECRET_BYTES,
    LinkHello,
    LinkReply,
    is_same,
    publish_address_record,
    read_exactly,
    read_frame,
    send_frame,
)
from actors.exchange.links.link import Link
from actors.protocol.messages import Membership

logger = logging.getLogger(__name__)

_MAX_CONNECTING = 64
"""Connections that may be in the handshake at the same time; further ones are closed at once."""
_HELLO_SECONDS = 2.0


class LinkListener:
    """Listens until it is closed. Each connection has a thread of its own, so a slow peer delays no other."""

    def __init__(
        self,
        node_ip: str,
        store: Store,
        incarnation: str,
        deadline_seconds: float,
        make_link: Callable[[LinkHello, socket.socket], Link],
        has_link: Callable[[int, str, int], bool],
        take_link: Callable[[int, str, Link], None],
    ) -> None:
        """An expert actor with a newer epoch than this actor's waits `deadline_seconds` at most.

        `make_link` makes this end of a granted link, and takes over the connection, also if it raises
        ExchangeError. `has_link` takes an expert actor's index, its incarnation and the epoch of a link, and
        returns whether exactly that link is working. `take_link` gets each new link, with the expert actor's
        index and incarnation.
        """
        self._incarnation, self._deadline_seconds = incarnation, deadline_seconds
        self._make_link, self._has_link, self._take_link = make_link, has_link, take_link
        self._changed = threading.Condition()
        self._newest: Membership | None = None
        self._is_closed = False
        self._secret = secrets.token_bytes(SECRET_BYTES)
        self._room = threading.BoundedSemaphore(_MAX_CONNECTING)
        family = socket.AF_INET6 if ":" in node_ip else socket.AF_INET
        self._socket = socket.create_server((node_ip, 0), family=family, backlog=_MAX_CONNECTING)
        port = self._socket.getsockname()[1]
        publish_address_record(store, node_ip, port, self._secret)
        self._thread = threading.Thread(target=self._listen, name="link-listener", daemon=True)
        self._thread.start()

    def admit(self, membership: Membership) -> None:
        """Grant links to the expert actors of this membership from now on."""
        with self._changed:
            self._newest = membership
            self._changed.notify_all()

    def close(self) -> None:
        """Stop listening; refuse expert actors that wait. Idempotent."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the listening thread
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while not self._is_closed:
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                if not self._is_closed:
                    logger.warning("the link listener cannot accept a connection: %s", error)
                    with self._changed:
                        self._changed.wait(0.1)  # The error may last (too many open files, say); do not spin.
                continue
            if not self._room.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(
                target=self._answer, args=(connection,), name="link-handshake", daemon=True
            ).start()

    def _answer(self, connection: socket.socket) -> None:
        """Carry out the handshake; close the connection unless a link has taken it over."""
        is_taken = False
        try:
            deadline = Deadline(seconds=_HELLO_SECONDS)
            if not hmac.compare_digest(read_exactly(connection, SECRET_BYTES, deadline), self._secret):
                return
            hello = read_frame(connection, LinkHello, deadline)
            reply = self._wait_for_reply(hello)
            connection.settimeout(_HELLO_SECONDS)
            send_frame(connection, reply)
            if reply.outcome == "link":
                is_taken = True
                link = self._make_link(hello, connection)
                self._take_link(hello.expert_index, hello.incarnation, link)
        except (OSError, ValueError, ExchangeError) as error:
            logger.warning("a connection to the link listener gave no link: %s", error)
        finally:
            if not is_taken:
                connection.close()
            self._room.release()

    def _wait_for_reply(self, hello: LinkHello) -> LinkReply:
        with self._changed:
            self._changed.wait_for(
                lambda: (self._is_closed or (self._newest is not None and self._newest.epoch >= hello.epoch)),
                self._deadline_seconds,
            )
            newest = self._newest
        if self._is_closed or newest is None:
            return LinkReply(outcome="refused", epoch=-1, reason="this actor has joined no membership")
        reason = _objection(hello, newest, self._incarnation)
        if newest.epoch != hello.epoch:
            return LinkReply(outcome="stale", epoch=newest.epoch)
        if reason is not None:
            return LinkReply(outcome="refused", epoch=newest.epoch, reason=reason)
        is_there = hello.linked_epoch != NO_LINK and self._has_link(
            hello.expert_index, hello.incarnation, hello.linked_epoch
        )
        return LinkReply(outcome="keep" if is_there else "link", epoch=newest.epoch)


def _objection(hello: LinkHello, newest: Membership, incarnation: str) -> str | None:
    """Why this expert actor gets no link in the newest membership; None if it may have one."""
    if not is_same(hello.dense_incarnation, incarnation):
        return f"it looks for dense actor {hello.dense_incarnation!r}, this is {incarnation!r}"
    for member in newest.experts:
        if member.index == hello.expert_index and is_same(member.incarnation, hello.incarnation):
            return None
    return (
        f"epoch {newest.epoch} names no expert actor {hello.expert_index} "
        f"of incarnation {hello.incarnation!r}"
    )
