"""The transport "links", seen from an expert actor: one thread serves all dense actors.

    in a loop    read the messages that have arrived on any link
                 take the message that has waited longest, and with it all messages for the same layer, so
                 that the layer's weights are read once
                 compute, and answer each message

Results do not depend on which messages were computed together. A link whose peer does not receive its answers
is not read until the peer does; the other links are served meanwhile. While messages come one at a time and
nothing else happens, the kernels do all this without Python (`kernel_server.py`).
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import torch

from actors.errors import LinkError
from actors.exchange.interface import NotHeldError, Serve
from actors.exchange.links.expert.kernel_server import KernelServer
from actors.exchange.links.link import Link
from actors.exchange.message import FAILURE, NOT_HELD, RESULTS, ROWS, Message
from actors.kernels.serve import ServeTables


class LinkServer:
    """Serves until it is closed. Links come and go: any thread may call `add` and `remove`."""

    def __init__(
        self,
        serve: Serve,
        deadline_seconds: float,
        tables: Callable[[], ServeTables | None] = lambda: None,
    ) -> None:
        """A peer that receives nothing of its answers for `deadline_seconds` is dropped.

        `tables` returns the experts with which `serve` computes, if the kernels can compute with them as
        well, else None. The serving thread calls it, again after each `wake`.
        """
        self._serve = serve
        self._tables = tables
        self._kernels: KernelServer | None = None
        """The kernels' server for the present links and tables."""
        self._deadline_seconds = deadline_seconds
        self._guard = threading.Lock()
        """Protects the two lists below and the closing of `_wakeup`."""
        self._new: list[Link] = []
        self._unwanted: list[Link] = []
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._wakeup, select.POLLIN)
        self._links: dict[int, Link] = {}
        """All served links by file descriptor."""
        self._stuck: dict[int, float] = {}
        """Links with unsent answers, by descriptor: since when the peer has taken nothing."""
        self._waiting: deque[tuple[Link, Message]] = deque()
        """At most one message of each link, in order of arrival."""
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="serve-links", daemon=True)
        self._thread.start()

    def add(self, link: Link) -> None:
        with self._guard:
            self._new.append(link)
        self.wake()

    def remove(self, link: Link) -> None:
        """End a link; results that are being computed for it are dropped."""
        link.end()
        with self._guard:
            self._unwanted.append(link)
        self.wake()

    def close(self) -> None:
        """End all links and wait for the computation under way. Idempotent."""
        self._is_closed = True
        self.wake()
        self._thread.join()
        with self._guard:
            wakeup, self._wakeup = self._wakeup, -1
        if wakeup >= 0:
            os.close(wakeup)

    def wake(self) -> None:
        """Make the serving thread check for new links, removed links and new tables. For any thread."""
        with self._guard:
            if self._wakeup >= 0:
                os.eventfd_write(self._wakeup, 1)

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while not self._is_closed:
                    self._run_kernels()
                    self._read_all()
                    if self._waiting:
                        self._answer_next()
        finally:
            with self._guard:
                links = {*self._new, *self._unwanted, *self._links.values()}
            for link in links:
                link.close()

    def _run_kernels(self) -> None:
        """Let the kernels serve by themselves until something unusual happens, if they can."""
        tables = self._tables()
        if self._kernels is None or self._kernels.tables is not tables:
            self._kernels = (
                None if tables is None else KernelServer.make(tables, self._links.values(), self._wakeup)
            )
        kernels = self._kernels
        if kernels is None or self._waiting or self._stuck:
            return
        kernels.run()
        for index, link in enumerate(kernels.links):
            descriptor = link.fileno()
            try:
                message = kernels.hand_back(index)
                self._watch(descriptor, link)
                if message is not None:
                    self._take(descriptor, link, message)
            except LinkError:
                self._drop(descriptor, link)

    def _read_all(self) -> None:
        """Take at most one message from each link; block only if no message is waiting already."""
        timeout = 0 if self._waiting else self._milliseconds_to_deadline()
        for descriptor, events in self._poll.poll(timeout):
            if descriptor == self._wakeup:
                with suppress(BlockingIOError):
                    os.eventfd_read(self._wakeup)
                self._take_changes()
                continue
            link = self._links.get(descriptor)
            if link is None:
                continue
            try:
                if any(waiting is link for waiting, _ in self._waiting):
                    # This link is polled for no event, so the poll can only report its end.
                    raise LinkError(link.peer, None, "closed")
                if link.has_unsent:
                    self._flush(descriptor, link, bool(events & ~select.POLLOUT))
                elif (message := link.receive()) is not None:
                    self._take(descriptor, link, message)
            except LinkError:
                self._drop(descriptor, link)
        if self._stuck:
            self._drop_stuck()

    def _take_changes(self) -> None:
        with self._guard:
            new, self._new = self._new, []
            unwanted, self._unwanted = self._unwanted, []
        if new:
            self._kernels = None
        for link in new:
            self._links[link.fileno()] = link
            self._poll.register(link.fileno(), select.POLLIN)
        for link in unwanted:
            for descriptor, present in list(self._links.items()):
                if present is link:
                    self._drop(descriptor, link)

    def _take(self, descriptor: int, link: Link, message: Message) -> None:
        header = message.header
        if header.epoch == link.epoch and header.kind == ROWS:  # Other messages are stale.
            self._waiting.append((link, message))
            self._poll.modify(descriptor, 0)  # The next message waits until this message is answered.

    def _answer_next(self) -> None:
        """Compute and answer the message that waits longest, with all messages for the same layer."""
        layer = self._waiting[0][1].header.layer
        together = [(link, message) for link, message in self._waiting if message.header.layer == layer]
        self._waiting = deque(item for item in self._waiting if item[1].header.layer != layer)
        if len(together) == 1:
            self._answer_alone(*together[0])
            return
        messages = [message for _, message in together]
        try:
            routes = [message.routing() for message in messages]
            counts = [message.header.num_results for message in messages]
            results = self._serve(
                layer,
                torch.cat([message.payload() for message in messages]),
                torch.cat([ids for ids, _ in routes]),
                torch.cat([weights for _, weights in routes]),
                sum(counts),
            )
        except Exception:
            # Computing each message alone shows which of them cannot be computed.
            for link, message in together:
                self._answer_alone(link, message)
            return
        for (link, message), part in zip(together, torch.split(results, counts), strict=True):
            self._send(link, message, part)

    def _answer_alone(self, link: Link, message: Message) -> None:
        header = message.header
        try:
            expert_ids, weights = message.routing()
            results: torch.Tensor | Exception = self._serve(
                header.layer, message.payload(), expert_ids, weights, header.num_results
            )
        except Exception as error:
            results = error
        self._send(link, message, results)

    def _send(self, link: Link, message: Message, results: torch.Tensor | Exception) -> None:
        descriptor = link.fileno()
        if self._links.get(descriptor) is not link:
            return  # Dropped while its rows were computed.
        header = message.header
        try:
            answer = link.outgoing()
            if isinstance(results, NotHeldError):
                answer.write_failure(header._replace(kind=NOT_HELD), str(results))
            elif isinstance(results, Exception):
                answer.write_failure(header._replace(kind=FAILURE), f"{type(results).__name__}: {results}")
            else:
                answer.write_results(header._replace(kind=RESULTS), results)
            link.send(answer)
            self._watch(descriptor, link)
        except LinkError:
            self._drop(descriptor, link)

    def _flush(self, descriptor: int, link: Link, is_ended: bool) -> None:
        if is_ended and link.is_ended():
            raise LinkError(link.peer, None, "closed")
        link.flush()
        self._watch(descriptor, link)

    def _watch(self, descriptor: int, link: Link) -> None:
        """Poll a link for room if it has unsent bytes, else for its next message.

        Call it when bytes were sent: that restarts the deadline of unsent answers.
        """
        if link.has_unsent:
            self._stuck[descriptor] = time.monotonic()
        else:
            self._stuck.pop(descriptor, None)
        self._poll.modify(descriptor, select.POLLOUT if link.has_unsent else select.POLLIN)

    def _drop(self, descriptor: int, link: Link) -> None:
        self._poll.unregister(descriptor)
        del self._links[descriptor]
        self._kernels = None
        self._stuck.pop(descriptor, None)
        self._waiting = deque(item for item in self._waiting if item[0] is not link)
        link.close()

    def _drop_stuck(self) -> None:
        now = time.monotonic()
        for descriptor, since in list(self._stuck.items()):
            if now >= since + self._deadline_seconds:
                self._drop(descriptor, self._links[descriptor])

    def _milliseconds_to_deadline(self) -> float | None:
        if not self._stuck:
            return None
        due = min(self._stuck.values()) + self._deadline_seconds
        return max(0.0, due - time.monotonic()) * 1000
