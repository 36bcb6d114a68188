"""Binds the computing threads of an expert actor to CPU cores that no other actor of the host uses.

An unbound thread may take the core of the dense actor while that is still sending to the next expert actor,
and it moves between caches. With threads on claimed cores a decode step on two cores takes two thirds of the
time (`cluster/commands/bench/RESULTS.md`, "Which threads and cores do actors take?").
"""

from __future__ import annotations

import os
import socket
import threading
import weakref
from contextlib import suppress


class CoreClaim:
    """Cores that no other actor of this host claims while this process lives.

    A claim is a bound name in the abstract socket namespace (unix(7)). The operating system keeps the name
    unique on the host and frees it with the process, however the process ends.
    """

    def __init__(self, num_cores: int, namespace: str = "phimoe") -> None:
        """Claim exactly `num_cores` of the cores that the process may use, or none if fewer are free.

        Claims are unique within a namespace; all services of a host share the default namespace.
        """
        self._names: list[socket.socket] = []
        weakref.finalize(self, _close, self._names)
        self.cores: set[int] = set()
        self._settled = threading.local()
        for core in sorted(os.sched_getaffinity(0)):
            if len(self.cores) < num_cores and (name := _claim(f"\0{namespace}-core-{core}")) is not None:
                self._names.append(name)
                self.cores.add(core)
        if len(self.cores) < num_cores:
            self.release()

    def settle(self) -> None:
        """Bind the calling thread, and those it starts, to the claimed cores; let it preempt no thread.

        As a batch thread (sched(7)) it waits until the thread that woke it has left the core. Further calls
        of the same thread cost next to nothing.
        """
        if getattr(self._settled, "is_done", False):
            return
        self._settled.is_done = True
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
            if self.cores:
                os.sched_setaffinity(0, self.cores)

    def release(self) -> None:
        """Give the cores up. Threads that have settled stay bound to them."""
        _close(self._names)
        self.cores.clear()


def _close(names: list[socket.socket]) -> None:
    for name in names:
        name.close()
    names.clear()


def _claim(address: str) -> socket.socket | None:
    name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        name.bind(address)
    except OSError:
        name.close()
        return None
    return name
