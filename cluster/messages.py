"""What the supervisor tells: to operators (ClusterView), to the start-up view (Startup), to ingress replicas (DenseAddresses)."""

from __future__ import annotations

import msgspec

from actors.protocol.messages import EngineCounters, Load, Progress


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
    lost_links: tuple[str, ...] = ()
    """Peers that it has no working link with."""
    products: str = ""
    """How it multiplies matrices: "avx512" or "avx2" (the project's kernels), "onednn" or "torch"; empty where it computes nothing."""
    load: Load | None = None
    """How busy a dense actor is; None while that is unknown, and for other actors."""
    counters: EngineCounters | None = None
    """What a dense actor has done since its start; None while that is unknown, and for other actors."""
    rows_of_experts: dict[int, int] = {}
    """Rows that an expert actor has computed since its start, by each expert that it holds."""


class OperationView(msgspec.Struct, frozen=True, kw_only=True):
    """What is being done: asked for by an operator, or by the supervisor itself."""

    name: str
    """"scale", "rebalance" or "restart"; "replace" where experts of an actor that stays away go to others, or back to it;
    "resume" where an operation goes on that a supervisor's death cut short."""
    step: str
    """What it is at, in words."""
    done: int = 0
    """Of `total` experts to load or actors to restart."""
    total: int = 0


class ClusterView(msgspec.Struct, frozen=True, kw_only=True):
    """All actors under the present epoch."""

    model: str
    epoch: int
    actors: tuple[ActorView, ...]
    placement_version: int = 0
    """Grows whenever experts move between actors; 0 without expert actors."""
    operation: OperationView | None = None
    """None while nothing is under way."""


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


class DenseAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a dense actor takes frames."""

    index: int
    host: str
    port: int
    is_leaving: bool = False
    """Whether it is about to be restarted: sequences are computed elsewhere where that is possible."""


class DenseAddresses(msgspec.Struct, frozen=True, kw_only=True):
    """All dense actors that an ingress can connect to."""

    version: int
    """Grows with every change."""
    token: str
    """What the Hello frame must carry."""
    dense: tuple[DenseAddress, ...]
    drain_seconds: float | None = None
    """While the service drains: how long running requests may go on, from now. None while it does not."""


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """Sign of life of the process behind a dense or expert actor."""

    incarnation: str
    """Unique to the process."""
    pid: int
    node_ip: str
    progress: Progress
    node_id: str = ""
    """Ray's name of the node."""
    started: str = ""
    """When the kernel says that the process began, so that a reused pid is not mistaken for it."""
