"""What the supervisor knows of its actors: their membership, and of each place the process and its last words."""

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
    """One place, beside what membership knows of it."""

    def __init__(self, settings: DenseSettings | ExpertSettings, heartbeat: Heartbeat | None = None) -> None:
        self.settings = settings
        self.actor: RemoteActor | None = None
        self.heartbeat = heartbeat
        """Last sign of life; of a process before the supervisor's own start where it was noted."""
        self.report: ActorReport | None = None
        self.listening: tuple[str, str, int, str, int] | None = None
        """Incarnation, then what listen() answered."""
        self.asked: tuple[str | None, tuple[int, ...]] | None = None
        """Incarnation, and the experts that it was asked to hold last."""
        self.is_leaving = False
        """Whether it is about to be restarted."""
        self.is_silent = False
        """Whether its process did not answer when it was last asked, in whatever phase it is."""
        self.suspicion = asyncio.Event()
        """Set when a peer misses its answers."""


class Registry:
    """All places. Lives in one event loop."""

    def __init__(self, decide: Callable[[membership.Decision], None]) -> None:
        self.state = membership.first({}, {})
        self.records: dict[ActorKey, ActorRecord] = {}
        self.failure: str | None = None
        """Why the service will not become ready without help."""
        self._decide = decide
        self._changed = asyncio.Event()

    def begin(self, state: membership.Membership, records: Mapping[ActorKey, ActorRecord]) -> None:
        """Start with these places."""
        self.state, self.records = state, dict(records)
        self.notify()

    def post(self, event: membership.Event) -> None:
        """Take in what happened, and have done what membership decides."""
        before = self.state
        self.state, decisions = membership.advance(self.state, event)
        for decision in decisions:
            self._decide(decision)
        if self.state != before:
            self.notify()

    def notify(self) -> None:
        """Let everybody who waits look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def change(self, seconds: float) -> None:
        """Return after the next change, or after so many seconds."""
        try:
            await within(seconds, self._changed.wait())
        except asyncio.TimeoutError:
            return

    async def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Whether the condition came true in time."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not condition():
            left = end - loop.time()
            if left <= 0:
                return False
            await self.change(min(left, _CHECK_SECONDS))
        return True

    def keys(self, kind: membership.Kind) -> list[ActorKey]:
        """All places of a kind, by index."""
        return sorted(key for key in self.records if key.kind == kind)

    def held(self, key: ActorKey) -> frozenset[int]:
        """The experts that an expert actor that is up holds, as it said last."""
        report = self.records[key].report
        is_up = key in self.state.places and self.state.places[key].is_up
        return frozenset(report.experts) if report is not None and is_up else frozenset()


def key_of(settings: DenseSettings | ExpertSettings) -> ActorKey:
    """The place that an actor with these settings fills."""
    return ActorKey("dense" if isinstance(settings, DenseSettings) else "expert", settings.index)


def actor_name(key: ActorKey) -> str:
    """The actor's name in Ray and in every view."""
    return f"phimoe-{key}"


_CHECK_SECONDS = 0.2
"""Reports come without a change of membership, so conditions are looked at that often at least."""
