"""What a supervisor that was killed must know again: epoch, restarts, processes and placement."""

from __future__ import annotations

import msgspec

from actors.protocol.messages import Progress
from cluster.messages import Heartbeat
from cluster.supervisor.membership.membership import ActorKey, Kind, Place
from cluster.supervisor.membership.registry import Registry
from cluster.supervisor.placement.placement import Placement


class PlaceSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One place."""

    kind: Kind
    index: int
    incarnation: str | None
    restarts: int
    heartbeat: Heartbeat | None
    """Last sign of life, so that a process that hangs can be ended."""

    @property
    def key(self) -> ActorKey:
        """The place."""
        return ActorKey(self.kind, self.index)


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Written whenever one of them changes."""

    actor_hash: str
    """Of the config; notes of a service with other actors are of no use."""
    device: str
    """Of all actors."""
    epoch: int
    places: tuple[PlaceSnapshot, ...]
    placement: Placement | None
    target: Placement | None
    """What an operation was about to put in place of `placement`."""

    @property
    def num_experts(self) -> int:
        """How many expert actors there are."""
        return sum(place.kind == "expert" for place in self.places)


def compose(
    actor_hash: str, device: str, registry: Registry, placement: Placement | None, target: Placement | None
) -> Snapshot:
    """The notes of this moment."""
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
    """As JSON, which an operator can read."""
    return msgspec.json.encode(snapshot)


def decode(content: bytes, actor_hash: str) -> Snapshot | None:
    """Snapshot of a service with the same actors; None for any others."""
    try:
        snapshot: Snapshot = msgspec.json.decode(content, type=Snapshot)
    except msgspec.MsgspecError:
        return None
    return snapshot if snapshot.actor_hash == actor_hash else None


def places_of(snapshot: Snapshot) -> dict[ActorKey, Place]:
    """What is known of each place before it was looked at."""
    return {
        place.key: Place(incarnation=place.incarnation, restarts=place.restarts) for place in snapshot.places
    }


def _identity(heartbeat: Heartbeat | None) -> Heartbeat | None:
    """Which process it is, without how far it is, which would be news every moment."""
    if heartbeat is None:
        return None
    return msgspec.structs.replace(
        heartbeat, progress=Progress(state="starting", bytes_done=0, bytes_total=0)
    )
