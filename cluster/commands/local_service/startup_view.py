"""What `phimoe serve` shows while actors load: one line with a bar per actor, or plain lines where there is no terminal."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from cluster.messages import Startup


class StartupView:
    """A context manager; `show` is called as often as there is news."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stderr)
        self._is_live = self._console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description:<18}"),
            TextColumn("{task.fields[state]:<9}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TimeElapsedColumn(),
            console=self._console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._states: dict[str, str] = {}

    def __enter__(self) -> StartupView:
        if self._is_live:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_live:
            self._progress.stop()

    def say(self, line: str) -> None:
        """One line above the bars."""
        self._console.print(line, highlight=False, soft_wrap=True)

    def show(self, startup: Startup) -> None:
        """Bring the bars up to date, or print the states that have changed."""
        for actor in startup.actors:
            progress = actor.progress
            state = "ready" if startup.is_ready else progress.state
            if self._is_live:
                if actor.name not in self._tasks:
                    self._tasks[actor.name] = self._progress.add_task(actor.name, total=None, state=state)
                self._progress.update(
                    self._tasks[actor.name],
                    total=progress.bytes_total or None,
                    completed=progress.bytes_done,
                    state=state,
                )
            elif self._states.get(actor.name) != state:
                self._states[actor.name] = state
                self.say(f"{actor.name}: {state}")
