"""The transport "links", seen from an expert actor: one thread serves all dense actors.

    in a loop: read what has arrived on any link; take the link that has waited longest, and with it the
    messages of other links for the same layer, so that its weights are read once; compute; answer each

Results do not depend on which messages were computed together. A link that does not take its answers is not
read from until it does; the others are served meanwhile. While messages come one at a time and nothing else
happens, the kernels do all this without Python (`kernel_server.py`).
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
    """Serves until it is closed. Links come and go: `add` and `remove` from any thread."""

    def __init__(
        self,
        serve: Serve,
        deadline_seconds: float,
        tables: Callable[[], ServeTables | None] = lambda: None,
    ) -> None:
        """deadline_seconds: how long a peer may leave its answers unread.

        tables: returns what `serve` computes with, if the kernels can compute with it as well. The thread
        that serves calls it, again after each `ring`.
        """
        self._serve = serve
        self._tables = tables
        self._direct: KernelServer | None = None
        """For the present links and tables."""
        self._deadline_seconds = deadline_seconds
        self._guard = threading.Lock()
        """Of the two lists below."""
        self._new: list[Link] = []
        self._unwanted: list[Link] = []
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._wakeup, select.POLLIN)
        self._links: dict[int, Link] = {}
        """By descriptor."""
        self._stuck: dict[int, float] = {}
        """Descriptors of links with unsent answers, and since when nothing was taken."""
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
        """End a link; what is being computed for it is dropped."""
        link.end()
        with self._guard:
            self._unwanted.append(link)
        self.wake()

    def close(self) -> None:
        """End all links and wait for what is being computed. Idempotent."""
        self._is_closed = True
        self.wake()
        self._thread.join()
        with self._guard:
            wakeup, self._wakeup = self._wakeup, -1
        if wakeup >= 0:
            os.close(wakeup)

    def wake(self) -> None:
        """Have the thread look at everything anew. From any thread."""
        with self._guard:
            if self._wakeup >= 0:
                os.eventfd_write(self._wakeup, 1)

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while not self._is_closed:
                    self._serve_directly()
                    self._read_all()
                    if self._waiting:
                        self._answer_next()
        finally:
            with self._guard:
                links = {*self._new, *self._unwanted, *self._links.values()}
            for link in links:
                link.close()

    def _serve_directly(self) -> None:
        """Leave everything to the kernels for as long as all is as usual."""
        tables = self._tables()
        if self._direct is None or self._direct.tables is not tables:
            self._direct = (
                None if tables is None else KernelServer.make(tables, self._links.values(), self._wakeup)
            )
        direct = self._direct
        if direct is None or self._waiting or self._stuck:
            return
        direct.run()
        for index, link in enumerate(direct.links):
            descriptor = link.fileno()
            try:
                message = direct.hand_back(index)
                self._watch(descriptor, link)
                if message is not None:
                    self._take(descriptor, link, message)
            except LinkError:
                self._drop(descriptor, link)

    def _read_all(self) -> None:
        """Take at most one message from each link; wait for one only if none is waiting already."""
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
                    raise LinkError(
                        link.peer, None, "closed"
                    )  # All that is told of a link that is not read from.
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
            self._direct = None
        for link in new:
            self._links[link.fileno()] = link
            self._poll.register(link.fileno(), select.POLLIN)
        for link in unwanted:
            for descriptor, present in list(self._links.items()):
                if present is link:
                    self._drop(descriptor, link)

    def _take(self, descriptor: int, link: Link, message: Message) -> None:
        header = message.header
        if header.epoch == link.epoch and header.kind == ROWS:  # else stale
            self._waiting.append((link, message))
            self._poll.modify(descriptor, 0)  # The next one waits until this one is answered.

    def _answer_next(self) -> None:
        """Compute for the link whose turn it is, and for all that wait for the same layer."""
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
            # Whose rows they were that could not be computed shows when each message is computed alone.
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
        """For room where something is unsent, which has moved just now; else for the next message."""
        if link.has_unsent:
            self._stuck[descriptor] = time.monotonic()
        else:
            self._stuck.pop(descriptor, None)
        self._poll.modify(descriptor, select.POLLOUT if link.has_unsent else select.POLLIN)

    def _drop(self, descriptor: int, link: Link) -> None:
        self._poll.unregister(descriptor)
        del self._links[descriptor]
        self._direct = None
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
