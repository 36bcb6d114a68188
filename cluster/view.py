"""What the supervisor tells: to operators (ClusterView), to the start-up view (Startup), to ingress replicas (Doors)."""

from __future__ import annotations

import msgspec

from actors.messages import Progress


class ActorView(msgspec.Struct, frozen=True, kw_only=True):
    """One actor in `/cluster` and `phimoe status`."""

    name: str
    kind: str
    """"dense", "expert" or "supervisor"."""
    index: int
    pid: int
    """0 where no process is known."""
    node_ip: str
    device: str
    state: str
    """"starting", "ready" or "lost"."""
    restarts: int
    experts: tuple[int, ...]
    memory_bytes: int


class ClusterView(msgspec.Struct, frozen=True, kw_only=True):
    """All actors under the present epoch."""

    model: str
    epoch: int
    actors: tuple[ActorView, ...]


class ActorStartup(msgspec.Struct, frozen=True, kw_only=True):
    """How far one actor is with starting."""

    name: str
    progress: Progress


class Startup(msgspec.Struct, frozen=True, kw_only=True):
    """How far the service is with starting."""

    is_ready: bool
    actors: tuple[ActorStartup, ...]
    failure: str | None = None
    """Why it will not become ready without help."""


class DenseDoor(msgspec.Struct, frozen=True, kw_only=True):
    """Where a dense actor takes frames."""

    index: int
    host: str
    port: int
    is_leaving: bool = False
    """Whether it is about to be restarted: sequences are computed elsewhere where that is possible."""


class Doors(msgspec.Struct, frozen=True, kw_only=True):
    """All dense actors that an ingress can connect to."""

    version: int
    """Grows with every change."""
    token: str
    """What the Hello frame must carry."""
    dense: tuple[DenseDoor, ...]
    drain_seconds: float | None = None
    """While the service drains: how long running requests may go on, from now. None while it does not."""


class Pulse(msgspec.Struct, frozen=True, kw_only=True):
    """Sign of life of the process behind a dense or expert actor."""

    incarnation: str
    """Unique to the process."""
    pid: int
    node_ip: str
    progress: Progress
