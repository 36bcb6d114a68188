"""What operators can do over HTTP and over gRPC: look, and have the supervisor change something.

An operation returns when it is done, which may take as long as loading weights does. A client that leaves earlier does not
end the operation.
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
    """The operations of one ingress replica's service. All raise ClientError."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._seconds = service.config.load_deadline_seconds

    async def status(self) -> ClusterView:
        """All actors as they are now."""
        return await self._service.view()

    async def watch(self, max_silence_seconds: float) -> AsyncGenerator[ClusterView, None]:
        """The view now, after every change, and again after every `max_silence_seconds` without one.

        Memory in use, load and counters change all the time and are no change. Ends with ServerUnavailable when the
        supervisor is lost.
        """
        last, told_at = None, 0.0
        while True:
            view = await self.status()
            if _lasting(view) != last or time.monotonic() - told_at >= max_silence_seconds:
                last, told_at = _lasting(view), time.monotonic()
                yield view
            await asyncio.sleep(min(_POLL_SECONDS, max_silence_seconds))

    async def operate(self, operation: Operation) -> ClusterView:
        """Have the supervisor carry out an operation; all actors as they are when it is done."""
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
    """The field that a refusal is about, if the operation has no other."""
    fields = operation.__struct_fields__
    return fields[0] if len(fields) == 1 else None


def _lasting(view: ClusterView) -> ClusterView:
    """A view without what changes all the time."""
    return replace(
        view,
        actors=tuple(
            replace(actor, memory_bytes=0, load=None, counters=None, rows_of_experts={})
            for actor in view.actors
        ),
    )
