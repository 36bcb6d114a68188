"""Reports in the terminal of `phimoe serve` when an actor is lost or returns. Ray's own output goes to the
log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping

from cluster.messages import ActorView, ClusterView
from cluster.supervisor.remote_actor import ActorLostError

_POLL_SECONDS = 5.0
_MAX_MISSED = 3
"""Missed answers after which the supervisor counts as silent. Ray takes some seconds to restart it."""


async def watch_actors(
    ask: Callable[[], Awaitable[ClusterView]],
    say: Callable[[str], None],
    poll_seconds: float = _POLL_SECONDS,
) -> None:
    """Report every change of an actor's state and every restart, until this task is cancelled.

    `ask` may raise ActorLostError and TimeoutError, as the supervisor's client does.
    """
    known: dict[str, ActorView] | None = None
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
            seen = {actor.name: actor for actor in view.actors}
            for words in changes(seen if known is None else known, seen):
                say(_line(words))
            known = seen
        await asyncio.sleep(poll_seconds)


def changes(before: Mapping[str, ActorView], after: Mapping[str, ActorView]) -> Iterator[str]:
    """One line for each actor that is new, has another state than before, or was restarted meanwhile."""
    for name, actor in after.items():
        old = before.get(name)
        if old is not None and actor.restarts > old.restarts:
            yield f"{name}: restarted, {actor.state}"
        elif old is None or actor.state != old.state:
            yield f"{name}: {actor.state}"


def _line(text: str) -> str:
    return f"{time.strftime('%H:%M:%S')} {text}"
