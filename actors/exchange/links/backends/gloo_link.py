"""Links over gloo groups of two."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import Work

from actors.errors import LinkError
from actors.exchange.message import Message, MessageFormat
from actors.exchange.process_groups.gloo import close_group, reason

_MESSAGE_TAG = 0
_MAX_OUTGOING = 16
"""How many messages may wait in gloo for a peer that does not receive them."""
_CLOSE_SECONDS = 5.0
_FOR_EVER = timedelta(days=3650)


class GlooLink:
    """A link over a gloo group of two. A receive is always posted, so no message waits for a handshake.

    Gloo has no descriptor to poll. One thread waits for messages and makes an eventfd readable; another
    thread waits until sent messages have left their memory.
    """

    def __init__(
        self, peer: str, epoch: int, group: dist.ProcessGroup, message_format: MessageFormat
    ) -> None:
        self.peer = peer
        self.epoch = epoch
        self.num_received = 0
        self._group = group
        self._other = 1 - group.rank()
        self._format = message_format
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK)
        self._is_ended = False
        self._failure: LinkError | None = None
        self._free: deque[Message] = deque()
        self._num_outgoing = 0
        self._sent: queue.SimpleQueue[tuple[Work, Message] | None] = queue.SimpleQueue()
        self._spare: deque[Message] = deque()
        """Messages whose memory is free to receive into."""
        self._arrived: deque[Message] = deque()
        self._current: Message | None = None
        """The message that the last `receive` returned."""
        self._threads = [
            threading.Thread(target=target, name=f"gloo-{peer}", daemon=True)
            for target in (self._receive_all, self._confirm_all)
        ]
        for thread in self._threads:
            thread.start()

    def fileno(self) -> int:
        return self._wakeup

    def outgoing(self) -> Message:
        if self._free:
            return self._free.popleft()
        if self._num_outgoing == _MAX_OUTGOING:
            raise LinkError(
                self.peer, None, f"{_MAX_OUTGOING} messages are on their way, and the peer takes none"
            )
        self._num_outgoing += 1
        return Message(self._format)

    def send(self, message: Message) -> None:
        try:
            part = message.host[: message.num_host_bytes]
            self._sent.put((self._group.send([part], self._other, _MESSAGE_TAG), message))
        except RuntimeError as error:
            raise LinkError(self.peer, None, reason(error)) from error

    @property
    def has_unsent(self) -> bool:
        return False  # Gloo's own thread sends.

    def flush(self) -> None:
        pass

    def receive(self) -> Message | None:
        if self._current is not None:
            self._spare.append(self._current)
            self._current = None
        with suppress(BlockingIOError):
            os.eventfd_read(self._wakeup)
        if self._arrived:
            self._current = self._arrived.popleft()
            if self._arrived or self._failure is not None:
                os.eventfd_write(self._wakeup, 1)  # The next poll returns at once.
        elif self._failure is not None:
            raise self._failure
        return self._current

    def is_ended(self) -> bool:
        return self._is_ended or self._failure is not None

    def end(self) -> None:
        self._is_ended = True
        close_group(self._group)

    def close(self) -> None:
        self.end()
        self._sent.put(None)
        for thread in self._threads:
            thread.join(_CLOSE_SECONDS)
        if self._wakeup >= 0:
            os.close(self._wakeup)
            self._wakeup = -1

    def _receive_all(self) -> None:
        try:
            while True:
                message = self._spare.popleft() if self._spare else Message(self._format)
                # The memory has the maximum size, since a longer message would kill this process.
                self._group.recv([message.host], self._other, _MESSAGE_TAG).wait(_FOR_EVER)
                message.read_header()
                fault = message.fault()
                if fault is not None:
                    raise LinkError(self.peer, None, f"sent {fault}")
                self._arrived.append(message)
                self.num_received += 1
                os.eventfd_write(self._wakeup, 1)
        except RuntimeError as error:
            self._fail(LinkError(self.peer, None, "closed" if self._is_ended else reason(error)))
        except LinkError as error:
            self._fail(error)

    def _confirm_all(self) -> None:
        """Wait until sent messages have left their memory, and make the memory free for new messages.

        A message that cannot be sent ends the link; gloo tells the receiving thread.
        """
        while (item := self._sent.get()) is not None:
            work, message = item
            with suppress(RuntimeError):
                work.wait(_FOR_EVER)
            self._free.append(message)

    def _fail(self, error: LinkError) -> None:
        self._failure = error
        os.eventfd_write(self._wakeup, 1)
