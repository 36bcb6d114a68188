"""Gloo groups and links over them. A group is made of explicit parts; torch's global default group stays untouched.

A receive that misses its deadline closes its group's connections: that is how gloo is made to let go (`pg.abort` does
not wake a waiting receive), so `close_group` lets one miss on purpose.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Work

from actors.errors import DeadlineError, LinkError
from actors.exchange.deadline import Deadline
from actors.exchange.message import Message, MessageFormat
from actors.exchange.rendezvous import Rendezvous

_MESSAGE_TAG = 0
_CLOSING_TAG = 1
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
    """A group of two, whose next receive is always posted, so that a message is never held up by a handshake."""

    def __init__(
        self, peer: str, group: dist.ProcessGroup, message_format: MessageFormat, deadline_seconds: float
    ) -> None:
        self._peer = peer
        self._group = group
        self._other = 1 - group.rank()
        self._deadline_seconds = deadline_seconds
        # Two each way: one in use, one with gloo.
        self._outgoing = [Message(message_format) for _ in range(2)]
        self._sends: list[Work | None] = [None, None]
        self._incoming = [Message(message_format) for _ in range(2)]
        self._receive = self._post(self._incoming[1])

    @property
    def peer(self) -> str:
        return self._peer

    def outgoing(self, layer: int | None) -> Message:
        self._sends.reverse()
        self._outgoing.reverse()
        work = self._sends[0]
        if work is not None:
            self._wait(work, layer, Deadline(seconds=self._deadline_seconds), "room for a message")
            self._sends[0] = None
        return self._outgoing[0]

    def send(self, message: Message, layer: int | None) -> None:
        assert message is self._outgoing[0]
        try:
            part = message.host[: message.num_host_bytes]
            self._sends[0] = self._group.send([part], self._other, _MESSAGE_TAG)
        except RuntimeError as error:
            raise self._broken(layer, error) from error

    def receive(self, layer: int | None, deadline: Deadline | None) -> Message:
        self._wait(self._receive, layer, deadline, "message")
        self._incoming.reverse()
        message = self._incoming[0]
        fault = message.fault()
        if fault is not None:
            raise LinkError(self._peer, layer, f"sent {fault}")
        try:
            self._receive = self._post(self._incoming[1])
        except RuntimeError as error:
            raise self._broken(layer, error) from error
        return message

    def close(self) -> None:
        close_group(self._group)

    def _post(self, message: Message) -> Work:
        # Of the maximum size: a shorter message is fine, a longer one would kill this process.
        return self._group.recv([message.host], self._other, _MESSAGE_TAG)

    def _wait(self, work: Work, layer: int | None, deadline: Deadline | None, awaited: str) -> None:
        try:
            work.wait(_FOR_EVER if deadline is None else deadline.remaining)
        except RuntimeError as error:
            if deadline is not None and deadline.has_passed:
                raise DeadlineError(self._peer, layer, awaited, deadline.seconds) from error
            raise self._broken(layer, error) from error

    def _broken(self, layer: int | None, error: RuntimeError) -> LinkError:
        return LinkError(self._peer, layer, reason(error))


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
