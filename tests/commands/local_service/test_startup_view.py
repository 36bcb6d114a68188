"""Tests what `phimoe serve` shows while it starts, on terminals of several widths and without a terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from actors.protocol.messages import Progress
from cluster.commands.local_service.startup_view import StartupView
from cluster.messages import ActorStartup, Startup

TITLE = "starting a-model-whose-name-is-longer-than-a-narrow-terminal-is-wide with 16 expert actors"
BAR = "\N{BOX DRAWINGS HEAVY HORIZONTAL}"
GIB = 2**30


def startup(state: str, done: float = 0, total: float = 0, *, is_ready: bool = False) -> Startup:
    """A start of 2 dense and 16 expert actors, all with the same state and progress."""
    names = [f"phimoe-dense-{index}" for index in range(2)] + [
        f"phimoe-expert-{index}" for index in range(16)
    ]
    progress = Progress(state=state, bytes_done=int(done), bytes_total=int(total))
    return Startup(
        is_ready=is_ready, actors=tuple(ActorStartup(name=name, progress=progress) for name in names)
    )


def console(width: int, *, is_terminal: bool) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=width, height=50, force_terminal=is_terminal, color_system=None), file


def frame(width: int, told: Startup) -> list[str]:
    view = StartupView(console(width, is_terminal=True)[0], TITLE)
    view.show(told)
    target, file = console(width, is_terminal=False)
    target.print(view.frame())
    lines = file.getvalue().splitlines()
    assert "\N{HORIZONTAL ELLIPSIS}" not in file.getvalue()
    assert max(len(line.rstrip()) for line in lines) <= width
    first = next(index for index, line in enumerate(lines) if line.startswith("phimoe-"))
    assert f"{TITLE} (0 s)" in " ".join(line.rstrip() for line in lines[:first])
    rows = [line.rstrip() for line in lines[first:]]
    assert [row.split()[0] for row in rows] == [actor.name for actor in told.actors], (
        "one line for each actor"
    )
    return rows


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_each_actor_has_one_line_with_a_bar_while_it_loads(width: int) -> None:
    for row in frame(width, startup("starting")):
        assert row.split()[1:] == ["starting"]
    half = frame(width, startup("loading", 70.5 * GIB, 141 * GIB))
    assert all(row.split()[1] == "loading" and row.endswith("70.5/141.0 GiB") for row in half)
    bars = {row.count(BAR) for row in half}
    assert len(bars) == 1 and 4 <= bars.pop() <= 20
    for row in frame(width, startup("loaded", 141 * GIB, 141 * GIB)):
        assert row.split()[1:] == ["loaded", "141.0", "GiB"] and BAR not in row
    for row in frame(width, startup("loaded", 3000, 3000, is_ready=True)):
        assert row.split()[1:] == ["ready", "2.9", "KiB"]


def test_on_a_terminal_the_lines_are_updated_in_their_place() -> None:
    terminal, file = console(60, is_terminal=True)
    with StartupView(terminal, "starting") as view:
        for percent in range(0, 101, 5):
            view.show(startup("loading", percent * GIB, 100 * GIB))
            view._live.refresh()
        view.say("a line above")
        view.show(startup("loaded", is_ready=True))
        view.finish()
        view.say("a line below")
    lines = _screen(file.getvalue())
    assert lines[0] == "a line above" and lines[1].startswith("starting (") and lines[-1] == "a line below"
    assert len(lines) == 2 + 18 + 1
    assert all(line.split()[1] == "ready" for line in lines[2:-1])


def test_without_a_terminal_each_change_is_a_plain_line() -> None:
    pipe, file = console(80, is_terminal=False)
    with StartupView(pipe, "starting") as view:
        for told in (startup("starting"), startup("loading", 1, 9), startup("loading", 5, 9)):
            view.show(told)
        view.show(startup("loaded", 9, 9, is_ready=True))
        view.finish()
        view.say("[a line]")
    lines = file.getvalue().splitlines()
    assert lines[0] == "starting" and lines[-1] == "[a line]"
    assert [line for line in lines if line.startswith("phimoe-expert-15:")] == [
        f"phimoe-expert-15: {state}" for state in ("starting", "loading", "ready")
    ]
    assert len(lines) == 1 + 3 * 18 + 1 and "\x1b" not in file.getvalue()


def _screen(text: str) -> list[str]:
    """What a terminal shows after this text. It knows only rich's control sequences to go up and to clear a
    line."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[\??\d*\w|\r|\n|[^\x1b\r\n]+", text):
        if part == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif part.endswith("A"):
            row -= int(part[2:-1])
        elif part.endswith("K"):
            lines[row] = ""
        elif not part.startswith(("\x1b", "\r")):
            lines[row] += part
    return [line.rstrip() for line in lines if line.strip()]
