"""What the supervisor knows of its actors: the membership, and the process and last report of each place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from actors.protocol.messages import ActorReport
from actors.protocol.settings import DenseSettings, ExpertSettings
from cluster.messages import Heartbeat
from cluster.supervisor.membership import membership
from cluster.supervisor.membership.membership import ActorKey
from cluster.supervisor.remote_actor import RemoteActor
from cluster.timeouts import within


class ActorRecord:
    """What is known of one place besides its membership."""

    def __init__(self, settings: DenseSettings | ExpertSettings, heartbeat: Heartbeat | None = None) -> None:
        self.settings = settings
        self.actor: RemoteActor | None = None
        self.heartbeat = heartbeat
        """Last heartbeat. After a restart of the supervisor it is at first that of the snapshot."""
        self.report: ActorReport | None = None
        self.listening: tuple[str, str, int, str, int] | None = None
        """Incarnation of the process, then the answer of its `listen()`."""
        self.asked: tuple[str | None, tuple[int, ...]] | None = None
        """Incarnation of the process, and the further experts that it was last asked to hold."""
        self.is_leaving = False
        """Whether the actor is about to be restarted."""
        self.is_silent = False
        """Whether the process did not answer the last call for a heartbeat, in whatever phase the place
        is."""
        self.suspicion = asyncio.Event()
        """Set when a peer misses the actor's answers."""


class Registry:
    """All places and their membership. Not thread-safe: all calls come from one event loop."""

    def __init__(self, decide: Callable[[membership.Decision], None]) -> None:
        self.state = membership.first({}, {})
        self.records: dict[ActorKey, ActorRecord] = {}
        self.failure: str | None = None
        """Why the service cannot become ready without help, or None."""
        self._decide = decide
        self._changed = asyncio.Event()

    def begin(self, state: membership.Membership, records: Mapping[ActorKey, ActorRecord]) -> None:
        """Set the state and the places with which the supervisor starts."""
        self.state, self.records = state, dict(records)
        self.notify()

    def post(self, event: membership.Event) -> None:
        """Pass an event to `membership`, and carry out its decisions."""
        before = self.state
        self.state, decisions = membership.advance(self.state, event)
        for decision in decisions:
            self._decide(decision)
        if self.state != before:
            self.notify()

    def notify(self) -> None:
        """Wake all tasks that wait for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def change(self, seconds: float) -> None:
        """Wait for the next change, at most `seconds`."""
        try:
            await within(seconds, self._changed.wait())
        except asyncio.TimeoutError:
            return

    async def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until the condition is true, at most `seconds`. Return whether it became true."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not condition():
            left = end - loop.time()
            if left <= 0:
                return False
            await self.change(min(left, _CHECK_SECONDS))
        return True

    def keys(self, kind: membership.Kind) -> list[ActorKey]:
        """Return all places of a kind, sorted by index."""
        return sorted(key for key in self.records if key.kind == kind)

    def held(self, key: ActorKey) -> frozenset[int]:
        """Return the experts in the last report of an expert actor; none if the actor is not up."""
        report = self.records[key].report
        is_up = key in self.state.places and self.state.places[key].is_up
        return frozenset(report.experts) if report is not None and is_up else frozenset()


def key_of(settings: DenseSettings | ExpertSettings) -> ActorKey:
    """Return the place that an actor with these settings fills."""
    return ActorKey("dense" if isinstance(settings, DenseSettings) else "expert", settings.index)


def actor_name(key: ActorKey) -> str:
    """Return the actor's name in Ray and in every view."""
    return f"phimoe-{key}"


_CHECK_SECONDS = 0.2
"""Longest time between two checks of a condition: a new report makes no change that would wake a waiting
task."""
