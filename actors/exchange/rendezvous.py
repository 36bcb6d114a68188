"""Dense and expert actors find each other through the keys of a TCPStore that a dense actor hosts.

Every wait is cut into slices, so that a join can stop when a newer membership comes.
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
"""The longest timeout of a store client. It includes the time of the resolver, which by default is asked
twice for 5 s each if it does not answer, as on a host that is cut off."""
_POLL_SECONDS = 0.005
_STOP_POLL_SECONDS = 0.02

T = TypeVar("T")


def host_store(node_ip: str) -> tuple[TCPStore, str, int]:
    """Start a TCPStore in this process; return the store, its host and its port.

    It listens on `node_ip` only, and stops when the returned object is freed.
    """
    family = socket.AF_INET6 if ":" in node_ip else socket.AF_INET
    listener = socket.create_server((node_ip, 0), family=family)
    port = listener.getsockname()[1]
    store = TCPStore(
        node_ip, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    return store, node_ip, port


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendezvous:
    """A store as one membership uses it: its keys have the epoch as prefix."""

    store: Store
    epoch: int
    deadline: Deadline
    """The time by which all links of the membership must be up."""
    stop: threading.Event
    """Set when the membership is given up."""

    def prefixed(self, key: str) -> PrefixStore:
        """A view of the store for one link or group."""
        return PrefixStore(f"epoch-{self.epoch}/{key}", self.store)

    def publish(self, key: str, value: str) -> None:
        self.prefixed("address record").set(key, value)

    def wait_for(self, key: str, peer: str) -> str:
        """Wait for the value that a peer publishes, and return it.

        Raises DeadlineError, and LinkError if the store is unreachable or the membership is given up.
        """
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
        """Raise LinkError if the membership is given up, DeadlineError if the deadline has passed."""
        if self.stop.is_set():
            raise LinkError(peer, None, "given up while it came up")
        if self.deadline.has_passed:
            raise DeadlineError(peer, None, awaited, self.deadline.seconds)


def unless_stopped(work: Callable[[], T], stop: threading.Event, peer: str) -> T:
    """Run `work` in a thread and return its result. Raises LinkError as soon as `stop` is set.

    The thread then goes on until `work` ends by itself: calls of torch's stores cannot be interrupted, and if
    the host of a store dies or is cut off while a client connects, the call takes a minute.
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
    """Connect to the store of a dense actor. Raises DeadlineError, and LinkError once `stop` is set."""
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
    """Raise OSError if nobody answers at an address within a slice."""
    seconds = max(0.001, min(_CONNECT_SLICE_SECONDS, deadline.remaining_seconds))
    socket.create_connection((host, port), timeout=seconds).close()


def _client(host: str, port: int, deadline: Deadline) -> TCPStore:
    """Connect a client to a store. Its timeout includes the time of the resolver, so it must not be short."""
    seconds = max(0.001, min(_RESOLVER_SECONDS, deadline.remaining_seconds))
    return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=seconds))
