"""Runs a service in its own process session, below a parent that passes signals on and cleans up.

Otherwise a signal to a whole process group (Ctrl-C in a terminal, an init system that ends a group) would end
Ray's processes before the service could stop in order. And Ray ends a driver whose Ray processes have died.

    phimoe serve (parent)  --SIGINT, SIGTERM-->  child leads a session with Ray, Serve and all actors
                           <--exit status-----
    parent killed          --SIGTERM by the kernel-->  child
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

_GRACE_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1


class SessionLostError(Exception):
    """The child ended without a reason: it was killed, or a library ended the process."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status

    def __str__(self) -> str:
        return f"the service has ended without a word, with status {self.status}"


def run_in_own_session(work: Callable[[], int], scratch: Path) -> int:
    """Run `work` in a child process and return its exit status. Afterwards no process of its session is left.

    Raises SessionLostError if the child did not reach the end of `work`. A process whose command line names
    the folder `scratch` or a file in it belongs to the session as well. Call this function before the process
    has threads.
    """
    parent = os.getpid()
    end_is_told, tell_end = os.pipe()
    child = os.fork()
    if child == 0:
        _become_leader(parent)
        status = 1
        try:
            status = work()
        except BaseException:
            # No frame above this one would show the error.
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            with contextlib.suppress(OSError):
                os.write(tell_end, b".")
            os._exit(status)
    os.close(tell_end)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: os.kill(child, received))
    _, wait_status = os.waitpid(child, 0)
    _clear(child, scratch)
    status = os.waitstatus_to_exitcode(wait_status)
    status = status if status >= 0 else 128 - status
    if not _has_told_end(end_is_told):
        raise SessionLostError(status)
    return status


def _has_told_end(end_is_told: int) -> bool:
    os.set_blocking(end_is_told, False)  # A process that outlives the child may keep the other end open.
    with contextlib.suppress(BlockingIOError), open(end_is_told, "rb", buffering=0) as pipe:
        return bool(pipe.read(1))
    return False


def _become_leader(parent: int) -> None:
    os.setsid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # The parent died before the call of prctl.
        os._exit(1)


def _clear(session: int, scratch: Path) -> None:
    """Wait until the processes of the session end; kill those that do not."""
    give_up = time.monotonic() + _GRACE_SECONDS
    while time.monotonic() < give_up and any(True for _ in _members(session, scratch)):
        time.sleep(0.05)
    for pid in _members(session, scratch):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _members(session: int, scratch: Path) -> Iterator[int]:
    """Process ids of the session, or of the folder `scratch`, that have not ended."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            # See proc(5): the fields after the name in parentheses are state, parent, process group, session.
            fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            is_member = int(fields[3]) == session or str(scratch).encode() in (entry / "cmdline").read_bytes()
            if is_member and fields[0] != b"Z":
                yield int(entry.name)
