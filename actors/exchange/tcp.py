"""A link over one plain TCP connection: the fastest between processes of one host, and fine between CPU hosts.

The dense actor listens and publishes an address with a nonce under the link's key; the expert actor connects and shows the
nonce, so that nobody who cannot read the store gets a link.
"""

from __future__ import annotations

import hmac
import secrets
import select
import socket
import threading
from collections import deque
from contextlib import suppress

from actors.errors import DeadlineError, LinkError
from actors.exchange.deadline import Deadline
from actors.exchange.message import HEADER_BYTES, Message, MessageFormat
from actors.exchange.rendezvous import Rendezvous

_NONCE_BYTES = 16
_SLICE_SECONDS = 0.1
_KEEPALIVE_SECONDS = 5
_FOR_EVER_SECONDS = 1e9


class TcpLink:
    """A connected socket and the memory of the messages that pass through it."""

    def __init__(
        self, peer: str, connection: socket.socket, message_format: MessageFormat, deadline_seconds: float
    ) -> None:
        self._peer = peer
        self._socket = connection
        self._format = message_format
        self._deadline_seconds = deadline_seconds
        _tune(connection, deadline_seconds)
        self._readable = select.poll()
        self._readable.register(connection, select.POLLIN)
        self._either = select.poll()
        self._either.register(connection, select.POLLIN | select.POLLOUT)
        self._hang_up = select.poll()
        self._hang_up.register(connection, select.POLLRDHUP)
        self._in_use = threading.Lock()
        self._is_closed = False
        self._outgoing: Message | None = None
        self._free = [Message(message_format)]
        self._arrived: deque[Message] = deque()
        self._current: Message | None = None
        """What the last `receive` gave out."""
        self._partial: Message | None = None
        """What is being read, with the bytes read so far."""
        self._num_read = 0

    @property
    def peer(self) -> str:
        return self._peer

    def outgoing(self, layer: int | None) -> Message:
        self._outgoing = self._outgoing or Message(self._format)
        return self._outgoing

    def send(self, message: Message, layer: int | None) -> None:
        with self._in_use:
            self._send(message.host_view[: message.num_host_bytes], layer)

    def receive(self, layer: int | None, deadline: Deadline | None) -> Message:
        with self._in_use:
            if self._current is not None:
                self._free.append(self._current)
                self._current = None
            self._wait_to_receive(layer, deadline or Deadline(seconds=_FOR_EVER_SECONDS))
            self._current = self._arrived.popleft()
            return self._current

    def is_ended(self) -> bool:
        """Whether either end has closed the connection; unread messages do not count."""
        return self._is_closed or bool(self._hang_up.poll(0))

    def close(self) -> None:
        self._is_closed = True
        # This wakes a thread that waits on the socket. Only when it has let go may the descriptor's number pass on.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with self._in_use:
            self._socket.close()

    def _send(self, unsent: memoryview, layer: int | None) -> None:
        deadline: Deadline | None = None
        while unsent:
            try:
                unsent = unsent[self._socket.send(unsent) :]
            except BlockingIOError:
                deadline = deadline or Deadline(seconds=self._deadline_seconds)
                self._wait_to_send(deadline, layer)
            except OSError as error:
                raise self._broken(layer, error) from error

    def _wait_to_send(self, deadline: Deadline, layer: int | None) -> None:
        """Until there is room. Meanwhile what arrives is read: the peer may be stuck sending, to us."""
        events = self._either.poll(deadline.remaining_seconds * 1000)
        if not events:
            raise DeadlineError(self._peer, layer, "room for a message", deadline.seconds)
        if events[0][1] & ~select.POLLOUT:
            self._read_available(layer)

    def _wait_to_receive(self, layer: int | None, deadline: Deadline) -> None:
        """Until a whole message has arrived."""
        while not self._arrived:
            self._read_available(layer)
            if self._arrived:
                return
            is_readable = self._readable.poll(min(deadline.remaining_seconds, 1e6) * 1000)
            if not is_readable and deadline.has_passed:
                raise DeadlineError(self._peer, layer, "message", deadline.seconds)

    def _read_available(self, layer: int | None) -> None:
        """Read what is there, up to the end of a message, and never wait: two ends that waited for the rest of each
        other's message in the middle of their own would wait for ever."""
        message = self._partial
        if message is None:
            message = self._partial = self._free.pop() if self._free else Message(self._format)
            self._num_read = 0
        try:
            while not self._is_whole(message, layer):
                end = HEADER_BYTES if self._num_read < HEADER_BYTES else message.num_host_bytes
                count = self._socket.recv_into(message.host_view[self._num_read : end])
                if count == 0:
                    raise LinkError(self._peer, layer, "closed")
                self._num_read += count
        except BlockingIOError:
            return
        except OSError as error:
            raise self._broken(layer, error) from error
        self._partial = None
        self._arrived.append(message)

    def _is_whole(self, message: Message, layer: int | None) -> bool:
        """Whether all of it was read; as soon as the header was, it is checked."""
        if self._num_read < HEADER_BYTES:
            return False
        if self._num_read == HEADER_BYTES:
            fault = message.fault()
            if fault is not None:
                raise LinkError(self._peer, layer, f"sent {fault}")
        return self._num_read == message.num_host_bytes

    def _broken(self, layer: int | None, error: OSError) -> LinkError:
        is_closed = self._is_closed or isinstance(error, (ConnectionResetError, BrokenPipeError))
        return LinkError(self._peer, layer, "closed" if is_closed else f"broken ({error.strerror or error})")


class TcpListener:
    """The dense actor's end while its links come up. Use as a context manager."""

    def __init__(self, node_ip: str, rendezvous: Rendezvous) -> None:
        family = socket.AF_INET6 if ":" in node_ip else socket.AF_INET
        self._socket = socket.create_server((node_ip, 0), family=family, backlog=64)
        self._socket.settimeout(_SLICE_SECONDS)
        self._host = node_ip
        self._rendezvous = rendezvous

    def __enter__(self) -> TcpListener:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def accept(self, key: str, peer: str) -> socket.socket:
        """The peer's connection. Raises DeadlineError, or LinkError when the membership is given up."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        port = self._socket.getsockname()[1]
        self._rendezvous.publish(key, f"{self._host} {port} {nonce.hex()}")
        while True:
            self._rendezvous.check(peer, "connection")
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                continue
            if _shows(connection, nonce, self._rendezvous.deadline):
                return connection
            connection.close()


def connect(key: str, peer: str, rendezvous: Rendezvous) -> socket.socket:
    """The expert actor's end: connect to whom the key names. Raises DeadlineError or LinkError."""
    host, port, nonce = rendezvous.wait_for(key, peer).split()
    try:
        connection = socket.create_connection(
            (host, int(port)), timeout=max(0.001, rendezvous.deadline.remaining_seconds)
        )
        connection.sendall(bytes.fromhex(nonce))
    except TimeoutError as error:
        raise DeadlineError(peer, None, "connection", rendezvous.deadline.seconds) from error
    except OSError as error:
        raise LinkError(peer, None, f"cannot connect to {host}:{port} ({error.strerror or error})") from error
    return connection


def _shows(connection: socket.socket, nonce: bytes, deadline: Deadline) -> bool:
    """Whether the connection starts with the nonce. A stranger who sends nothing holds links up for a second at most."""
    received = b""
    limit = Deadline(seconds=min(1.0, deadline.remaining_seconds))
    try:
        while len(received) < len(nonce):
            connection.settimeout(max(0.001, limit.remaining_seconds))
            part = connection.recv(len(nonce) - len(received))
            if not part:
                return False
            received += part
    except OSError:
        return False
    return hmac.compare_digest(received, nonce)


def _tune(connection: socket.socket, deadline_seconds: float) -> None:
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A host that vanishes without a word is noticed while a link idles, too.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(deadline_seconds * 1000))
