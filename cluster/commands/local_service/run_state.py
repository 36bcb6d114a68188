"""The files by which commands in another shell find a running `phimoe serve`: one small file per HTTP
port."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cluster.config.environment import state_folder
from cluster.process import process_start


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """One running `phimoe serve`."""

    pid: int
    started: str
    """Start time of the process as the kernel reports it, so that a reused pid is not mistaken for the
    process."""
    url: str
    port: int
    model: str = "unknown"
    since_unix_seconds: float = 0.0

    @property
    def is_running(self) -> bool:
        """Whether the process is still there."""
        return process_start(self.pid) == self.started


class SeveralServicesError(ValueError):
    """Several services run on this host and none was named; the message lists all of them."""

    def __init__(self, states: Sequence[RunState], flags: str) -> None:
        super().__init__(states, flags)
        self._text = f"{len(states)} services run on this host, choose with {flags}:\n{_listing(states)}"

    def __str__(self) -> str:
        return self._text


def write_state(pid: int, url: str, port: int, model: str) -> Path:
    """Write the state file of a process and return its path. The process removes the file at its end."""
    started = process_start(pid) or ""
    state = RunState(
        pid=pid, started=started, url=url, port=port, model=model, since_unix_seconds=time.time()
    )
    folder = state_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"serve-{port}.json"
    # A reader removes an incomplete file, so the file appears complete.
    unfinished = path.with_suffix(".tmp")
    unfinished.write_bytes(msgspec.json.encode(state))
    unfinished.replace(path)
    return path


def running_states() -> list[RunState]:
    """All services of this user on this host. Files of processes that have ended are removed.

    Another version may have written a file: unknown fields are ignored, and new fields have defaults.
    """
    states = []
    for path in sorted(state_folder().glob("serve-*.json")):
        try:
            state: RunState = msgspec.json.decode(path.read_bytes(), type=RunState)
        except (OSError, ValueError):
            path.unlink(missing_ok=True)
            continue
        if state.is_running:
            states.append(state)
        else:
            path.unlink(missing_ok=True)
    return states


def the_running_state() -> RunState | None:
    """The only service of this user on this host; None if there is none. Raises SeveralServicesError."""
    states = running_states()
    if len(states) > 1:
        raise SeveralServicesError(states, "--url")
    return states[0] if states else None


def without_path(url: str) -> str:
    """The URL of a service without `/v1` and a final slash, which users may add."""
    return url.rstrip("/").removesuffix("/v1")


def _listing(states: Sequence[RunState]) -> str:
    """One line per service. The model comes last: a long name widens no column."""
    width = max(len(state.url) for state in states)
    lines = [f"  {'url':<{width}}  {'pid':>7}  {'since':<16}  model"]
    for state in states:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(state.since_unix_seconds))
        lines.append(f"  {state.url:<{width}}  {state.pid:>7}  {since:<16}  {state.model}")
    return "\n".join(lines)
