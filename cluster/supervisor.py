"""The supervisor carries out what membership decides: it creates, watches, joins and describes the actors.

    watcher per actor --events--> membership.advance --decisions--> start_loading, rounds of join calls

It reaches actors through the protocols of `cluster.remote`, which `cluster.pool` fills with Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any

from actors import messages
from actors.messages import ActorReport, DenseMember, ExpertMember, Progress
from actors.settings import DenseSettings, ExpertSettings
from cluster import membership
from cluster.config import ClusterConfig
from cluster.membership import ActorKey, Created, Died, EpochSeen, Loaded, LoadFailed, RoundEnded, Unlinked
from cluster.remote import ActorLostError, ActorPool, RemoteActor
from cluster.view import ActorStartup, ActorView, ClusterView, DenseDoor, Doors, Pulse, Startup
from cluster.waiting import within

logger = logging.getLogger(__name__)

CALL_SECONDS = 10.0
"""Longest wait for a call that an actor answers from memory."""
HUNG_SECONDS = 60.0
"""An actor that gives no sign of life for so long is killed and started anew."""
_LOADING_POLL_SECONDS = 0.1
_IDLE_POLL_SECONDS = 1.0
_REPORT_SECONDS = 1.0
_PLAN_AGAIN_SECONDS = 2.0
_RECREATE_SECONDS = 0.1
_MAX_BACKOFF_SECONDS = 5.0
_DRAIN_POLL_SECONDS = 0.2
_BEYOND_GRACE_SECONDS = 2.0
"""What ingress replicas and dense actors take to end the requests that are left after the grace period."""


class _Place:
    """What the supervisor keeps of one actor beside its membership."""

    def __init__(self, settings: DenseSettings | ExpertSettings) -> None:
        self.settings = settings
        self.actor: RemoteActor | None = None
        self.pulse: Pulse | None = None
        self.report: ActorReport | None = None
        self.listening: tuple[str, str, int, str, int] | None = None
        """Incarnation, then what listen() answered."""


class Supervisor:
    """One per service. `start` returns at once; `shut_down` ends everything that was created."""

    def __init__(self, config: ClusterConfig, token: str, pool: ActorPool, me: ActorView) -> None:
        self._config, self._token, self._pool, self._me = config, token, pool, me
        self._state = membership.first(())
        self._places: dict[ActorKey, _Place] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._doors = Doors(version=0, token=self._token, dense=())
        self._doors_changed = asyncio.Event()
        self._drain_seconds: float | None = None
        self._failed_rounds = 0
        self._failure: str | None = None

    def start(self) -> None:
        """Begin to create, load and watch all actors, in the running event loop."""
        self._spawn(self._start())

    async def shut_down(self) -> None:
        """Stop and remove all actors. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        actors = [place.actor for place in self._places.values() if place.actor is not None]
        # A polite end lets peers see closed links at once; whoever does not answer is removed all the same.
        await asyncio.gather(*(actor.stop(2.0) for actor in actors), return_exceptions=True)
        await asyncio.gather(*(actor.remove() for actor in actors), return_exceptions=True)
        self._places.clear()
        await self._pool.release()

    async def doors(self, known_version: int, wait_seconds: float) -> Doors:
        """The dense actors' addresses: at once if they are newer than `known_version`, else when they change."""
        if self._doors.version <= known_version:
            with contextlib.suppress(asyncio.TimeoutError):
                await within(wait_seconds, self._doors_changed.wait())
        return self._doors

    async def drain(self, grace_seconds: float) -> None:
        """No new requests from now on. Returns when nothing runs any longer, which may take the grace period.

        What still runs after it is ended by the ingress replicas with an error. A further call can shorten the grace
        period; nothing undoes it.
        """
        self._drain_seconds = grace_seconds
        self._update_doors()
        loop = asyncio.get_running_loop()
        end = loop.time() + grace_seconds + _BEYOND_GRACE_SECONDS
        idle_looks = 0
        # Twice, for a request that moves from one dense actor to another is at none of them in between.
        while idle_looks < 2 and loop.time() < end:
            await asyncio.sleep(_DRAIN_POLL_SECONDS)
            dense = [key for key in self._places if key.kind == "dense"]
            await asyncio.gather(*(self._refresh(key) for key in dense))
            idle_looks = idle_looks + 1 if all(_is_idle(self._places[key].report) for key in dense) else 0

    async def view(self) -> ClusterView:
        """All actors as they are now; one that does not answer within a second as it was last seen."""
        await asyncio.gather(*(self._refresh(key) for key in self._places))
        actors = [self._describe(key) for key in sorted(self._places)]
        return ClusterView(model=self._config.model_id, epoch=self._state.epoch, actors=(*actors, self._me))

    def startup(self) -> Startup:
        """How far the actors are with loading."""
        actors = tuple(
            ActorStartup(name=actor_name(key), progress=self._progress(key)) for key in sorted(self._places)
        )
        return Startup(is_ready=self._state.is_ready, actors=actors, failure=self._failure)

    async def _start(self) -> None:
        plan = await self._plan()
        self._places = {key_of(settings): _Place(settings) for settings in plan}
        self._state = membership.first(tuple(self._places))
        for key in self._places:
            self._spawn(self._keep(key))

    async def _plan(self) -> list[DenseSettings | ExpertSettings]:
        """Settings of all actors, once there is room for them: nodes of a cluster that starts join one by one."""
        while True:
            try:
                plan = await self._pool.plan(self._config, self._token)
            except Exception as error:
                self._failure = str(error)
                logger.warning("cannot place the actors: %s", error)
                await asyncio.sleep(_PLAN_AGAIN_SECONDS)
            else:
                self._failure = None
                return plan

    async def _keep(self, key: ActorKey) -> None:
        """Follow one place through all processes that fill it."""
        place = self._places[key]
        while True:
            try:
                if place.actor is None:
                    place.actor = await self._pool.find_or_create(place.settings)
                pulse = await place.actor.pulse(HUNG_SECONDS)
            except (ActorLostError, asyncio.TimeoutError) as error:
                if self._state.places[key].restarts == 0 and not isinstance(error, asyncio.TimeoutError):
                    self._failure = f"{actor_name(key)}: {error}"
                place.actor = None
                await asyncio.sleep(_RECREATE_SECONDS)
                continue
            place.pulse, self._failure = pulse, None
            if pulse.progress.state != "starting":
                # It was there before this supervisor.
                with contextlib.suppress(ActorLostError, asyncio.TimeoutError):
                    self._post(EpochSeen((await place.actor.report(CALL_SECONDS)).epoch))
            self._post(Created(key, pulse.incarnation))
            await self._follow(key, place, place.actor, pulse.incarnation)
            logger.warning("%s is lost", key)
            place.report = None
            self._post(Died(key, pulse.incarnation))
            self._update_doors()

    async def _follow(self, key: ActorKey, place: _Place, actor: RemoteActor, incarnation: str) -> None:
        """Watch one process until its end, which is noticed at once, or until it is found hung."""
        end = asyncio.create_task(_ignoring_errors(actor.wait_for_end()))
        last_sign, loop = asyncio.get_running_loop().time(), asyncio.get_running_loop()
        try:
            while not end.done():
                phase = self._state.places[key].phase
                pause = _LOADING_POLL_SECONDS if phase == "loading" else _IDLE_POLL_SECONDS
                await asyncio.wait({end}, timeout=pause)
                try:
                    place.pulse = await actor.pulse(CALL_SECONDS)
                except ActorLostError:
                    return
                except asyncio.TimeoutError:
                    if loop.time() - last_sign > HUNG_SECONDS:
                        logger.error("%s gave no sign of life for %.0f s and is replaced", key, HUNG_SECONDS)
                        await actor.replace()
                        return
                    continue
                last_sign = loop.time()
                if place.pulse.incarnation != incarnation:
                    return
                if phase == "loading":
                    self._note_loading(key, incarnation, place.pulse.progress)
                elif phase == "joined":
                    await self._check_links(key, place, actor, incarnation)
        finally:
            end.cancel()

    def _note_loading(self, key: ActorKey, incarnation: str, progress: Progress) -> None:
        if progress.state in ("loaded", "ready"):
            self._post(Loaded(key, incarnation))
        elif progress.state == "failed":
            self._failure = f"{actor_name(key)}: {progress.error}"
            self._post(LoadFailed(key, incarnation, progress.error or "unknown"))

    async def _check_links(self, key: ActorKey, place: _Place, actor: RemoteActor, incarnation: str) -> None:
        """An actor that says of itself that it is lost is called to a new round."""
        with contextlib.suppress(ActorLostError, asyncio.TimeoutError):
            place.report = await actor.report(CALL_SECONDS)
            if place.report.state == "lost":
                self._post(Unlinked(key, incarnation, place.report.epoch))

    def _post(self, event: membership.Event) -> None:
        self._state, decisions = membership.advance(self._state, event)
        for decision in decisions:
            if isinstance(decision, membership.StartLoading):
                self._spawn(self._load(decision.key))
            else:
                self._spawn(self._hold_round(decision.epoch))

    async def _load(self, key: ActorKey) -> None:
        place = self._places[key]
        if place.actor is None or place.pulse is None or place.pulse.progress.state != "starting":
            return
        await _ignoring_errors(place.actor.start_loading(CALL_SECONDS))

    async def _hold_round(self, epoch: int) -> None:
        """Call all actors to the epoch. Failed rounds are repeated by membership, after a growing pause."""
        if self._failed_rounds:
            await asyncio.sleep(min(_MAX_BACKOFF_SECONDS, 0.2 * 2**self._failed_rounds))
        joined: set[ActorKey] = set()
        try:
            members = await self._gather_members(epoch)
        except (ActorLostError, asyncio.TimeoutError) as error:
            logger.warning("epoch %d: a dense actor does not listen: %s", epoch, error)
        else:
            self._update_doors()
            deadline = self._config.connect_deadline_seconds + CALL_SECONDS
            keys = list(self._places)
            results = await asyncio.gather(
                *(self._join(key, members, deadline) for key in keys), return_exceptions=True
            )
            for key, result in zip(keys, results, strict=True):
                if result is None:
                    joined.add(key)
                else:
                    logger.warning("epoch %d: %s did not join: %s", epoch, key, result)
        if self._state.epoch == epoch:
            self._failed_rounds = 0 if len(joined) == len(self._places) else self._failed_rounds + 1
        self._post(RoundEnded(epoch, frozenset(joined)))

    async def _join(self, key: ActorKey, members: messages.Membership, deadline_seconds: float) -> None:
        actor = self._places[key].actor
        assert actor is not None
        await actor.join(members, deadline_seconds)

    async def _gather_members(self, epoch: int) -> messages.Membership:
        dense, experts = [], []
        for key, place in self._places.items():
            if isinstance(place.settings, ExpertSettings):
                experts.append(ExpertMember(index=key.index, experts=place.settings.experts))
                continue
            incarnation = self._state.places[key].incarnation
            assert place.actor is not None and incarnation is not None
            if place.listening is None or place.listening[0] != incarnation:
                place.listening = (incarnation, *await place.actor.listen(CALL_SECONDS))
            _, _, _, store_host, store_port = place.listening
            dense.append(DenseMember(index=key.index, store_host=store_host, store_port=store_port))
        return messages.Membership(epoch=epoch, dense=tuple(dense), experts=tuple(experts))

    def _update_doors(self) -> None:
        """Tell waiting ingress replicas when a dense actor has come or gone."""
        dense = tuple(
            DenseDoor(index=key.index, host=place.listening[1], port=place.listening[2])
            for key, place in sorted(self._places.items())
            if place.listening is not None and place.listening[0] == self._state.places[key].incarnation
        )
        if (dense, self._drain_seconds) != (self._doors.dense, self._doors.drain_seconds):
            self._doors = Doors(
                version=self._doors.version + 1,
                token=self._token,
                dense=dense,
                drain_seconds=self._drain_seconds,
            )
            self._doors_changed.set()
            self._doors_changed = asyncio.Event()

    async def _refresh(self, key: ActorKey) -> None:
        place = self._places[key]
        if place.actor is None or self._state.places[key].phase == "absent":
            return
        with contextlib.suppress(ActorLostError, asyncio.TimeoutError):
            place.report = await place.actor.report(_REPORT_SECONDS)

    def _describe(self, key: ActorKey) -> ActorView:
        place, known = self._places[key], self._state.places[key]
        report, settings = place.report, place.settings
        return ActorView(
            name=actor_name(key),
            kind=key.kind,
            index=key.index,
            pid=place.pulse.pid if place.pulse is not None and known.phase != "absent" else 0,
            node_ip=place.pulse.node_ip if place.pulse is not None else "",
            device=report.device if report is not None else settings.device,
            state=_state_word(known),
            restarts=known.restarts,
            experts=_experts(settings, report),
            memory_bytes=report.memory_bytes if report is not None else 0,
        )

    def _progress(self, key: ActorKey) -> Progress:
        pulse, phase = self._places[key].pulse, self._state.places[key].phase
        if pulse is None or phase == "absent":
            return Progress(state="starting", bytes_done=0, bytes_total=0)
        return pulse.progress

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a task of the supervisor failed", exc_info=task.exception())


def key_of(settings: DenseSettings | ExpertSettings) -> ActorKey:
    """The place that an actor with these settings fills."""
    return ActorKey("dense" if isinstance(settings, DenseSettings) else "expert", settings.index)


def actor_name(key: ActorKey) -> str:
    """The actor's name in Ray and in every view."""
    return f"phimoe-{key}"


def _is_idle(report: ActorReport | None) -> bool:
    return report is not None and report.detail.get("running") == report.detail.get("waiting") == 0


async def _ignoring_errors(work: Coroutine[Any, Any, None]) -> None:
    """For calls whose failure is seen by the watcher as well."""
    with contextlib.suppress(ActorLostError, asyncio.TimeoutError):
        await work


def _experts(settings: DenseSettings | ExpertSettings, report: ActorReport | None) -> tuple[int, ...]:
    """With the local exchange the dense actor itself holds experts."""
    if isinstance(settings, ExpertSettings):
        return settings.experts
    return report.experts if report is not None else ()


def _state_word(place: membership.Place) -> str:
    if place.phase == "joined":
        return "ready"
    if place.phase == "failed" or (place.phase == "absent" and place.restarts > 0):
        return "lost"
    return "starting"
