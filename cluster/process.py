"""Processes of this host, told apart from later ones that got the same number."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path


def process_start(pid: int) -> str | None:
    """Clock ticks from boot to the start of a process (proc(5), stat field 22); None for one that is gone."""
    try:
        content = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = content.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def kill_process(pid: int, started: str) -> bool:
    """End that process at once, also when it is stopped. False where it was gone already."""
    if pid <= 0 or process_start(pid) != started:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False
