"""Where dense and expert actors find each other: keys of a TCPStore that a dense actor hosts.

Every wait is cut into slices, so that a membership that is superseded while its links come up can be given up.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from actors.errors import DeadlineError, LinkError
from actors.exchange.deadline import Deadline

_CONNECT_SLICE_SECONDS = 2.0
_RESOLVER_SECONDS = 30.0
"""A resolver that does not answer, as on a host that is cut off, is asked twice for 5 s each by default."""
_POLL_SECONDS = 0.005
_STOP_POLL_SECONDS = 0.02

T = TypeVar("T")


def host_store(node_ip: str) -> tuple[TCPStore, str, int]:
    """A TCPStore of this process, its host and its port. It listens on that address only and lives with the object."""
    family = socket.AF_INET6 if ":" in node_ip else socket.AF_INET
    listener = socket.create_server((node_ip, 0), family=family)
    port = listener.getsockname()[1]
    store = TCPStore(
        node_ip, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    return store, node_ip, port


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendezvous:
    """One membership's corner of a store."""

    store: Store
    epoch: int
    deadline: Deadline
    """By when everything must be up."""
    stop: threading.Event
    """Set by whoever gives the membership up."""

    def prefixed(self, key: str) -> PrefixStore:
        """A store of its own for one link or group."""
        return PrefixStore(f"epoch-{self.epoch}/{key}", self.store)

    def publish(self, key: str, value: str) -> None:
        self.prefixed("address record").set(key, value)

    def wait_for(self, key: str, peer: str) -> str:
        """What the peer published. Raises DeadlineError; LinkError when the store or the membership is gone."""
        records = self.prefixed("address record")
        try:
            while not records.check([key]):
                self.check(peer, "address record")
                time.sleep(_POLL_SECONDS)
            value: bytes = records.get(key)
            return value.decode()
        except RuntimeError as error:
            raise LinkError(peer, None, f"the store for links is unreachable ({error})") from error

    def meet(self, key: str, rank: int, peers: Mapping[int, str]) -> None:
        """Return when all ranks of a group are about to open it. Raises as `wait_for` does."""
        self.publish(f"{key}/rank-{rank}", "here")
        for other, peer in peers.items():
            self.wait_for(f"{key}/rank-{other}", peer)

    def check(self, peer: str, awaited: str) -> None:
        """Raise DeadlineError or LinkError when it is too late to go on waiting for a peer."""
        if self.stop.is_set():
            raise LinkError(peer, None, "given up while it came up")
        if self.deadline.has_passed:
            raise DeadlineError(peer, None, awaited, self.deadline.seconds)


def unless_stopped(work: Callable[[], T], stop: threading.Event, peer: str) -> T:
    """The result of `work`. Raises LinkError as soon as `stop` is set, and leaves the work to its own end then.

    torch's stores cannot be interrupted: one whose host dies or is cut off while a client connects holds that client up for a
    minute.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name=f"reach-{peer}", daemon=True).start()
    while not stop.is_set():
        if wait([done], _STOP_POLL_SECONDS).done:
            return done.result()
    raise LinkError(peer, None, "given up while it came up")


def connect_store(host: str, port: int, peer: str, deadline: Deadline, stop: threading.Event) -> TCPStore:
    """The store that a dense actor hosts. Raises DeadlineError, or LinkError when `stop` is set meanwhile."""
    while True:
        try:
            _check_reachable(host, port, deadline)
            return _client(host, port, deadline)
        except (OSError, RuntimeError) as error:
            if stop.is_set():
                raise LinkError(peer, None, "given up while it came up") from error
            if deadline.has_passed:
                raise DeadlineError(
                    peer, None, f"connection to its store {host}:{port}", deadline.seconds
                ) from error
        stop.wait(_POLL_SECONDS)


def _check_reachable(host: str, port: int, deadline: Deadline) -> None:
    """Raises OSError where nobody answers within a slice."""
    seconds = max(0.001, min(_CONNECT_SLICE_SECONDS, deadline.remaining_seconds))
    socket.create_connection((host, port), timeout=seconds).close()


def _client(host: str, port: int, deadline: Deadline) -> TCPStore:
    """torch asks the resolver for the name of the host and counts that as time to connect, so it must not be short."""
    seconds = max(0.001, min(_RESOLVER_SECONDS, deadline.remaining_seconds))
    return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=seconds))
