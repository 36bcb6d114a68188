"""A link over one plain TCP connection: the fastest between processes of one host, and fine between CPU hosts."""

from __future__ import annotations

import select
import socket
from collections import deque
from contextlib import suppress

from actors.errors import LinkError
from actors.exchange.message import HEADER_BYTES, Message, MessageFormat

_KEEPALIVE_SECONDS = 5


class TcpLink:
    """A connected socket and the memory of the messages that pass through it."""

    def __init__(
        self,
        peer: str,
        epoch: int,
        connection: socket.socket,
        message_format: MessageFormat,
        deadline_seconds: float,
    ) -> None:
        """`deadline_seconds`: how long a host may be silent that has vanished without a word."""
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
        """What `receive` gives out, and where it is read to."""
        self._num_read = 0
        """Bytes of `incoming` so far."""
        self._end = HEADER_BYTES
        """Where what is to be read of `incoming` ends, as far as is known."""
        self.is_held_back = False
        """Whether `incoming` is whole and was not given out yet: `receive` does, and nothing more need arrive."""

    def fileno(self) -> int:
        return self._socket.fileno()

    def outgoing(self) -> Message:
        return self._free.pop() if self._free else Message(self._format)

    def send(self, message: Message) -> None:
        self._send(message, message.host_view[: message.num_host_bytes])

    def send_copy(self, message: Message) -> None:
        """Send the host's part of a message that is not this link's; it may be changed at once."""
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
        if self._num_read == self._end:  # given out by the call before
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
        """Go on where the kernels stopped: they have sent so many bytes of `message`, which `outgoing` gave, and read so
        many of the next one into `incoming`. Raises LinkError for bytes that are no message."""
        self.take_up_sending(message, num_sent)
        self.take_up_reading(num_read)

    def take_up_sending(self, message: Message, num_sent: int) -> None:
        """The one half of `take_up`."""
        message.read_header()
        rest = message.host_view[num_sent : message.num_host_bytes]
        if len(rest):
            self._unsent.append((message, rest))

    def take_up_reading(self, num_read: int) -> None:
        """The other half. Raises LinkError."""
        self.num_received += num_read
        self._num_read, self._end = num_read, HEADER_BYTES
        if num_read >= HEADER_BYTES:
            self._take_header(self.incoming)
        self.is_held_back = num_read == self._end

    @property
    def num_unfinished(self) -> int:
        """Bytes in `incoming` of a message that is not complete."""
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
    # A host that vanishes without a word is noticed while a link idles, too.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(deadline_seconds * 1000))
