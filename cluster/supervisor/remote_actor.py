"""The protocols through which the supervisor sees actors; `cluster.ray_actors.actors` implements them."""

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
    """The process behind an actor died or cannot be reached. Arguments: name of the actor, reason."""


class ActorDeadError(ActorLostError):
    """The process has ended and Ray will not start another. Arguments: name of the actor, reason."""


class OperationError(Exception):
    """An operation was not done, and the service is as it was before.

    Arguments: name of the operation, reason.
    """

    def __init__(self, operation: str, reason: str) -> None:
        super().__init__(operation, reason)
        self.operation, self.reason = operation, reason

    def __str__(self) -> str:
        return f"{self.operation}: {self.reason}"


class CannotLoadError(OperationError):
    """An actor cannot load the experts that it was asked to hold.

    Arguments: name of the operation, reason.
    """


CALL_SECONDS = 10.0
"""Longest wait for a call that an actor answers from memory."""
UNANSWERED = (ActorLostError, ActorError, asyncio.TimeoutError)
"""What a call raises: the process is lost, the actor raised its own error, or there was no answer in time."""


class RemoteActor(Protocol):
    """A dense or expert actor in its process. Every call raises one of UNANSWERED."""

    async def heartbeat(self, deadline_seconds: float) -> Heartbeat: ...
    async def start_loading(self, experts: tuple[int, ...] | None, deadline_seconds: float) -> None:
        """Begin to load these experts, or with None those in the actor's settings."""

    async def hold(self, experts: tuple[int, ...], deadline_seconds: float) -> None:
        """Begin to load further experts."""

    async def drop(self, experts: tuple[int, ...], deadline_seconds: float) -> None: ...
    async def listen(self, deadline_seconds: float) -> tuple[str, int, str, int]: ...
    async def join(self, members: messages.Membership, deadline_seconds: float) -> None: ...
    async def report(self, deadline_seconds: float) -> ActorReport: ...
    async def wait_for_end(self) -> None:
        """Return or raise when the process or the connection to it ends. There is no deadline."""

    async def stop(self, deadline_seconds: float) -> None: ...
    async def replace(self, heartbeat: Heartbeat | None, deadline_seconds: float) -> None:
        """Kill the process that sent this heartbeat, even if it is stopped; Ray starts another.

        If the process is already gone, do nothing. With None, kill the current process.
        """

    async def remove(self) -> None:
        """Kill the process for good."""


class ActorPool(Protocol):
    """Creates actors on the machines of a cluster, and keeps the supervisor's snapshot after its death."""

    async def plan(
        self, config: ClusterConfig, token: str, num_experts: int, device: str | None
    ) -> list[DenseSettings | ExpertSettings]:
        """Return the settings of all actors of a service, chosen for the machines that are alive.

        `num_experts` is the number of expert actors. `device` is the device of the actors that exist already,
        or None if there are none.
        """

    async def find_or_create(self, settings: DenseSettings | ExpertSettings) -> RemoteActor:
        """Return the actor, created if it does not exist.

        Raises ActorLostError if no node has room for it within some seconds.
        """

    async def maintain(self) -> None:
        """Move reservations whose node is lost to other nodes.

        The supervisor calls this about once a second.
        """

    async def give_back(self, settings: DenseSettings | ExpertSettings) -> None:
        """Free the reservation of an actor that was removed."""

    async def release(self) -> None:
        """Free all reservations and delete the snapshot."""

    async def save(self, snapshot: bytes) -> None:
        """Store the snapshot in place of the one before."""

    async def load(self) -> bytes | None:
        """Return the snapshot that was saved last, or None."""
