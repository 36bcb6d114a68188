"""Keeps everything that Ray and the processes below it write away from the user's terminal: it goes to a log file.

Ray writes from Python and from C++, in threads of its own and until the very end of a process. So the descriptors themselves
are turned away, and what the user is to see is written to copies of the former ones.
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
    """A log cannot be written; the text names the log and says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    """Where the user reads."""

    out: TextIO
    err: TextIO

    def console(self) -> Console:
        """A console on `err`. Its width is that of the user's terminal, which rich would look for at the log."""
        width = None
        with contextlib.suppress(OSError):
            width = os.get_terminal_size(self.err.fileno()).columns
        return Console(file=self.err, width=width or None)


def log_path(name: str) -> Path:
    """The log of the service or command of that name."""
    return state_folder() / f"{name}.log"


def open_log(path: Path) -> TextIO:
    """A new log; the one before is kept beside it. Raises LogError."""
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
    """While the block lasts, standard output and error of this process, and of those that it starts, are the log."""
    sys.stdout.flush()
    sys.stderr.flush()
    # The copies are closed when a process executes another program: no process of Ray holds the terminal.
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
    """The end of a log, as far as it can be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError as error:
        return f"({error})"
    return "\n".join(lines[-count:])
