"""Gloo groups and links over them. A group is made of explicit parts; torch's global default group stays untouched.

A receive that misses its deadline closes its group's connections: that is how gloo is made to let go (`pg.abort` does
not wake a waiting receive), so `close_group` lets one miss on purpose.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Work

from actors.errors import LinkError
from actors.exchange.message import Message, MessageFormat
from actors.exchange.rendezvous import Rendezvous

_MESSAGE_TAG = 0
_CLOSING_TAG = 1
_MAX_OUTGOING = 16
"""Messages that may wait in gloo for a peer that does not take them."""
_CLOSE_SECONDS = 5.0
_FOR_EVER = timedelta(days=3650)
_LOOP_THREAD = "gloo_tcp_loop"
_LOOP_NICENESS = 19

_device_lock = threading.Lock()
_devices: dict[str, object] = {}


def open_group(key: str, rank: int, size: int, node_ip: str, rendezvous: Rendezvous) -> dist.ProcessGroup:
    """A group whose ranks meet under a key. All must be about to come: the call itself cannot be given up.

    Raises RuntimeError, as torch does.
    """
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [_shared_device(node_ip)]
    options._timeout = rendezvous.deadline.remaining
    options._threads = 1
    # It has a group's methods; torch's stubs give them to the wrapper of all backends only.
    return cast(dist.ProcessGroup, dist.ProcessGroupGloo(rendezvous.prefixed(key), rank, size, options))


def close_group(group: dist.ProcessGroup) -> None:
    """Close a group's connections: peers and waiting threads notice at once. From any thread; idempotent."""
    other = (group.rank() + 1) % group.size()
    # The error is the point: the receive has timed out, or the connection was gone already.
    with suppress(RuntimeError):
        group.recv([torch.empty(1, dtype=torch.uint8)], other, _CLOSING_TAG).wait(timedelta(milliseconds=1))


def reason(error: RuntimeError) -> str:
    """What gloo means, in the words of the other transports."""
    text = str(error)
    is_closed = "closed by peer" in text or "reset by peer" in text or "pair closure" in text
    return "closed" if is_closed else f"broken ({text})"


class GlooLink:
    """A group of two, whose next receive is always posted, so that a message is never held up by a handshake.

    Gloo has nothing to poll: one thread waits for what arrives and rings an eventfd, another waits until what was sent
    has left its memory.
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
        self._bell = os.eventfd(0, os.EFD_NONBLOCK)
        self._is_ended = False
        self._failure: LinkError | None = None
        self._free: deque[Message] = deque()
        self._num_outgoing = 0
        self._sent: queue.SimpleQueue[tuple[Work, Message] | None] = queue.SimpleQueue()
        self._spare: deque[Message] = deque()
        """For receiving."""
        self._arrived: deque[Message] = deque()
        self._current: Message | None = None
        """What the last `receive` gave out."""
        self._threads = [
            threading.Thread(target=target, name=f"gloo-{peer}", daemon=True)
            for target in (self._receive_all, self._confirm_all)
        ]
        for thread in self._threads:
            thread.start()

    def fileno(self) -> int:
        return self._bell

    def outgoing(self) -> Message:
        if self._free:
            return self._free.popleft()
        if self._num_outgoing == _MAX_OUTGOING:
            raise LinkError(self.peer, None, f"{_MAX_OUTGOING} messages are on their way, and it takes none")
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
            os.eventfd_read(self._bell)
        if self._arrived:
            self._current = self._arrived.popleft()
            if self._arrived or self._failure is not None:
                os.eventfd_write(self._bell, 1)  # Whoever stops asking here finds it readable again.
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
        if self._bell >= 0:
            os.close(self._bell)
            self._bell = -1

    def _receive_all(self) -> None:
        try:
            while True:
                message = self._spare.popleft() if self._spare else Message(self._format)
                # Of the maximum size: a shorter message is fine, a longer one would kill this process.
                self._group.recv([message.host], self._other, _MESSAGE_TAG).wait(_FOR_EVER)
                message.read_header()
                fault = message.fault()
                if fault is not None:
                    raise LinkError(self.peer, None, f"sent {fault}")
                self._arrived.append(message)
                self.num_received += 1
                os.eventfd_write(self._bell, 1)
        except RuntimeError as error:
            self._fail(LinkError(self.peer, None, "closed" if self._is_ended else reason(error)))
        except LinkError as error:
            self._fail(error)

    def _confirm_all(self) -> None:
        """What cannot be sent ends the link; the receiving thread hears of it from gloo."""
        while (item := self._sent.get()) is not None:
            work, message = item
            with suppress(RuntimeError):
                work.wait(_FOR_EVER)
            self._free.append(message)

    def _fail(self, error: LinkError) -> None:
        self._failure = error
        os.eventfd_write(self._bell, 1)


def _shared_device(node_ip: str) -> object:
    """One gloo device, and so one loop thread, per address for the whole process."""
    with _device_lock:
        if node_ip not in _devices:
            _devices[node_ip] = dist.ProcessGroupGloo.create_device(hostname=node_ip)
            _calm_loop_threads()
        return _devices[node_ip]


def _calm_loop_threads() -> None:
    """Nice 19 for gloo's loop: it spins while it waits for a lock whose holder waits for a core."""
    for task in Path("/proc/self/task").glob("*"):
        try:
            if (task / "comm").read_text().strip() == _LOOP_THREAD:
                os.setpriority(os.PRIO_PROCESS, int(task.name), _LOOP_NICENESS)
        except OSError:
            continue  # The thread has ended, or the system does not allow it; both cost speed at most.
