"""The methods of `phimoe.v1.Admin`, over the same operations as the admin routes of HTTP."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from google.protobuf.json_format import MessageToDict, ParseDict

from cluster.ingress.admin import Admin
from cluster.ingress.admin_bodies import parse_operation, parse_silence
from cluster.ingress.grpc.calls import CallContext
from cluster.messages import ClusterView
from cluster.supervisor.operations.messages import OPERATIONS, Operation
from protos import admin_pb2


class AdminMethods:
    """One coroutine or generator for each method of the proto, under its name. Each raises ClientError.

    The methods of operations are made from their messages.
    """

    def __init__(self, admin: Admin) -> None:
        self._admin = admin
        for operation in OPERATIONS:
            # The proto calls the method of an operation like its message.
            setattr(self, operation.__name__, functools.partial(self._operate, operation))

    async def Status(self, request: admin_pb2.StatusRequest, context: CallContext) -> admin_pb2.ClusterStatus:
        """All actors as they are now."""
        return cluster_status(await self._admin.status())

    async def WatchStatus(
        self, request: admin_pb2.WatchStatusRequest, context: CallContext
    ) -> AsyncGenerator[admin_pb2.ClusterStatus, None]:
        """The same now, after every change, and again after a time without one."""
        async with contextlib.aclosing(self._admin.watch(parse_silence(_body(request)))) as views:
            async for view in views:
                yield cluster_status(view)

    async def _operate(
        self, operation: type[Operation], request: Any, context: CallContext
    ) -> admin_pb2.ClusterStatus:
        return cluster_status(await self._admin.operate(parse_operation(operation, _body(request))))


def cluster_status(view: ClusterView) -> admin_pb2.ClusterStatus:
    """A view as a message; the fields have the same names."""
    return ParseDict(msgspec.to_builtins(view), admin_pb2.ClusterStatus(), ignore_unknown_fields=True)


def _body(request: Any) -> dict[str, Any]:
    """The JSON body of the HTTP route that asks for the same."""
    body: dict[str, Any] = MessageToDict(request, preserving_proto_field_name=True)
    return body
