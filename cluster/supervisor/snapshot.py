"""The state that a supervisor needs after its own restart: epoch, restarts, processes and placement."""

from __future__ import annotations

import msgspec

from actors.protocol.messages import Progress
from cluster.messages import Heartbeat
from cluster.supervisor.membership.membership import ActorKey, Kind, Place
from cluster.supervisor.membership.registry import Registry
from cluster.supervisor.placement.placement import Placement


class PlaceSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What the snapshot says of one place."""

    kind: Kind
    index: int
    incarnation: str | None
    restarts: int
    heartbeat: Heartbeat | None
    """Last heartbeat of the process, which identifies it: a process that hangs can then be killed."""

    @property
    def key(self) -> ActorKey:
        """The key of the place."""
        return ActorKey(self.kind, self.index)


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The state of the service that outlives the supervisor.

    The snapshot is written whenever a part changes.
    """

    actor_hash: str
    """`ClusterConfig.actor_hash`. The snapshot of a service with other actors is ignored."""
    device: str
    """The device of all actors."""
    epoch: int
    places: tuple[PlaceSnapshot, ...]
    placement: Placement | None
    target: Placement | None
    """The placement that an operation was preparing, if any."""

    @property
    def num_experts(self) -> int:
        """The number of expert actors."""
        return sum(place.kind == "expert" for place in self.places)


def compose(
    actor_hash: str, device: str, registry: Registry, placement: Placement | None, target: Placement | None
) -> Snapshot:
    """Return the snapshot of the present state."""
    state, records = registry.state, registry.records
    places = tuple(
        PlaceSnapshot(
            kind=key.kind,
            index=key.index,
            incarnation=place.incarnation,
            restarts=place.restarts,
            heartbeat=_identity(records[key].heartbeat) if place.incarnation is not None else None,
        )
        for key, place in sorted(state.places.items())
        if key in records
    )
    return Snapshot(
        actor_hash=actor_hash,
        device=device,
        epoch=state.epoch,
        places=places,
        placement=placement,
        target=target,
    )


def encode(snapshot: Snapshot) -> bytes:
    """Encode a snapshot as JSON, which an operator can read."""
    return msgspec.json.encode(snapshot)


def decode(content: bytes, actor_hash: str) -> Snapshot | None:
    """Decode a snapshot. Return None if the content is invalid or belongs to a service with other actors."""
    try:
        snapshot: Snapshot = msgspec.json.decode(content, type=Snapshot)
    except msgspec.MsgspecError:
        return None
    return snapshot if snapshot.actor_hash == actor_hash else None


def places_of(snapshot: Snapshot) -> dict[ActorKey, Place]:
    """Return the places as the snapshot has them; their phase is "unseen" until the watcher checks them."""
    return {
        place.key: Place(incarnation=place.incarnation, restarts=place.restarts) for place in snapshot.places
    }


def _identity(heartbeat: Heartbeat | None) -> Heartbeat | None:
    """The heartbeat without its progress: progress changes all the time, and each change would be saved."""
    if heartbeat is None:
        return None
    return msgspec.structs.replace(
        heartbeat, progress=Progress(state="starting", bytes_done=0, bytes_total=0)
    )
