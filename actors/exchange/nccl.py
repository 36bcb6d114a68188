"""Links between CUDA devices: header and routing over TCP, rows and results over NCCL. Not run where this was written.

    host      header, routing      the TCP connection: says what comes, ends when the peer does
    device    rows -> , results <- one communicator of two ranks for each direction

A receive is launched when its header is there, with its exact size: an idle link keeps no kernel spinning, and a dead
peer is known from its connection at once, where NCCL alone would hang. Two communicators, because one would carry a
receive only after every send that was launched before it, and two actors that send at the same time would never end.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Work

from actors.errors import DeadlineError, LinkError
from actors.exchange.deadline import Deadline
from actors.exchange.message import FAILURE, Message
from actors.exchange.rendezvous import Rendezvous
from actors.exchange.tcp import TcpLink

_POLL_SECONDS = 20e-6
_POLLS_PER_CHECK = 50


def open_group(
    key: str, rank: int, size: int, device: torch.device, rendezvous: Rendezvous
) -> dist.ProcessGroup:
    """A nonblocking communicator whose ranks meet under a key. Raises RuntimeError, as torch does."""
    # Else torch's watchdog ends the process when a peer dies; here a dead peer is one link's affair.
    os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
    options = dist.ProcessGroupNCCL.Options()
    options.config.blocking = 0
    options._timeout = rendezvous.deadline.remaining
    with torch.cuda.device(device):
        group = dist.ProcessGroupNCCL(rendezvous.prefixed(key), rank, size, options)
        group.eager_connect_single_device(device)
    # It has a group's methods; torch's stubs give them to the wrapper of all backends only.
    return cast(dist.ProcessGroup, group)


class NcclLink:
    """A TCP link for what hosts read, and a communicator each way for what devices read."""

    def __init__(
        self,
        carrier: TcpLink,
        outward: dist.ProcessGroup,
        inward: dist.ProcessGroup,
        messages: tuple[Message, Message],
        deadline_seconds: float,
    ) -> None:
        """`messages` are the two for sending: one in use, one with NCCL."""
        self._carrier = carrier
        self._outward = outward
        self._inward = inward
        self._outgoing = list(messages)
        self._sends: list[Work | None] = [None, None]
        self._deadline_seconds = deadline_seconds

    @property
    def peer(self) -> str:
        return self._carrier.peer

    def outgoing(self, layer: int | None) -> Message:
        self._sends.reverse()
        self._outgoing.reverse()
        work = self._sends[0]
        if work is not None:
            self._wait(work, layer, Deadline(seconds=self._deadline_seconds))
            self._sends[0] = None
        return self._outgoing[0]

    def send(self, message: Message, layer: int | None) -> None:
        assert message is self._outgoing[0]
        self._carrier.send(message, layer)
        if _has_payload(message):
            other = 1 - self._outward.rank()
            self._sends[0] = self._launch(lambda: self._outward.send([message.payload()], other, 0), layer)

    def receive(self, layer: int | None, deadline: Deadline | None) -> Message:
        message = self._carrier.receive(layer, deadline)
        if _has_payload(message):
            other = 1 - self._inward.rank()
            work = self._launch(lambda: self._inward.recv([message.payload()], other, 0), layer)
            self._wait(work, layer, Deadline(seconds=self._deadline_seconds))
        return message

    def close(self) -> None:
        self._carrier.close()
        for group in (self._outward, self._inward):
            group.abort()

    def _launch(self, launch: Callable[[], Work], layer: int | None) -> Work:
        try:
            return launch()
        except RuntimeError as error:
            raise LinkError(self.peer, layer, f"broken ({error})") from error

    def _wait(self, work: Work, layer: int | None, deadline: Deadline) -> None:
        """Until the device is done. The host confirms it, so that no compute is ever queued behind a dead peer."""

        def check() -> None:
            if self._carrier.is_ended():
                raise LinkError(self.peer, layer, "closed")
            if deadline.has_passed:
                raise DeadlineError(self.peer, layer, "rows on the device", deadline.seconds)

        try:
            poll(work, check)
        except RuntimeError as error:
            raise LinkError(self.peer, layer, f"broken ({error})") from error


def poll(work: Work, check: Callable[[], None]) -> None:
    """Until the device has done the work, with a look at `check`, which may raise, every few rounds."""
    num_polls = 0
    while not work.is_completed():
        num_polls += 1
        if num_polls % _POLLS_PER_CHECK == 0:
            check()
        time.sleep(_POLL_SECONDS)
    work.wait()


def _has_payload(message: Message) -> bool:
    return message.header.kind != FAILURE and message.payload().numel() > 0
