"""Sends all output of Ray and its processes to a log file, away from the user's terminal.

Ray writes from Python and from C++, in its own threads and until the very end of a process. So the file
descriptors themselves are redirected, and text for the user is written to copies of the former descriptors.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rich.console import Console

from cluster.config.environment import state_folder

_TAIL_BYTES = 16 * 1024


class LogError(Exception):
    """A log cannot be written; the message names the log and says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    """The streams that the user sees."""

    out: TextIO
    err: TextIO

    def console(self) -> Console:
        """A console on `err` with the width of the user's terminal. Rich alone would ask the log for its
        width."""
        width = None
        with contextlib.suppress(OSError):
            width = os.get_terminal_size(self.err.fileno()).columns
        return Console(file=self.err, width=width or None)


def log_path(name: str) -> Path:
    """Path of the log of the service or command `name`."""
    return state_folder() / f"{name}.log"


def open_log(path: Path) -> TextIO:
    """Open a new log. The previous log is kept beside it. Raises LogError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            path.replace(path.with_suffix(".previous.log"))
        log = path.open("a", encoding="utf-8")
    except OSError as error:
        raise LogError(f"cannot write the log {path}: {error.strerror}") from error
    print(time.strftime("%Y-%m-%d %H:%M:%S"), *sys.argv, file=log, flush=True)
    return log


@contextlib.contextmanager
def output_to(log: TextIO) -> Iterator[Terminal]:
    """While the block lasts, standard output and error of this process and its children go to the log."""
    sys.stdout.flush()
    sys.stderr.flush()
    # The copies are closed on exec, so no process of Ray holds the terminal.
    with _copy(1) as out, _copy(2) as err:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            yield Terminal(out=out, err=err)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)


def _copy(descriptor: int) -> TextIO:
    return open(os.dup(descriptor), "w", encoding="utf-8", errors="replace", buffering=1)


def last_lines(path: Path, count: int) -> str:
    """The last `count` lines of a log, or the reason why it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError as error:
        return f"({error})"
    return "\n".join(lines[-count:])
