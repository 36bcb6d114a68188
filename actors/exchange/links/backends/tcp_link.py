"""A link over one plain TCP connection: the fastest kind within a host, and good between CPU hosts."""

from __future__ import annotations

import select
import socket
from collections import deque
from contextlib import suppress

from actors.errors import LinkError
from actors.exchange.message import HEADER_BYTES, Message, MessageFormat

_KEEPALIVE_SECONDS = 5


class TcpLink:
    """A link made of a connected socket and the memory of the messages that pass through it."""

    def __init__(
        self,
        peer: str,
        epoch: int,
        connection: socket.socket,
        message_format: MessageFormat,
        deadline_seconds: float,
    ) -> None:
        """Sent bytes that stay unacknowledged for `deadline_seconds` break the link."""
        self.peer = peer
        self.epoch = epoch
        self.num_received = 0
        self._socket = connection
        self._format = message_format
        _tune(connection, deadline_seconds)
        self._hang_up = select.poll()
        self._hang_up.register(connection, select.POLLRDHUP)
        self._is_ended = False
        self._free: list[Message] = []
        self._unsent: deque[tuple[Message | None, memoryview]] = deque()
        self.incoming = Message(message_format)
        """The memory into which messages are read; `receive` returns it when a message is complete."""
        self._num_read = 0
        """Bytes of `incoming` that were read so far."""
        self._end = HEADER_BYTES
        """Bytes of `incoming` to read: those of the header, and once it was read, those of the message."""
        self.is_held_back = False
        """Whether `incoming` holds a complete message that the next `receive` returns without reading."""

    def fileno(self) -> int:
        return self._socket.fileno()

    def outgoing(self) -> Message:
        return self._free.pop() if self._free else Message(self._format)

    def send(self, message: Message) -> None:
        self._send(message, message.host_view[: message.num_host_bytes])

    def send_copy(self, message: Message) -> None:
        """Send the host's part of a message that this link does not own; the caller may change it at once."""
        self._send(None, memoryview(bytes(message.host_view[: message.num_host_bytes])))

    def _send(self, message: Message | None, data: memoryview) -> None:
        self._unsent.append((message, data))
        if len(self._unsent) == 1:
            self.flush()

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    def flush(self) -> None:
        try:
            while self._unsent:
                message, rest = self._unsent[0]
                count = self._socket.send(rest)
                if count < len(rest):
                    self._unsent[0] = (message, rest[count:])
                    continue
                self._unsent.popleft()
                if message is not None:
                    self._free.append(message)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._broken(error) from error

    def receive(self) -> Message | None:
        message = self.incoming
        if self.is_held_back:
            self.is_held_back = False
            return message
        if self._num_read == self._end:  # The last call returned this message.
            self._num_read, self._end = 0, HEADER_BYTES
        try:
            while True:
                count = self._socket.recv_into(message.host_view[self._num_read : self._end])
                if count == 0:
                    raise LinkError(self.peer, None, "closed")
                self.num_received += count
                self._num_read += count
                if self._num_read == HEADER_BYTES:
                    self._take_header(message)
                if self._num_read == self._end:
                    return message
        except BlockingIOError:
            return None
        except OSError as error:
            raise self._broken(error) from error

    def take_up(self, message: Message, num_sent: int, num_read: int) -> None:
        """Continue where the kernels stopped.

        They have sent `num_sent` bytes of `message`, which `outgoing` gave, and have read `num_read` bytes of
        the next message into `incoming`. Raises LinkError for bytes that are no message.
        """
        self.take_up_sending(message, num_sent)
        self.take_up_reading(num_read)

    def take_up_sending(self, message: Message, num_sent: int) -> None:
        """Continue to send `message` after the `num_sent` bytes that the kernels have sent."""
        message.read_header()
        rest = message.host_view[num_sent : message.num_host_bytes]
        if len(rest):
            self._unsent.append((message, rest))

    def take_up_reading(self, num_read: int) -> None:
        """Continue to read a message after the `num_read` bytes that the kernels have read into `incoming`.

        Raises LinkError for bytes that are no message.
        """
        self.num_received += num_read
        self._num_read, self._end = num_read, HEADER_BYTES
        if num_read >= HEADER_BYTES:
            self._take_header(self.incoming)
        self.is_held_back = num_read == self._end

    @property
    def num_unfinished(self) -> int:
        """Bytes in `incoming` that belong to an incomplete message."""
        return 0 if self._num_read == self._end else self._num_read

    def is_ended(self) -> bool:
        return self._is_ended or bool(self._hang_up.poll(0))

    def end(self) -> None:
        self._is_ended = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.end()
        self._socket.close()

    def _take_header(self, message: Message) -> None:
        message.read_header()
        fault = message.fault()
        if fault is not None:
            raise LinkError(self.peer, None, f"sent {fault}")
        self._end = message.num_host_bytes

    def _broken(self, error: OSError) -> LinkError:
        is_closed = self._is_ended or isinstance(error, (ConnectionResetError, BrokenPipeError))
        return LinkError(self.peer, None, "closed" if is_closed else f"broken ({error.strerror or error})")


def _tune(connection: socket.socket, deadline_seconds: float) -> None:
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Keepalive shows also on an idle link that the peer's host has vanished.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(deadline_seconds * 1000))
