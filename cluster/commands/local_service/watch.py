"""Reports in the terminal of `phimoe serve` when an actor is lost or returns. Ray's own output goes to the
log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from cluster.messages import ClusterView
from cluster.supervisor.remote_actor import ActorLostError

_POLL_SECONDS = 5.0
_MAX_MISSED = 3
"""Missed answers after which the supervisor counts as silent. Ray takes some seconds to restart it."""


async def watch_actors(
    ask: Callable[[], Awaitable[ClusterView]],
    say: Callable[[str], None],
    poll_seconds: float = _POLL_SECONDS,
) -> None:
    """Report every change of an actor's state, until this task is cancelled.

    `ask` may raise ActorLostError and TimeoutError, as the supervisor's client does.
    """
    states: dict[str, str] | None = None
    num_missed = 0
    while True:
        try:
            view = await ask()
        except (ActorLostError, asyncio.TimeoutError):
            num_missed += 1
            if num_missed == _MAX_MISSED:
                say(_line("the supervisor does not answer"))
        else:
            if num_missed >= _MAX_MISSED:
                say(_line("the supervisor answers again"))
            num_missed = 0
            seen = {actor.name: actor.state for actor in view.actors}
            for name in changed(states or seen, seen):
                say(_line(f"{name}: {seen[name]}"))
            states = seen
        await asyncio.sleep(poll_seconds)


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Names whose state has changed, and new names."""
    return [name for name, state in after.items() if before.get(name) != state]


def _line(text: str) -> str:
    return f"{time.strftime('%H:%M:%S')} {text}"
