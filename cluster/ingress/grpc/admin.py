"""The methods of `phimoe.v1.Admin`, over the same operations as the admin routes of HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from google.protobuf.json_format import MessageToDict, ParseDict

from cluster.ingress.admin import Admin
from cluster.ingress.admin_bodies import parse_drain, parse_scale, parse_silence
from cluster.ingress.auth import Access
from cluster.ingress.grpc.calls import CallContext, Calls
from cluster.messages import ClusterView
from protos import admin_pb2


class GrpcAdmin:
    """One coroutine or generator per method, each for operators alone. A ClientError becomes its status."""

    def __init__(self, admin: Admin, calls: Calls) -> None:
        self._admin, self._calls = admin, calls

    async def status(self, request: admin_pb2.StatusRequest, context: CallContext) -> admin_pb2.ClusterStatus:
        """Admin.Status."""
        with self._calls.admitted(request, context, Access.ADMIN):
            return cluster_status(await self._admin.status())

    async def watch_status(
        self, request: admin_pb2.WatchStatusRequest, context: CallContext
    ) -> AsyncGenerator[admin_pb2.ClusterStatus, None]:
        """Admin.WatchStatus."""
        with self._calls.admitted(request, context, Access.ADMIN):
            async with contextlib.aclosing(self._admin.watch(parse_silence(_body(request)))) as views:
                async for view in views:
                    yield cluster_status(view)

    async def drain(self, request: admin_pb2.DrainRequest, context: CallContext) -> admin_pb2.ClusterStatus:
        """Admin.Drain."""
        with self._calls.admitted(request, context, Access.ADMIN):
            return cluster_status(await self._admin.drain(parse_drain(_body(request))))

    async def rebalance(
        self, request: admin_pb2.RebalanceRequest, context: CallContext
    ) -> admin_pb2.ClusterStatus:
        """Admin.Rebalance."""
        with self._calls.admitted(request, context, Access.ADMIN):
            return cluster_status(await self._admin.rebalance())

    async def scale(self, request: admin_pb2.ScaleRequest, context: CallContext) -> admin_pb2.ClusterStatus:
        """Admin.Scale."""
        with self._calls.admitted(request, context, Access.ADMIN):
            return cluster_status(await self._admin.scale(parse_scale(_body(request))))

    async def restart(
        self, request: admin_pb2.RestartRequest, context: CallContext
    ) -> admin_pb2.ClusterStatus:
        """Admin.Restart."""
        with self._calls.admitted(request, context, Access.ADMIN):
            return cluster_status(await self._admin.restart())


def cluster_status(view: ClusterView) -> admin_pb2.ClusterStatus:
    """A view as a message; the fields have the same names."""
    return ParseDict(msgspec.to_builtins(view), admin_pb2.ClusterStatus(), ignore_unknown_fields=True)


def _body(request: Any) -> dict[str, Any]:
    """The JSON body of the HTTP route that asks for the same."""
    body: dict[str, Any] = MessageToDict(request, preserving_proto_field_name=True)
    return body
