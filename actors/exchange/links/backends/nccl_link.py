"""Links between CUDA devices: header and routing over TCP, rows and results over NCCL.

    host      header, routing      the TCP connection, which announces each message and ends with the peer
    device    rows -> , results <- one communicator of two ranks for each direction

A receive is launched when its header has come, with its exact size, so an idle link keeps no kernel spinning.
The connection shows a dead peer at once, where NCCL alone would hang. There are two communicators because a
single one would carry a receive only after every send launched before it: two actors that send at the same
time would never end. This file needs two GPUs and has not been run yet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch.distributed as dist
from torch._C._distributed_c10d import Work

from actors.errors import LinkError
from actors.exchange.deadline import Deadline
from actors.exchange.links.backends.tcp_link import TcpLink
from actors.exchange.message import RESULTS, ROWS, Message, MessageFormat
from actors.exchange.process_groups.nccl import poll

_MAX_OUTGOING = 8
"""How many messages may wait in NCCL for a peer that does not receive them."""


class NcclLink:
    """A TCP link for the parts that hosts read, and two communicators for the parts that devices read."""

    def __init__(
        self,
        carrier: TcpLink,
        outward: dist.ProcessGroup,
        inward: dist.ProcessGroup,
        message_format: MessageFormat,
        deadline_seconds: float,
    ) -> None:
        self._carrier = carrier
        self._outward = outward
        self._inward = inward
        self._format = message_format
        self._free: list[Message] = []
        self._sends: deque[tuple[Work, Message]] = deque()
        self._deadline_seconds = deadline_seconds
        self._is_closed = False

    @property
    def peer(self) -> str:
        return self._carrier.peer

    @property
    def epoch(self) -> int:
        return self._carrier.epoch

    @property
    def num_received(self) -> int:
        return self._carrier.num_received

    def fileno(self) -> int:
        return self._carrier.fileno()

    def outgoing(self) -> Message:
        while self._sends and self._sends[0][0].is_completed():
            self._free.append(self._sends.popleft()[1])
        if self._free:
            return self._free.pop()
        if len(self._sends) == _MAX_OUTGOING:
            raise LinkError(
                self.peer, None, f"{_MAX_OUTGOING} messages are on their way, and the peer takes none"
            )
        return Message(self._format)

    def send(self, message: Message) -> None:
        # The device part goes first: once the peer has the header, the rows come even if this process stops.
        if _has_payload(message):
            other = 1 - self._outward.rank()
            work = self._launch(lambda: self._outward.send([message.payload()], other, 0))
            self._sends.append((work, message))
        else:
            self._free.append(message)
        self._carrier.send_copy(message)

    @property
    def has_unsent(self) -> bool:
        return self._carrier.has_unsent

    def flush(self) -> None:
        self._carrier.flush()

    def receive(self) -> Message | None:
        message = self._carrier.receive()
        if message is not None and _has_payload(message):
            other = 1 - self._inward.rank()
            self._wait(self._launch(lambda: self._inward.recv([message.payload()], other, 0)))
        return message

    def is_ended(self) -> bool:
        return self._carrier.is_ended()

    def end(self) -> None:
        self._carrier.end()

    def close(self) -> None:
        self._carrier.close()
        if not self._is_closed:
            self._is_closed = True
            for group in (self._outward, self._inward):
                group.abort()

    def _launch(self, launch: Callable[[], Work]) -> Work:
        try:
            return launch()
        except RuntimeError as error:
            raise LinkError(self.peer, None, f"broken ({error})") from error

    def _wait(self, work: Work) -> None:
        """Wait on the host until the device is done, so that no compute is ever queued behind a dead peer."""
        deadline = Deadline(seconds=self._deadline_seconds)

        def check() -> None:
            if self._carrier.is_ended():
                raise LinkError(self.peer, None, "closed")
            if deadline.has_passed:
                raise LinkError(self.peer, None, f"no rows on the device within {deadline.seconds:g} s")

        try:
            poll(work, check)
        except RuntimeError as error:
            raise LinkError(self.peer, None, f"broken ({error})") from error


def _has_payload(message: Message) -> bool:
    return message.header.kind in (ROWS, RESULTS) and message.payload().numel() > 0
