"""How `phimoe stop` and `phimoe status` in another shell find a running `phimoe serve`: one small file per HTTP port."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.config.environment import state_folder
from cluster.process import process_start


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """One running `phimoe serve`."""

    pid: int
    started: str
    """When the kernel says that the process began, so that a reused pid is not mistaken for it."""
    url: str
    port: int

    @property
    def is_running(self) -> bool:
        """Whether the process is still there."""
        return process_start(self.pid) == self.started


def write_state(pid: int, url: str, port: int) -> Path:
    """Note a process; the file to remove at its end."""
    state = RunState(pid=pid, started=process_start(pid) or "", url=url, port=port)
    folder = state_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"serve-{port}.json"
    path.write_text(json.dumps(asdict(state)), encoding="utf-8")
    return path


def running_states() -> list[RunState]:
    """All services of this user on this host; notes of processes that are gone are removed."""
    states = []
    for path in sorted(state_folder().glob("serve-*.json")):
        try:
            state = RunState(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            path.unlink(missing_ok=True)
            continue
        if state.is_running:
            states.append(state)
        else:
            path.unlink(missing_ok=True)
    return states
