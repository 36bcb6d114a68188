"""Tests what the terminal of a running service says about its actors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from cluster.commands.local_service.watch import watch_actors
from cluster.messages import ClusterView
from cluster.supervisor.remote_actor import ActorLostError
from tests.support.views import actor_view


def view(restarts: int = 0, **states: str) -> ClusterView:
    actors = tuple(actor_view(name, state=state, restarts=restarts) for name, state in states.items())
    return ClusterView(model="m", epoch=1, actors=actors)


LOST = ActorLostError("supervisor", "gone")


@pytest.mark.parametrize(
    ("answers", "lines"),
    [
        pytest.param([view(a="ready", b="ready")] * 3, [], id="all-is-well"),
        pytest.param([view(a="ready"), view(1, a="ready")], ["a: restarted, ready"], id="back-at-once"),
        pytest.param(
            [view(a="ready"), view(1, a="lost"), view(1, a="ready")],
            ["a: restarted, lost", "a: ready"],
            id="back-later",
        ),
        pytest.param(
            [view(a="ready"), view(a="lost"), view(a="lost"), view(a="starting"), view(a="ready")],
            ["a: lost", "a: starting", "a: ready"],
            id="lost-and-back",
        ),
        pytest.param(
            [view(a="ready"), view(a="ready", b="starting"), view(b="ready")],
            ["b: starting", "b: ready"],
            id="scaled",
        ),
        pytest.param(
            [view(a="ready"), LOST, asyncio.TimeoutError(), view(a="ready")], [], id="short-silence"
        ),
        pytest.param(
            [view(a="ready"), LOST, LOST, LOST, LOST, view(a="lost")],
            ["the supervisor does not answer", "the supervisor answers again", "a: lost"],
            id="long-silence",
        ),
    ],
)
def test_changes_are_said_once(answers: list[ClusterView | Exception], lines: list[str]) -> None:
    said: list[str] = []
    coming: Iterator[ClusterView | Exception] = iter(answers)

    async def ask() -> ClusterView:
        answer = next(coming, None)
        if answer is None:
            raise asyncio.CancelledError
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def run() -> None:
        with pytest.raises(asyncio.CancelledError):
            await watch_actors(ask, said.append, poll_seconds=0)

    asyncio.run(run())
    assert [line.split(" ", 1)[1] for line in said] == lines
