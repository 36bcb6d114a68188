"""What operators can do, whichever door they came through: look, and have the supervisor change something.

Operations return when they are done, which may take as long as loading weights does. Whoever leaves earlier ends his own
waiting, not the operation.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable

from msgspec.structs import replace

from cluster.errors import DeadlineExceeded, InvalidRequest, OperationFailed, ServerUnavailable
from cluster.ingress.service import Service
from cluster.messages import ClusterView
from cluster.supervisor.remote_actor import ActorLostError, OperationError

_POLL_SECONDS = 0.5
_BEYOND_GRACE_SECONDS = 30.0


class Admin:
    """The operations of one ingress replica's service. All raise ClientError."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._seconds = service.config.load_deadline_seconds

    async def status(self) -> ClusterView:
        """All actors as they are now."""
        return await self._service.view()

    async def watch(self, max_silence_seconds: float) -> AsyncGenerator[ClusterView, None]:
        """The view now, after every change, and again after every `max_silence_seconds` without one.

        Memory in use changes all the time and is no change. Ends with ServerUnavailable when the supervisor is lost.
        """
        last, told_at = None, 0.0
        while True:
            view = await self.status()
            if _lasting(view) != last or time.monotonic() - told_at >= max_silence_seconds:
                last, told_at = _lasting(view), time.monotonic()
                yield view
            await asyncio.sleep(min(_POLL_SECONDS, max_silence_seconds))

    async def scale(self, expert_actors: int) -> ClusterView:
        """Change the number of expert actors; what is there when it is done."""
        return await self._done(self._service.supervisor.scale(expert_actors, self._seconds), "expert_actors")

    async def rebalance(self) -> ClusterView:
        """Place the experts anew by measured load; what is there when it is done."""
        return await self._done(self._service.supervisor.rebalance(self._seconds))

    async def restart(self) -> ClusterView:
        """Restart all actors one by one; what is there when it is done."""
        return await self._done(self._service.supervisor.restart(self._seconds))

    async def drain(self, grace_seconds: float) -> ClusterView:
        """No new requests; the running ones have the grace period. What is there when nothing runs any longer."""
        supervisor = self._service.supervisor
        return await self._done(supervisor.drain(grace_seconds, grace_seconds + _BEYOND_GRACE_SECONDS))

    async def _done(self, operation: Awaitable[None], param: str | None = None) -> ClusterView:
        try:
            await operation
        except ValueError as error:
            raise InvalidRequest(str(error), param) from error
        except OperationError as error:
            raise OperationFailed(str(error)) from error
        except asyncio.TimeoutError:
            raise DeadlineExceeded("the operation goes on; the status shows how far it is") from None
        except ActorLostError as error:
            raise ServerUnavailable(
                "the supervisor was lost before the operation was done; the status shows how far it came"
            ) from error
        return await self.status()


def _lasting(view: ClusterView) -> ClusterView:
    """A view without what never stands still."""
    return replace(view, actors=tuple(replace(actor, memory_bytes=0) for actor in view.actors))
