"""Who lives, in which version (epoch): events in, decisions out. Pure: no clock, no Ray.

An actor goes through these phases; its death leads back to the first from everywhere.

    absent --Created--> loading --Loaded--> loaded --Joined(epoch)--> joined
                           |
                           +--LoadFailed--> failed

All actors that are loaded meet under one epoch. A round begins when every actor is loaded and some actor has not joined
the present epoch; it has an epoch that was never used before. A round that fails is followed by another one, and an
actor whose links break goes back to loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

Kind = Literal["dense", "expert"]
Phase = Literal["absent", "loading", "loaded", "joined", "failed"]


@dataclass(frozen=True, order=True, slots=True)
class ActorKey:
    """One place in the service, whichever process fills it at present."""

    kind: Kind
    index: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.index}"


@dataclass(frozen=True, slots=True)
class Created:
    """A process fills the place; `incarnation` is unique to that process."""

    key: ActorKey
    incarnation: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """That process holds its weights."""

    key: ActorKey
    incarnation: str


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """That process cannot load its weights; it will not be tried again until it is replaced."""

    key: ActorKey
    incarnation: str
    error: str


@dataclass(frozen=True, slots=True)
class Died:
    """The process that filled the place is gone."""

    key: ActorKey
    incarnation: str


@dataclass(frozen=True, slots=True)
class Unlinked:
    """The process lives, but what it had joined under this epoch is broken."""

    key: ActorKey
    incarnation: str
    epoch: int


@dataclass(frozen=True, slots=True)
class RoundEnded:
    """Every join call of the epoch has returned: these actors joined, all others did not."""

    epoch: int
    joined: frozenset[ActorKey]


@dataclass(frozen=True, slots=True)
class EpochSeen:
    """An actor that was there before the supervisor already belongs to this epoch; later ones must be higher."""

    epoch: int


Event: TypeAlias = Created | Loaded | LoadFailed | Died | Unlinked | RoundEnded | EpochSeen


@dataclass(frozen=True, slots=True)
class StartLoading:
    """Tell the process to load its weights."""

    key: ActorKey


@dataclass(frozen=True, slots=True)
class StartRound:
    """Tell all actors at once to join under this epoch, then report RoundEnded."""

    epoch: int


Decision: TypeAlias = StartLoading | StartRound


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """What is known of one place."""

    phase: Phase = "absent"
    incarnation: str | None = None
    restarts: int = 0
    """How many processes of this place have died."""
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Membership:
    """What is known of the service."""

    places: dict[ActorKey, Place]
    epoch: int = 0
    """The highest epoch that was ever begun; 0 before the first."""
    is_round_open: bool = False
    """Whether the join calls of `epoch` are still under way."""
    round_members: dict[ActorKey, str | None] = field(default_factory=dict)
    """The processes that were called to the present epoch."""

    @property
    def is_ready(self) -> bool:
        """Whether all actors belong to the present epoch."""
        return bool(self.places) and all(place.phase == "joined" for place in self.places.values())


def first(keys: tuple[ActorKey, ...]) -> Membership:
    """Nobody is there yet."""
    return Membership(places={key: Place() for key in keys})


def advance(state: Membership, event: Event) -> tuple[Membership, tuple[Decision, ...]]:
    """The state after an event, and what has to be done. News of a process that is already gone change nothing."""
    state, loading = _take_in(state, event)
    state, rounds = _begin_round(state)
    return state, loading + rounds


def _take_in(state: Membership, event: Event) -> tuple[Membership, tuple[Decision, ...]]:
    if isinstance(event, EpochSeen):
        return replace(state, epoch=max(state.epoch, event.epoch)), ()
    if isinstance(event, RoundEnded):
        return _end_round(state, event), ()
    place = state.places[event.key]
    if isinstance(event, Created):
        if place.incarnation == event.incarnation:
            return state, ()
        # A new process without news of the old one's death: the old one died unseen.
        restarts = place.restarts + (place.incarnation is not None)
        if place.incarnation is not None:
            state = replace(state, is_round_open=False)
        born = Place(phase="loading", incarnation=event.incarnation, restarts=restarts)
        return _with_place(state, event.key, born), (StartLoading(event.key),)
    if place.incarnation != event.incarnation:
        return state, ()
    if isinstance(event, Died):
        # A round that has lost a member cannot succeed; waiting for the others' deadlines would only take time.
        state = replace(state, is_round_open=state.is_round_open and event.key not in state.round_members)
        return _with_place(state, event.key, Place(restarts=place.restarts + 1)), ()
    if isinstance(event, Unlinked):
        if place.phase != "joined" or event.epoch != state.epoch:
            return state, ()
        return _with_place(state, event.key, replace(place, phase="loaded")), ()
    if place.phase != "loading":
        return state, ()
    if isinstance(event, LoadFailed):
        return _with_place(state, event.key, replace(place, phase="failed", error=event.error)), ()
    return _with_place(state, event.key, replace(place, phase="loaded")), ()


def _end_round(state: Membership, event: RoundEnded) -> Membership:
    if event.epoch != state.epoch or not state.is_round_open:
        return state
    members = state.round_members
    is_complete = event.joined >= members.keys() and all(
        state.places[key].incarnation == incarnation for key, incarnation in members.items()
    )
    state = replace(state, is_round_open=False)
    if not is_complete:
        return state
    places = {key: replace(place, phase="joined") for key, place in state.places.items()}
    return replace(state, places=places)


def _begin_round(state: Membership) -> tuple[Membership, tuple[Decision, ...]]:
    phases = {place.phase for place in state.places.values()}
    if state.is_round_open or not phases <= {"loaded", "joined"} or phases == {"joined"} or not phases:
        return state, ()
    epoch = state.epoch + 1
    members = {key: place.incarnation for key, place in state.places.items()}
    return (
        replace(state, epoch=epoch, is_round_open=True, round_members=members),
        (StartRound(epoch),),
    )


def _with_place(state: Membership, key: ActorKey, place: Place) -> Membership:
    return replace(state, places={**state.places, key: place})
