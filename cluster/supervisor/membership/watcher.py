"""Follows each place through all its processes: creates them, asks for signs of life, kills those that hang.

    find or create the process
      -> first heartbeat: Created
      -> heartbeats and reports: Loaded, Unlinked, Steady
      -> Died, then from the start

An actor that gives no sign of life for `hung_after_seconds` becomes Silent at once and is killed. Half of
that time is enough once a peer misses its answers; while the actor loads, it has longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from actors.protocol.messages import ActorReport, Progress
from cluster.config.cluster_config import ClusterConfig
from cluster.messages import Heartbeat
from cluster.supervisor.membership.membership import (
    ActorKey,
    Created,
    Died,
    EpochSeen,
    Heard,
    Loaded,
    LoadFailed,
    Missing,
    Silent,
    Steady,
    Unlinked,
)
from cluster.supervisor.membership.registry import ActorRecord, Registry, actor_name
from cluster.supervisor.remote_actor import CALL_SECONDS, UNANSWERED, ActorDeadError, ActorPool, RemoteActor
from cluster.timeouts import within

logger = logging.getLogger(__name__)

_KILL_SECONDS = 60.0
"""Longest wait for a kill. For an actor on another node, Ray first starts a process there, on busy cores."""
_START_SECONDS = 120.0
"""Longest time from the start of a process to its first sign of life."""
_LOADING_SECONDS = 30.0
"""How long an actor that loads may give no sign of life."""
_SHORT_PAUSE_SECONDS = 0.1
_PAUSE_SECONDS = 0.5
_REPORT_PAUSE_SECONDS = 1.0
_GRACE_SECONDS = 0.25
"""Further time to read an answer that has arrived while this process itself was held up."""
_RECREATE_SECONDS = 0.1


class Watcher:
    """Watches places. `keep` runs once for each place, for as long as the place exists."""

    def __init__(
        self,
        config: ClusterConfig,
        registry: Registry,
        pool: ActorPool,
        on_dense_report: Callable[[str, ActorReport], None],
    ) -> None:
        self._config, self._registry, self._pool = config, registry, pool
        self._on_dense_report = on_dense_report

    async def keep(self, key: ActorKey) -> None:
        """Follow one place. Ends only when it is cancelled."""
        record = self._registry.records[key]
        while True:
            heartbeat = await self._first_heartbeat(key, record)
            if heartbeat is None:
                await asyncio.sleep(_RECREATE_SECONDS)
                continue
            actor, record.heartbeat = record.actor, heartbeat
            assert actor is not None
            await self._introduce(key, record, actor, heartbeat)
            await self._follow(key, record, actor, heartbeat.incarnation)
            logger.warning("%s is lost", key)
            record.report = None
            self._registry.post(Died(key, heartbeat.incarnation))

    async def _first_heartbeat(self, key: ActorKey, record: ActorRecord) -> Heartbeat | None:
        """Find or create the actor and wait until its process answers. Return None if it does not."""
        # A process that is in the snapshot has had its time to start.
        is_known = record.heartbeat is not None and self._registry.state.places[key].phase == "unseen"
        try:
            if record.actor is None:
                record.actor = await self._pool.find_or_create(record.settings)
            if is_known:
                heartbeat = await record.actor.heartbeat(self._config.hung_after_seconds)
            else:
                heartbeat = await self._heartbeat_of_new(key, record.actor)
        except UNANSWERED as error:
            is_silent = isinstance(error, asyncio.TimeoutError)
            if self._registry.state.places[key].restarts == 0 and not is_silent:
                self._registry.failure = f"{actor_name(key)}: {error}"
            logger.warning("%s does not answer: %r", key, error)
            self._registry.post(Missing(key))
            if record.actor is not None and is_silent:
                await self._kill(key, record.actor, record.heartbeat if is_known else None)
            if not is_silent:
                record.actor = None
            return None
        self._registry.failure = None
        return heartbeat

    async def _heartbeat_of_new(self, key: ActorKey, actor: RemoteActor) -> Heartbeat:
        """Wait for the first heartbeat of a process that may still be starting or waiting for room on a node.

        If the service already serves, it must not wait for this place, so the place is posted as Missing
        meanwhile.
        """
        call = asyncio.ensure_future(actor.heartbeat(_START_SECONDS))
        try:
            done, _ = await asyncio.wait({call}, timeout=self._config.hung_after_seconds)
            if not done and self._registry.state.epoch > 0:
                self._registry.post(Missing(key))
            return await call
        finally:
            call.cancel()

    async def _introduce(
        self, key: ActorKey, record: ActorRecord, actor: RemoteActor, heartbeat: Heartbeat
    ) -> None:
        is_loaded = False
        if heartbeat.progress.state != "starting":
            # The process is older than this supervisor. If it has an epoch it serves, even while it loads
            # more experts.
            with contextlib.suppress(*UNANSWERED):
                record.report = await actor.report(CALL_SECONDS)
                is_loaded = record.report.epoch >= 0
                self._registry.post(EpochSeen(record.report.epoch))
        is_loaded = is_loaded or heartbeat.progress.state in ("loaded", "ready")
        self._registry.post(Created(key, heartbeat.incarnation, is_loaded))

    async def _follow(self, key: ActorKey, record: ActorRecord, actor: RemoteActor, incarnation: str) -> None:
        """Watch one process until it is known to have ended."""
        end = asyncio.create_task(_ignoring_errors(actor.wait_for_end()))
        killing: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        reported_at = loop.time()
        record.is_silent = False
        try:
            while True:
                await self._pause(key, record, end)
                is_cut = end.done()
                if is_cut:
                    # Either the process or only the connection to it has ended. The next heartbeat shows
                    # which.
                    self._registry.post(Silent(key, incarnation))
                    end = asyncio.create_task(_ignoring_errors(actor.wait_for_end()))
                asked = record.asked
                try:
                    heartbeat = await self._heartbeat(record, actor)
                except ActorDeadError:
                    record.actor = None
                    return
                except UNANSWERED as error:
                    self._registry.post(Silent(key, incarnation))
                    record.is_silent = True
                    is_hung = isinstance(error, asyncio.TimeoutError) and not is_cut
                    if is_hung and (killing is None or killing.done()):
                        logger.error("%s gives no sign of life and is killed", key)
                        killing = asyncio.create_task(self._kill(key, actor, record.heartbeat))
                    continue
                if heartbeat.incarnation != incarnation:
                    return
                if killing is not None:
                    killing.cancel()
                record.is_silent = False
                if record.asked is asked:
                    # If `asked` has changed meanwhile, this progress may still be that of the earlier
                    # request.
                    record.heartbeat = heartbeat
                self._registry.post(Heard(key, incarnation))
                phase = self._registry.state.places[key].phase
                if phase == "loading":
                    await self._note_loading(key, record, actor, heartbeat.progress)
                elif phase in ("loaded", "joined") and loop.time() - reported_at >= _REPORT_PAUSE_SECONDS:
                    reported_at = loop.time()
                    await self._take_report(key, record, actor, incarnation)
        finally:
            end.cancel()
            if killing is not None:
                killing.cancel()

    async def _pause(self, key: ActorKey, record: ActorRecord, end: asyncio.Task[None]) -> None:
        """Wait until the next heartbeat is due, which is at once after a lost connection or a suspicion."""
        if record.is_silent:
            await asyncio.sleep(_SHORT_PAUSE_SECONDS)
            return
        is_loading = self._registry.state.places[key].phase == "loading"
        seconds = _SHORT_PAUSE_SECONDS if is_loading else _PAUSE_SECONDS
        suspicion = asyncio.create_task(record.suspicion.wait())
        try:
            await asyncio.wait({end, suspicion}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            suspicion.cancel()

    async def _heartbeat(self, record: ActorRecord, actor: RemoteActor) -> Heartbeat:
        deadline_seconds = self._config.hung_after_seconds
        if record.suspicion.is_set():
            record.suspicion.clear()
            deadline_seconds /= 2
        if record.heartbeat is not None and record.heartbeat.progress.state in ("starting", "loading"):
            deadline_seconds = max(deadline_seconds, _LOADING_SECONDS)
        call = asyncio.ensure_future(actor.heartbeat(deadline_seconds + _GRACE_SECONDS))
        try:
            await asyncio.wait({call}, timeout=deadline_seconds)
            return await within(_GRACE_SECONDS, call)
        finally:
            call.cancel()

    async def _note_loading(
        self, key: ActorKey, record: ActorRecord, actor: RemoteActor, progress: Progress
    ) -> None:
        incarnation = self._registry.state.places[key].incarnation or ""
        if progress.state in ("loaded", "ready"):
            with contextlib.suppress(*UNANSWERED):
                record.report = await actor.report(CALL_SECONDS)
            self._registry.post(Loaded(key, incarnation))
        elif progress.state == "failed":
            self._registry.failure = f"{actor_name(key)}: {progress.error}"
            self._registry.post(LoadFailed(key, incarnation, progress.error or "unknown"))

    async def _take_report(
        self, key: ActorKey, record: ActorRecord, actor: RemoteActor, incarnation: str
    ) -> None:
        """Take an actor's report.

        If it says that links are lost, start a new round and check the peers at once.
        """
        try:
            report = await actor.report(self._config.hung_after_seconds)
        except UNANSWERED:
            return
        record.report = report
        for name in {*report.lost_links, *report.suspected_links}:
            for other, peer in self._registry.records.items():
                if str(other) == name:
                    peer.suspicion.set()
        if key.kind == "dense":
            self._on_dense_report(incarnation, report)
        if not _is_well(report):
            self._registry.post(Unlinked(key, incarnation, report.epoch))
        elif self._registry.state.num_repairs and self._are_all_well():
            self._registry.post(Steady(self._registry.state.epoch))

    def _are_all_well(self) -> bool:
        state = self._registry.state
        reports = [
            self._registry.records[key].report for key in state.called if key in self._registry.records
        ]
        return not state.is_round_open and all(
            report is not None and report.epoch == state.epoch and _is_well(report) for report in reports
        )

    async def _kill(self, key: ActorKey, actor: RemoteActor, heartbeat: Heartbeat | None) -> None:
        try:
            await actor.replace(heartbeat, _KILL_SECONDS)
        except UNANSWERED as error:
            # A node that is cut off cannot carry out the kill. Ray's own health check decides about that
            # node.
            logger.warning("%s cannot be killed now: %r", key, error)


def _is_well(report: ActorReport) -> bool:
    return report.state == "ready" and not report.lost_links


async def _ignoring_errors(work: Coroutine[Any, Any, None]) -> None:
    """Await a call, and ignore a failure, since the watcher sees the failure, too."""
    with contextlib.suppress(*UNANSWERED):
        await work
