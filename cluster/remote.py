"""Actors in other processes as the supervisor sees them: two protocols, which `cluster.pool` fills with Ray."""

from __future__ import annotations

from typing import Protocol

from actors import messages
from actors.messages import ActorReport
from actors.settings import DenseSettings, ExpertSettings
from cluster.config import ClusterConfig
from cluster.view import Pulse


class ActorLostError(Exception):
    """The process behind an actor died or cannot be reached: name of the actor, reason."""


class OperationError(Exception):
    """What an operator asked for was not done: name of the operation, reason. The service is as it was before."""

    def __init__(self, operation: str, reason: str) -> None:
        super().__init__(operation, reason)
        self.operation, self.reason = operation, reason

    def __str__(self) -> str:
        return f"{self.operation}: {self.reason}"


class RemoteActor(Protocol):
    """A dense or expert actor in its process. Every call raises ActorLostError or TimeoutError."""

    async def pulse(self, deadline_seconds: float) -> Pulse: ...
    async def start_loading(self, deadline_seconds: float) -> None: ...
    async def listen(self, deadline_seconds: float) -> tuple[str, int, str, int]: ...
    async def join(self, members: messages.Membership, deadline_seconds: float) -> None: ...
    async def report(self, deadline_seconds: float) -> ActorReport: ...
    async def wait_for_end(self) -> None:
        """Return or raise when the process ends, without a deadline."""

    async def stop(self, deadline_seconds: float) -> None: ...
    async def replace(self) -> None:
        """Kill the process; another one takes its place."""

    async def remove(self) -> None:
        """Kill the process for good."""


class ActorPool(Protocol):
    """Where actors run."""

    async def plan(self, config: ClusterConfig, token: str) -> list[DenseSettings | ExpertSettings]:
        """What the actors of a service are told, chosen for the machines that are there."""

    async def find_or_create(self, settings: DenseSettings | ExpertSettings) -> RemoteActor: ...
    async def release(self) -> None:
        """Give the machines' resources back."""
