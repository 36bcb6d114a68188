"""The bodies of admin requests, as HTTP has them; gRPC's messages become the same. Pure."""

from __future__ import annotations

from typing import Annotated

import msgspec

from cluster.config.cluster_config import NUM_EXPERTS
from cluster.openai.kinds.objects import Object
from cluster.openai.kinds.scalars import Integer, Number
from cluster.openai.limits import Limits

DEFAULT_GRACE_SECONDS = 30.0
_LIMITS = Limits()
"""No bound of these bodies depends on it."""


class ScaleFields(msgspec.Struct, frozen=True, kw_only=True):
    """The body of /admin/scale."""

    expert_actors: Annotated[int, Integer(1, NUM_EXPERTS), "The number of expert actors afterwards."]


class DrainFields(msgspec.Struct, frozen=True, kw_only=True):
    """The body of /admin/drain."""

    grace_seconds: Annotated[float, Number(0, 3600), "How long running requests may go on."] = (
        DEFAULT_GRACE_SECONDS
    )


class WatchFields(msgspec.Struct, frozen=True, kw_only=True):
    """What gRPC's WatchStatus is asked."""

    max_silence_seconds: Annotated[
        float, Number(1, 3600), "A status is sent after this time even if nothing has changed."
    ] = 10.0


class NoFields(msgspec.Struct, frozen=True, kw_only=True):
    """The body of an operation without parameters."""


SCALE = Object(ScaleFields)
DRAIN = Object(DrainFields)
WATCH = Object(WatchFields)
NOTHING = Object(NoFields)


def parse_scale(body: object) -> int:
    """The number of expert actors that a body asks for. Raises InvalidRequest."""
    return SCALE.read("", body, _LIMITS).expert_actors


def parse_drain(body: object) -> float:
    """The grace period in seconds. Raises InvalidRequest."""
    return DRAIN.read("", body, _LIMITS).grace_seconds


def parse_nothing(body: object) -> None:
    """A body without fields. Raises InvalidRequest for any."""
    NOTHING.read("", body, _LIMITS)


def parse_silence(body: object) -> float:
    """How long a watcher is to hear nothing at most, in seconds. Raises InvalidRequest."""
    return WATCH.read("", body, _LIMITS).max_silence_seconds
