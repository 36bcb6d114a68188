"""What the supervisor tells of its actors: the view for operators, and how far the service is with starting."""

from __future__ import annotations

from actors.protocol.messages import ActorReport, Progress
from actors.protocol.settings import DenseSettings, ExpertSettings
from cluster.messages import ActorStartup, ActorView, Startup
from cluster.supervisor.membership.membership import ActorKey, Place
from cluster.supervisor.membership.registry import Roster, actor_name


def actor_views(roster: Roster) -> tuple[ActorView, ...]:
    """All dense and expert actors, as they were last seen."""
    return tuple(_actor_view(roster, key) for key in sorted(roster.seats) if key in roster.state.places)


def startup(roster: Roster) -> Startup:
    """How far the actors are with loading."""
    actors = tuple(
        ActorStartup(name=actor_name(key), progress=_progress(roster, key))
        for key in sorted(roster.seats)
        if key in roster.state.places
    )
    return Startup(is_ready=roster.state.is_ready, actors=actors, failure=roster.failure)


def _actor_view(roster: Roster, key: ActorKey) -> ActorView:
    seat, known = roster.seats[key], roster.state.places[key]
    report, settings = seat.report, seat.settings
    return ActorView(
        name=actor_name(key),
        kind=key.kind,
        index=key.index,
        pid=seat.pulse.pid if seat.pulse is not None and known.phase not in ("unseen", "absent") else 0,
        node_ip=seat.pulse.node_ip if seat.pulse is not None else "",
        device=report.device if report is not None else settings.device,
        state=_state_word(known, report),
        restarts=known.restarts,
        experts=_experts(roster, key, settings, report),
        memory_bytes=report.memory_bytes if report is not None else 0,
        lost_links=report.lost_links if report is not None else (),
        products=report.products if report is not None else "",
    )


def _experts(
    roster: Roster, key: ActorKey, settings: DenseSettings | ExpertSettings, report: ActorReport | None
) -> tuple[int, ...]:
    """Those that it gets rows for; with the local exchange the dense actor itself holds experts."""
    if isinstance(settings, ExpertSettings):
        return tuple(roster.state.table.get(key.index, ()))
    return report.experts if report is not None else ()


def _state_word(place: Place, report: ActorReport | None) -> str:
    """An actor that works is ready, also while a round that includes it is under way."""
    if place.phase == "joined" or (
        place.phase == "loaded" and report is not None and report.state == "ready"
    ):
        return "ready"
    if place.phase in ("failed", "silent") or (place.phase in ("absent", "unseen") and place.restarts > 0):
        return "lost"
    return "starting"


def _progress(roster: Roster, key: ActorKey) -> Progress:
    pulse, phase = roster.seats[key].pulse, roster.state.places[key].phase
    if pulse is None or phase in ("unseen", "absent"):
        return Progress(state="starting", bytes_done=0, bytes_total=0)
    return pulse.progress
