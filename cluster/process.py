"""Identifies and kills processes of this host.

The start time tells a process from a later one with the same pid.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path


def process_start(pid: int) -> str | None:
    """Return the process's start in clock ticks from boot (proc(5), stat field 22); None if it has ended."""
    try:
        content = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = content.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def kill_process(pid: int, started: str) -> bool:
    """Kill a process at once, even if it is stopped. Return False if it had already ended."""
    if pid <= 0 or process_start(pid) != started:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False
