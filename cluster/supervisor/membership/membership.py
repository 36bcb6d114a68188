"""Decides which actors take part in which epoch, a version of the membership: events in, decisions out. Pure.

A place is a position such as dense-0 that one process at a time fills. It goes through these phases; the
death of its process leads to `absent` from each of them.

    unseen --Created--> loading --Loaded--> loaded <--Unlinked, RoundEnded--> joined
       |                   |                   |                                |
       +--Missing-> absent +--LoadFailed-> failed     silent <--Silent, Heard --+

Members are the processes that are loaded and not silent; an expert actor is a member only if the table gives
it experts. A round tells all members who the members are and which experts each of them holds. A round begins

    - at once, if the members or the table differ from those of the last round, even while it is under way,
    - after a pause, if a member has not joined or has lost a link; the pause grows with each such repair,

but only while a dense actor is a member and every expert has a holder. The first round also waits for all
places, unless a process has died or failed. A round interrupts no work: actors go on, and the epoch only
tells old news from new.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

Kind = Literal["dense", "expert"]
Phase = Literal["unseen", "absent", "loading", "loaded", "joined", "silent", "failed"]
Table: TypeAlias = Mapping[int, tuple[int, ...]]
"""Maps the index of an expert actor to the experts for which it gets rows."""


@dataclass(frozen=True, order=True, slots=True)
class ActorKey:
    """Identifies one place in the service, whichever process fills it."""

    kind: Kind
    index: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.index}"


@dataclass(frozen=True, slots=True)
class Added:
    """A place was added."""

    key: ActorKey


@dataclass(frozen=True, slots=True)
class Removed:
    """A place was removed, and its process with it."""

    key: ActorKey


@dataclass(frozen=True, slots=True)
class PlacementChanged:
    """There is a new table, which says from the next round on where the rows of each expert go."""

    table: Table


@dataclass(frozen=True, slots=True)
class Created:
    """A process fills the place. `incarnation` is unique to the process."""

    key: ActorKey
    incarnation: str
    is_loaded: bool = False
    """Whether the process already holds its weights, since it is older than the supervisor."""


@dataclass(frozen=True, slots=True)
class Missing:
    """No process was found at the first check of the place."""

    key: ActorKey


@dataclass(frozen=True, slots=True)
class Loaded:
    """The process has loaded its weights."""

    key: ActorKey
    incarnation: str


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The process cannot load its weights. It is not tried again until the process is replaced."""

    key: ActorKey
    incarnation: str
    error: str


@dataclass(frozen=True, slots=True)
class Died:
    """The process that filled the place has ended."""

    key: ActorKey
    incarnation: str


@dataclass(frozen=True, slots=True)
class Silent:
    """The process does not answer. Whether it still runs is unknown."""

    key: ActorKey
    incarnation: str


@dataclass(frozen=True, slots=True)
class Heard:
    """A process that was silent answers again."""

    key: ActorKey
    incarnation: str


@dataclass(frozen=True, slots=True)
class Unlinked:
    """The process lives, but a link that it needs under this epoch is broken."""

    key: ActorKey
    incarnation: str
    epoch: int


@dataclass(frozen=True, slots=True)
class RoundEnded:
    """Every join call of the epoch has returned. `joined` are the actors that joined; all others did not."""

    epoch: int
    joined: frozenset[ActorKey]


@dataclass(frozen=True, slots=True)
class Steady:
    """Some time after the round of this epoch, all its members report that they are well."""

    epoch: int


@dataclass(frozen=True, slots=True)
class EpochSeen:
    """An actor has already been in this epoch, so the next epoch must be higher."""

    epoch: int


AboutProcess: TypeAlias = Created | Loaded | LoadFailed | Died | Silent | Heard | Unlinked
Event: TypeAlias = (
    AboutProcess | Added | Removed | Missing | PlacementChanged | RoundEnded | Steady | EpochSeen
)


@dataclass(frozen=True, slots=True)
class StartLoading:
    """Tell the process of the place to load its weights."""

    key: ActorKey


@dataclass(frozen=True, slots=True)
class StartRound:
    """After the pause, tell all members to join under this epoch, then post RoundEnded."""

    epoch: int
    pause_seconds: float


Decision: TypeAlias = StartLoading | StartRound


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """What is known of one place."""

    phase: Phase = "unseen"
    incarnation: str | None = None
    """The process that fills the place."""
    restarts: int = 0
    """Number of processes of this place that have died."""
    error: str | None = None

    @property
    def is_up(self) -> bool:
        """Whether the process can take part in a round."""
        return self.phase in ("loaded", "joined")


@dataclass(frozen=True, kw_only=True, slots=True)
class Membership:
    """What is known of the service."""

    places: Mapping[ActorKey, Place]
    table: Table = field(default_factory=dict)
    epoch: int = 0
    """The highest epoch so far; 0 before the first round."""
    is_round_open: bool = False
    """Whether the join calls of `epoch` are still under way."""
    called: Mapping[ActorKey, str | None] = field(default_factory=dict)
    """The processes that were called to the present epoch."""
    called_table: Table = field(default_factory=dict)
    """The table that those processes were told."""
    num_repairs: int = 0
    """Number of rounds since the last steady one that were needed although no member had come or gone."""

    @property
    def members(self) -> dict[ActorKey, str | None]:
        """The places that would take part in a round now, with the incarnation of each."""
        return {
            key: place.incarnation
            for key, place in self.places.items()
            if place.is_up and (key.kind == "dense" or self.table.get(key.index))
        }

    @property
    def is_covered(self) -> bool:
        """Whether every expert has a holder among the members."""
        if not self.table and any(key.kind == "expert" for key in self.places):
            return False
        held = {expert for key in self.members for expert in self._experts(key)}
        return held >= {expert for experts in self.table.values() for expert in experts}

    @property
    def is_ready(self) -> bool:
        """Whether a dense actor has joined and every expert has a holder among the members."""
        has_dense = any(key.kind == "dense" and place.phase == "joined" for key, place in self.places.items())
        return has_dense and self.is_covered

    @property
    def is_switched(self) -> bool:
        """Whether every dense actor that may be computing has joined a round with the present table."""
        return (
            not self.is_round_open
            and dict(self.called_table) == dict(self.table)
            and all(
                place.phase not in ("loaded", "silent")
                for key, place in self.places.items()
                if key.kind == "dense"
            )
        )

    def _experts(self, key: ActorKey) -> tuple[int, ...]:
        return self.table.get(key.index, ()) if key.kind == "expert" else ()


def first(places: Mapping[ActorKey, Place], table: Table, epoch: int = 0) -> Membership:
    """Return the state before any check of the places, with what a snapshot says of them, if there is one."""
    return Membership(places=dict(places), table=dict(table), epoch=epoch)


def advance(state: Membership, event: Event) -> tuple[Membership, tuple[Decision, ...]]:
    """Return the state after an event, and what has to be done.

    Events of processes that have ended do nothing.
    """
    state, loading = _take_in(state, event)
    state, rounds = _begin_round(state)
    return state, loading + rounds


def _take_in(state: Membership, event: Event) -> tuple[Membership, tuple[Decision, ...]]:
    match event:
        case PlacementChanged(table):
            return replace(state, table=dict(table)), ()
        case EpochSeen(epoch):
            # Actors refuse an epoch that is not newer than theirs, so a round of a lower epoch has to be held
            # again.
            is_overtaken = epoch > state.epoch and state.is_round_open
            state = replace(state, called={} if is_overtaken else state.called)
            return replace(state, epoch=max(state.epoch, epoch)), ()
        case RoundEnded():
            return _end_round(state, event), ()
        case Steady(epoch):
            return replace(state, num_repairs=0) if epoch == state.epoch else state, ()
        case Added(key):
            return (_with_place(state, key, Place()) if key not in state.places else state), ()
        case Removed(key):
            rest = {other: place for other, place in state.places.items() if other != key}
            return replace(state, places=rest), ()
        case Missing(key):
            place = state.places.get(key, Place(phase="absent"))
            return (_with_place(state, key, _gone(place)) if place.phase == "unseen" else state), ()
        case _:
            return _take_in_process(state, event)


def _take_in_process(state: Membership, event: AboutProcess) -> tuple[Membership, tuple[Decision, ...]]:
    place = state.places.get(event.key)
    if place is None:
        return state, ()
    key, phase = event.key, place.phase
    if isinstance(event, Created):
        if place.incarnation == event.incarnation and phase not in ("unseen", "absent"):
            return state, ()
        # There is a new process, so the old process has died even though no event said so.
        is_unseen_death = place.incarnation not in (None, event.incarnation)
        born = Place(
            phase="loaded" if event.is_loaded else "loading",
            incarnation=event.incarnation,
            restarts=place.restarts + is_unseen_death,
        )
        return _with_place(state, key, born), () if event.is_loaded else (StartLoading(key),)
    if place.incarnation != event.incarnation or phase in ("unseen", "absent"):
        return state, ()
    match event:
        case Died():
            return _with_place(state, key, _gone(place)), ()
        case Loaded() if phase == "loading":
            return _with_phase(state, key, "loaded"), ()
        case LoadFailed() if phase == "loading":
            return _with_place(state, key, replace(place, phase="failed", error=event.error)), ()
        case Silent() if place.is_up:
            return _with_phase(state, key, "silent"), ()
        case Heard() if phase == "silent":
            return _with_phase(state, key, "loaded"), ()
        case Unlinked() if phase == "joined" and event.epoch == state.epoch and not state.is_round_open:
            state = replace(state, num_repairs=state.num_repairs + 1)
            return _with_phase(state, key, "loaded"), ()
        case _:
            return state, ()


def _end_round(state: Membership, event: RoundEnded) -> Membership:
    if event.epoch != state.epoch or not state.is_round_open:
        return state
    places = dict(state.places)
    for key, incarnation in state.called.items():
        place = places.get(key)
        if place is not None and place.is_up and place.incarnation == incarnation:
            places[key] = replace(place, phase="joined" if key in event.joined else "loaded")
    is_complete = event.joined >= state.called.keys()
    return replace(
        state,
        places=places,
        is_round_open=False,
        num_repairs=state.num_repairs + (not is_complete),
    )


def _begin_round(state: Membership) -> tuple[Membership, tuple[Decision, ...]]:
    members = state.members
    if not _may_begin(state, members):
        return state, ()
    is_changed = members != state.called or dict(state.table) != dict(state.called_table)
    is_broken = not state.is_round_open and any(state.places[key].phase == "loaded" for key in members)
    if not is_changed and not is_broken:
        return state, ()
    epoch = state.epoch + 1
    pause_seconds = 0.0 if is_changed else _pause_seconds(state.num_repairs)
    state = replace(state, epoch=epoch, is_round_open=True, called=members, called_table=dict(state.table))
    return state, (StartRound(epoch, pause_seconds),)


def _may_begin(state: Membership, members: Mapping[ActorKey, str | None]) -> bool:
    """Whether a round may begin.

    Before every place was checked, a round might leave out an actor that works.
    """
    phases = [place.phase for place in state.places.values()]
    if "unseen" in phases or not state.is_covered or not any(key.kind == "dense" for key in members):
        return False
    is_first = state.epoch == 0
    has_died = any(place.restarts for place in state.places.values()) or bool(
        {"absent", "failed"} & set(phases)
    )
    return not is_first or has_died or all(place.is_up for place in state.places.values())


def _pause_seconds(num_repairs: int) -> float:
    """The pause before a round: 0 up to the first repair, then 0.4 s, 0.8 s and so on, at most 30 s."""
    return 0.0 if num_repairs <= 1 else min(_MAX_PAUSE_SECONDS, 0.1 * 2.0**num_repairs)


_MAX_PAUSE_SECONDS = 30.0


def _gone(place: Place) -> Place:
    """The place after the death of its process, if it had one."""
    return Place(phase="absent", restarts=place.restarts + (place.incarnation is not None))


def _with_place(state: Membership, key: ActorKey, place: Place) -> Membership:
    return replace(state, places={**state.places, key: place})


def _with_phase(state: Membership, key: ActorKey, phase: Phase) -> Membership:
    return _with_place(state, key, replace(state.places[key], phase=phase))
