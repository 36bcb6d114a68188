"""Two views of the actors: `actor_views` for operators, and `startup` for the progress of a start."""

from __future__ import annotations

from actors.protocol.messages import ActorReport, Progress
from actors.protocol.settings import DenseSettings, ExpertSettings
from cluster.messages import ActorStartup, ActorView, Startup
from cluster.supervisor.membership.membership import ActorKey, Place
from cluster.supervisor.membership.registry import Registry, actor_name


def actor_views(registry: Registry) -> tuple[ActorView, ...]:
    """Return the views of all dense and expert actors, as they were last seen."""
    return tuple(
        _actor_view(registry, key) for key in sorted(registry.records) if key in registry.state.places
    )


def startup(registry: Registry) -> Startup:
    """Return each actor's loading progress, and whether the service is ready."""
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
    """The experts for which the actor gets rows.

    With the local exchange a dense actor holds all experts itself.
    """
    if isinstance(settings, ExpertSettings):
        return tuple(registry.state.table.get(key.index, ()))
    return report.experts if report is not None else ()


def _state_word(place: Place, report: ActorReport | None) -> str:
    """The state for operators.

    An actor that works counts as ready, also while a round with it is under way.
    """
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
