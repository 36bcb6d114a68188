"""The methods of `phimoe.v1.Admin`, which call the same operations as the admin routes of HTTP."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from google.protobuf.json_format import MessageToDict, ParseDict

from cluster.ingress.admin import Admin
from cluster.ingress.admin_bodies import parse_operation, parse_watch
from cluster.ingress.grpc.calls import CallContext
from cluster.messages import ClusterView
from cluster.supervisor.operations.messages import OPERATIONS, Operation
from protos import admin_pb2


class AdminMethods:
    """One coroutine or async generator for each method of the proto, under its name.

    Each may raise ClientError. The methods for operations are made from the operations' messages.
    """

    def __init__(self, admin: Admin) -> None:
        self._admin = admin
        for operation in OPERATIONS:
            # In the proto, the method for an operation has the name of the operation's message.
            setattr(self, operation.__name__, functools.partial(self._operate, operation))

    async def Status(self, request: admin_pb2.StatusRequest, context: CallContext) -> admin_pb2.ClusterStatus:
        """Return the status of all actors as they are now."""
        return cluster_status(await self._admin.status())

    async def WatchStatus(
        self, request: admin_pb2.WatchStatusRequest, context: CallContext
    ) -> AsyncGenerator[admin_pb2.ClusterStatus, None]:
        """Yield the status now, after every change, and after a time without a change."""
        async with contextlib.aclosing(self._admin.watch(parse_watch(_body(request)))) as views:
            async for view in views:
                yield cluster_status(view)

    async def _operate(
        self, operation: type[Operation], request: Any, context: CallContext
    ) -> admin_pb2.ClusterStatus:
        return cluster_status(await self._admin.operate(parse_operation(operation, _body(request))))


def cluster_status(view: ClusterView) -> admin_pb2.ClusterStatus:
    """Convert a view to a message, whose fields have the same names."""
    return ParseDict(msgspec.to_builtins(view), admin_pb2.ClusterStatus(), ignore_unknown_fields=True)


def _body(request: Any) -> dict[str, Any]:
    """Return the JSON body with which the HTTP route asks for the same."""
    body: dict[str, Any] = MessageToDict(request, preserving_proto_field_name=True)
    return body
