"""What operators can do over HTTP and over gRPC: see the status and have the supervisor carry out operations.

A call returns when its operation is done, which may take as long as loading weights. The operation goes on if
the client leaves earlier.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

from msgspec.structs import replace

from cluster.errors import DeadlineExceeded, InvalidRequest, OperationFailed, ServerUnavailable
from cluster.ingress.service import Service
from cluster.messages import ClusterView
from cluster.supervisor.operations.messages import Operation
from cluster.supervisor.remote_actor import ActorLostError, OperationError

_POLL_SECONDS = 0.5


class Admin:
    """The operators' calls of one ingress replica. Every method may raise ClientError."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._seconds = service.config.load_deadline_seconds

    async def status(self) -> ClusterView:
        """Return the view of all actors as they are now."""
        return await self._service.view()

    async def watch(self, max_silence_seconds: float) -> AsyncGenerator[ClusterView, None]:
        """Yield the view now, after every change, and after each `max_silence_seconds` without a change.

        Memory in use, load and counters change all the time and do not count as a change. Raises
        ServerUnavailable when the supervisor is lost.
        """
        last, told_at = None, 0.0
        while True:
            view = await self.status()
            if _lasting(view) != last or time.monotonic() - told_at >= max_silence_seconds:
                last, told_at = _lasting(view), time.monotonic()
                yield view
            await asyncio.sleep(min(_POLL_SECONDS, max_silence_seconds))

    async def operate(self, operation: Operation) -> ClusterView:
        """Have the supervisor carry out an operation, and return the view of all actors afterwards."""
        supervisor = self._service.supervisor
        try:
            await supervisor.operate(operation, operation.deadline_seconds(self._seconds))
        except ValueError as error:
            raise InvalidRequest(str(error), _only_field(operation)) from error
        except OperationError as error:
            raise OperationFailed(str(error)) from error
        except asyncio.TimeoutError:
            raise DeadlineExceeded("the operation goes on; the status shows how far it is") from None
        except ActorLostError as error:
            raise ServerUnavailable(
                "the supervisor was lost before the operation was done; the status shows how far it came"
            ) from error
        return await self.status()


def _only_field(operation: Operation) -> str | None:
    """Return the field that a refusal is about: the operation's field if it has only one, else None."""
    fields = operation.__struct_fields__
    return fields[0] if len(fields) == 1 else None


def _lasting(view: ClusterView) -> ClusterView:
    """Return a view without the values that change all the time."""
    return replace(
        view,
        actors=tuple(
            replace(actor, memory_bytes=0, load=None, counters=None, rows_of_experts={})
            for actor in view.actors
        ),
    )
