"""Opens and closes gloo groups without torch's global default group.

A receive that misses its deadline closes the connections of its group. `close_group` makes a receive miss its
deadline on purpose, because `ProcessGroup.abort` does not wake a receive that waits.
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

from actors.exchange.rendezvous import Rendezvous

_CLOSING_TAG = 1
"""The tag of the receive that closes a group; messages have tag 0."""
_LOOP_THREAD = "gloo_tcp_loop"
_LOOP_NICENESS = 19

_device_lock = threading.Lock()
_devices: dict[str, object] = {}


def open_group(key: str, rank: int, size: int, node_ip: str, rendezvous: Rendezvous) -> dist.ProcessGroup:
    """Open a group whose ranks meet under a key. The call cannot be stopped: all ranks must be about to come.

    Raises RuntimeError, as torch does.
    """
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [_shared_device(node_ip)]
    options._timeout = rendezvous.deadline.remaining
    options._threads = 1
    # The backend has the methods of a ProcessGroup, which torch's stubs do not say.
    return cast(dist.ProcessGroup, dist.ProcessGroupGloo(rendezvous.prefixed(key), rank, size, options))


def close_group(group: dist.ProcessGroup) -> None:
    """Close a group's connections. Peers and waiting threads notice at once. For any thread; idempotent."""
    other = (group.rank() + 1) % group.size()
    # The error is expected: the receive times out, or the connection is closed already.
    with suppress(RuntimeError):
        group.recv([torch.empty(1, dtype=torch.uint8)], other, _CLOSING_TAG).wait(timedelta(milliseconds=1))


def reason(error: RuntimeError) -> str:
    """The meaning of an error of gloo, in the words that other backends use."""
    text = str(error)
    is_closed = "closed by peer" in text or "reset by peer" in text or "pair closure" in text
    return "closed" if is_closed else f"broken ({text})"


def _shared_device(node_ip: str) -> object:
    """The gloo device of an address. There is one in the process, and so one loop thread per address."""
    with _device_lock:
        if node_ip not in _devices:
            _devices[node_ip] = dist.ProcessGroupGloo.create_device(hostname=node_ip)
            _calm_loop_threads()
        return _devices[node_ip]


def _calm_loop_threads() -> None:
    """Give gloo's loop threads nice 19: they spin while the holder of a lock they want waits for a core."""
    for task in Path("/proc/self/task").glob("*"):
        try:
            if (task / "comm").read_text().strip() == _LOOP_THREAD:
                os.setpriority(os.PRIO_PROCESS, int(task.name), _LOOP_NICENESS)
        except OSError:
            continue  # The thread has ended, or the system forbids it; at worst this costs speed.
