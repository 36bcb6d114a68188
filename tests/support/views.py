"""Actors as the supervisor shows them."""

from __future__ import annotations

from typing import Any

from cluster.messages import ActorView


def actor_view(name: str = "phimoe-expert-0", kind: str = "expert", **changes: Any) -> ActorView:
    """Return a ready actor on a CPU, with these fields changed."""
    fields: dict[str, Any] = {
        "index": 0,
        "pid": 1,
        "node_ip": "",
        "device": "cpu",
        "state": "ready",
        "restarts": 0,
        "experts": (),
        "memory_bytes": 0,
    }
    return ActorView(name=name, kind=kind, **fields | changes)
