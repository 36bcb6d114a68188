"""Messages from and to the supervisor.

ClusterView is for operators, Startup for the start-up view, and DenseAddresses for ingress replicas. A
Heartbeat goes from an actor to the supervisor.
"""

from __future__ import annotations

import msgspec

from actors.protocol.messages import EngineCounters, Load, Progress


class ActorView(msgspec.Struct, frozen=True, kw_only=True):
    """One actor, as `/cluster` and `phimoe status` show it."""

    name: str
    kind: str
    """"dense", "expert" or "supervisor"."""
    index: int
    pid: int
    """Process id; 0 if no process is known."""
    node_ip: str
    device: str
    state: str
    """"starting", "ready" or "lost"."""
    restarts: int
    experts: tuple[int, ...]
    memory_bytes: int
    lost_links: tuple[str, ...] = ()
    """Names of the peers with which the actor has no working link."""
    products: str = ""
    """How the actor multiplies matrices: "avx512" or "avx2" (the project's own kernels), "onednn" or "torch";
    empty if it computes nothing."""
    load: Load | None = None
    """How busy a dense actor is; None while that is unknown, and for other actors."""
    counters: EngineCounters | None = None
    """What a dense actor has done since its start; None while that is unknown, and for other actors."""
    rows_of_experts: dict[int, int] = {}
    """Rows that an expert actor has computed since its start, by each expert that it holds."""


class OperationView(msgspec.Struct, frozen=True, kw_only=True):
    """An operation under way, started by an operator or by the supervisor itself."""

    name: str
    """"scale", "rebalance" or "restart"; "replace" if experts of an actor that stays away go to other actors,
    or back to it; "resume" if an operation continues that a supervisor's death interrupted."""
    step: str
    """The present step of the operation, in words."""
    done: int = 0
    """Number of experts loaded or actors restarted, out of `total`."""
    total: int = 0


class ClusterView(msgspec.Struct, frozen=True, kw_only=True):
    """All actors, and the service's epoch, placement and operation."""

    model: str
    epoch: int
    actors: tuple[ActorView, ...]
    placement_version: int = 0
    """Version of the placement, which grows when experts move between actors; 0 without expert actors."""
    operation: OperationView | None = None
    """The operation under way, or None."""


class ActorStartup(msgspec.Struct, frozen=True, kw_only=True):
    """The start-up progress of one actor."""

    name: str
    progress: Progress


class Startup(msgspec.Struct, frozen=True, kw_only=True):
    """The start-up progress of the service."""

    is_ready: bool
    actors: tuple[ActorStartup, ...]
    failure: str | None = None
    """Why the service cannot become ready without help, or None."""


class DenseAddress(msgspec.Struct, frozen=True, kw_only=True):
    """The address at which a dense actor takes frames of ingress replicas."""

    index: int
    host: str
    port: int
    is_leaving: bool = False
    """Whether the actor is about to be restarted. Its sequences then move to another actor, if one is
    ready."""


class DenseAddresses(msgspec.Struct, frozen=True, kw_only=True):
    """The addresses of all dense actors, for ingress replicas."""

    version: int
    """Version of the addresses, which grows with every change."""
    token: str
    """The token that the Hello frame must carry."""
    dense: tuple[DenseAddress, ...]
    drain_seconds: float | None = None
    """While the service drains, how long running requests may go on from now; else None."""


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """The sign of life of the process behind a dense or expert actor."""

    incarnation: str
    """An id that is unique to the process."""
    pid: int
    node_ip: str
    progress: Progress
    node_id: str = ""
    """Ray's id of the node."""
    started: str = ""
    """The kernel's start time of the process, which tells it from a later process with the same pid."""
