"""Follows the supervisor: finds it, also after a restart, and keeps a channel to each listed dense actor."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from cluster.errors import ServerUnavailable
from cluster.messages import ClusterView, DenseAddresses
from cluster.requests.channel_pool import Channels
from cluster.supervisor.operations.messages import Operation

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 20.0
"""How long the supervisor may wait for a change of the list before it answers."""
_CALL_SECONDS = 10.0
_RETRY_SECONDS = 0.2


class SupervisorLink(Protocol):
    """The supervisor as a replica sees it. A call raises an exception if the supervisor cannot be reached."""

    async def view(self, deadline_seconds: float) -> ClusterView: ...
    async def addresses(
        self, known_version: int, wait_seconds: float, deadline_seconds: float
    ) -> DenseAddresses: ...
    async def operate(self, operation: Operation, deadline_seconds: float) -> None: ...


class SupervisorFollower:
    """Keeps the channels to the dense actors that the supervisor lists.

    When the supervisor reports a drain, the follower calls `drain` with the grace period in seconds.
    """

    def __init__(
        self,
        find_supervisor: Callable[[], Awaitable[SupervisorLink]],
        channels: Channels,
        drain: Callable[[float], None],
    ) -> None:
        self._find_supervisor, self._channels, self._drain = find_supervisor, channels, drain
        self._supervisor: SupervisorLink | None = None

    @property
    def supervisor(self) -> SupervisorLink:
        """The supervisor that answered last. Raises ServerUnavailable while none is known."""
        if self._supervisor is None:
            raise ServerUnavailable("the supervisor is starting", 5)
        return self._supervisor

    async def run(self) -> None:
        """Follow the supervisor until this coroutine is cancelled."""
        version = 0
        while True:
            try:
                if self._supervisor is None:
                    self._supervisor = await self._find_supervisor()
                addresses = await self._supervisor.addresses(
                    version, _WAIT_SECONDS, _WAIT_SECONDS + _CALL_SECONDS
                )
            except Exception as error:
                # A new supervisor counts versions from zero. The channels stay open meanwhile.
                logger.warning("the supervisor cannot be reached: %s", error)
                self._supervisor, version = None, 0
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            if addresses.drain_seconds is not None and addresses.version != version:
                self._drain(addresses.drain_seconds)
            # A new supervisor may report an empty list at first: channels that work are kept.
            if addresses.version != version and (addresses.dense or not self._channels.is_ready):
                await self._channels.update(addresses)
            version = addresses.version
