"""What the supervisor tells of its actors: the view for operators, and how far the service is with starting."""

from __future__ import annotations

from actors.protocol.messages import ActorReport, Progress
from actors.protocol.settings import DenseSettings, ExpertSettings
from cluster.messages import ActorStartup, ActorView, Startup
from cluster.supervisor.membership.membership import ActorKey, Place
from cluster.supervisor.membership.registry import Registry, actor_name


def actor_views(registry: Registry) -> tuple[ActorView, ...]:
    """All dense and expert actors, as they were last seen."""
    return tuple(
        _actor_view(registry, key) for key in sorted(registry.records) if key in registry.state.places
    )


def startup(registry: Registry) -> Startup:
    """How far the actors are with loading."""
    actors = tuple(
        ActorStartup(name=actor_name(key), progress=_progress(registry, key))
        for key in sorted(registry.records)
        if key in registry.state.places
    )
    return Startup(is_ready=registry.state.is_ready, actors=actors, failure=registry.failure)


def _actor_view(registry: Registry, key: ActorKey) -> ActorView:
    record, known = registry.records[key], registry.state.places[key]
    report, settings = record.report, record.settings
    return ActorView(
        name=actor_name(key),
        kind=key.kind,
        index=key.index,
        pid=record.heartbeat.pid
        if record.heartbeat is not None and known.phase not in ("unseen", "absent")
        else 0,
        node_ip=record.heartbeat.node_ip if record.heartbeat is not None else "",
        device=report.device if report is not None else settings.device,
        state=_state_word(known, report),
        restarts=known.restarts,
        experts=_experts(registry, key, settings, report),
        memory_bytes=report.memory_bytes if report is not None else 0,
        lost_links=report.lost_links if report is not None else (),
        products=report.products if report is not None else "",
        load=report.load if report is not None else None,
        counters=report.counters if report is not None else None,
        rows_of_experts=report.rows_of_experts if report is not None else {},
    )


def _experts(
    registry: Registry, key: ActorKey, settings: DenseSettings | ExpertSettings, report: ActorReport | None
) -> tuple[int, ...]:
    """Those that it gets rows for; with the local exchange the dense actor itself holds experts."""
    if isinstance(settings, ExpertSettings):
        return tuple(registry.state.table.get(key.index, ()))
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


def _progress(registry: Registry, key: ActorKey) -> Progress:
    heartbeat, phase = registry.records[key].heartbeat, registry.state.places[key].phase
    if heartbeat is None or phase in ("unseen", "absent"):
        return Progress(state="starting", bytes_done=0, bytes_total=0)
    return heartbeat.progress
