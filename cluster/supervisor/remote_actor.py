"""Actors in other processes as the supervisor sees them: two protocols that `cluster.ray_actors.actors` fulfils."""

from __future__ import annotations

import asyncio
from typing import Protocol

from actors.errors import ActorError
from actors.protocol import messages
from actors.protocol.messages import ActorReport
from actors.protocol.settings import DenseSettings, ExpertSettings
from cluster.config.cluster_config import ClusterConfig
from cluster.messages import Heartbeat


class ActorLostError(Exception):
    """The process behind an actor died or cannot be reached: name of the actor, reason."""


class ActorDeadError(ActorLostError):
    """The process is gone and no other one will follow by itself: name of the actor, reason."""


class OperationError(Exception):
    """What an operator asked for was not done: name of the operation, reason. The service is as it was before."""

    def __init__(self, operation: str, reason: str) -> None:
        super().__init__(operation, reason)
        self.operation, self.reason = operation, reason

    def __str__(self) -> str:
        return f"{self.operation}: {self.reason}"


class CannotLoadError(OperationError):
    """An actor cannot load the experts that it was asked to hold: name of the operation, reason."""


CALL_SECONDS = 10.0
"""Longest wait for a call that an actor answers from memory."""
UNANSWERED = (ActorLostError, ActorError, asyncio.TimeoutError)
"""What a call raises: nobody is there, the actor's own error, no answer in time."""


class RemoteActor(Protocol):
    """A dense or expert actor in its process. Every call raises one of UNANSWERED."""

    async def heartbeat(self, deadline_seconds: float) -> Heartbeat: ...
    async def start_loading(self, experts: tuple[int, ...] | None, deadline_seconds: float) -> None:
        """Begin to load; None is what the actor's settings say."""

    async def hold(self, experts: tuple[int, ...], deadline_seconds: float) -> None:
        """Begin to load further experts."""

    async def drop(self, experts: tuple[int, ...], deadline_seconds: float) -> None: ...
    async def listen(self, deadline_seconds: float) -> tuple[str, int, str, int]: ...
    async def join(self, members: messages.Membership, deadline_seconds: float) -> None: ...
    async def report(self, deadline_seconds: float) -> ActorReport: ...
    async def wait_for_end(self) -> None:
        """Return or raise when the process ends or its connection does, without a deadline."""

    async def stop(self, deadline_seconds: float) -> None: ...
    async def replace(self, heartbeat: Heartbeat | None, deadline_seconds: float) -> None:
        """Kill the process that gave this pulse, even one that is stopped; another one takes its place.

        A process that is gone already is none of it. None kills whichever process is there.
        """

    async def remove(self) -> None:
        """Kill the process for good."""


class ActorPool(Protocol):
    """Where actors run, and where the supervisor's notes outlive it."""

    async def plan(
        self, config: ClusterConfig, token: str, num_experts: int, device: str | None
    ) -> list[DenseSettings | ExpertSettings]:
        """What the actors of a service are told, chosen for the machines that are there.

        `num_experts` is the number of expert actors at present; `device` the one of the actors that are there already.
        """

    async def find_or_create(self, settings: DenseSettings | ExpertSettings) -> RemoteActor:
        """Raises ActorLostError after some seconds where there is no place for it at present."""

    async def maintain(self) -> None:
        """Give up what has lost its machine, and ask for another place for it. Called every second or so."""

    async def give_back(self, settings: DenseSettings | ExpertSettings) -> None:
        """Free the place of an actor that was removed."""

    async def release(self) -> None:
        """Give the machines' resources back, and forget the notes."""

    async def save(self, snapshot: bytes) -> None:
        """Keep these in place of the ones before."""

    async def load(self) -> bytes | None:
        """What was saved last."""
