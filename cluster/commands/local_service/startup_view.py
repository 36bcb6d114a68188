"""Shows the start of `phimoe serve`: one line per actor, updated in place, or plain lines if there is no
terminal.

    starting phimoe-tiny with 2 expert actors (4 s)
    phimoe-dense-0   ready                            664.5 KiB
    phimoe-expert-0  loading   ━━━━━━━━━━━━━━━━   1.3/2.4 GiB
"""

from __future__ import annotations

import time

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from actors.protocol.messages import Progress
from cluster.messages import ActorStartup, Startup

_MAX_BAR_WIDTH = 40
_STATE_WIDTH = len("starting")
_GAP = 2
_REDRAWS_PER_SECOND = 4
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
_STYLES = {"ready": "green", "loaded": "green", "failed": "bold red"}


class StartupView:
    """A context manager that shows the actors until its end, or until `finish`."""

    def __init__(self, console: Console, title: str) -> None:
        self._console, self._title = console, title
        self._began = time.monotonic()
        self._startup = Startup(is_ready=False, actors=())
        self._states: dict[str, str] = {}
        """The last printed state of each actor, if there is no terminal."""
        self._live = Live(
            console=console,
            get_renderable=self.frame,
            refresh_per_second=_REDRAWS_PER_SECOND,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> StartupView:
        if self._console.is_terminal:
            self._live.start()
        else:
            self.say(self._title)
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def finish(self) -> None:
        """Stop the updates. Later lines appear below those of the actors."""
        self._live.stop()

    def say(self, line: str) -> None:
        """Print one line, above those of the actors while they are shown."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def show(self, startup: Startup) -> None:
        """Update the lines of the actors, or print the states that have changed."""
        self._startup = startup
        if not self._console.is_terminal:
            for actor in startup.actors:
                state = self._state(actor)
                if self._states.get(actor.name) != state:
                    self._states[actor.name] = state
                    self.say(f"{actor.name}: {state}")

    def frame(self) -> Group:
        """The present content of the terminal."""
        seconds, actors = time.monotonic() - self._began, self._startup.actors
        table = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
        names = [actor.name for actor in actors]
        amounts = [_amount(actor.progress) for actor in actors]
        name_width, amount_width = (max(map(len, texts), default=0) for texts in (names, amounts))
        taken = name_width + _STATE_WIDTH + amount_width + 3 * _GAP
        bar_width = max(1, min(_MAX_BAR_WIDTH, self._console.width - taken))
        for width in (name_width, _STATE_WIDTH, bar_width):
            table.add_column(width=width)
        table.add_column(width=amount_width, justify="right")
        for actor, amount in zip(actors, amounts, strict=True):
            progress, state = actor.progress, self._state(actor)
            is_loading = state == "loading" and progress.bytes_total > 0
            bar = ProgressBar(progress.bytes_total, progress.bytes_done, bar_width) if is_loading else ""
            table.add_row(actor.name, Text(state, _STYLES.get(state, "")), bar, amount)
        return Group(Text(f"{self._title} ({seconds:.0f} s)", overflow="fold"), table)

    def _state(self, actor: ActorStartup) -> str:
        """The state to show. An actor does not know whether all others are ready, so "ready" comes from the
        start-up state."""
        return "ready" if self._startup.is_ready else actor.progress.state


def _amount(progress: Progress) -> str:
    """Bytes of an actor's weights, after the bytes already loaded while it loads."""
    total, unit = float(progress.bytes_total), 0
    while total >= 1024 and unit < len(_UNITS) - 1:
        total, unit = total / 1024, unit + 1
    if not total:
        return ""
    done = f"{progress.bytes_done / 1024**unit:.1f}/" if progress.state == "loading" else ""
    return f"{done}{total:.1f} {_UNITS[unit]}"
