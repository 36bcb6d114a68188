"""The bodies of admin requests, as HTTP has them; gRPC's messages become the same. Pure."""

from __future__ import annotations

from cluster.config.cluster_config import NUM_EXPERTS
from cluster.openai.parsing.fields import Fields

MAX_GRACE_SECONDS = 3600.0
DEFAULT_GRACE_SECONDS = 30.0
MIN_SILENCE_SECONDS, MAX_SILENCE_SECONDS = 1.0, 3600.0
DEFAULT_SILENCE_SECONDS = 10.0


def parse_scale(body: object) -> int:
    """The number of expert actors that a body asks for. Raises InvalidRequest."""
    fields = Fields(body)
    fields.required("expert_actors")
    expert_actors = fields.integer("expert_actors", 1, NUM_EXPERTS, 1)
    fields.finish()
    return expert_actors


def parse_drain(body: object) -> float:
    """The grace period in seconds. Raises InvalidRequest."""
    fields = Fields(body)
    grace_seconds = fields.number("grace_seconds", 0, MAX_GRACE_SECONDS, default=DEFAULT_GRACE_SECONDS)
    fields.finish()
    return grace_seconds


def parse_nothing(body: object) -> None:
    """A body without fields. Raises InvalidRequest for any."""
    Fields(body).finish()


def parse_silence(body: object) -> float:
    """How long a watcher is to hear nothing at most, in seconds. Raises InvalidRequest."""
    fields = Fields(body)
    silence = fields.number(
        "max_silence_seconds", MIN_SILENCE_SECONDS, MAX_SILENCE_SECONDS, default=DEFAULT_SILENCE_SECONDS
    )
    fields.finish()
    return silence
