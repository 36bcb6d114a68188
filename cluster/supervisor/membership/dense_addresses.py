"""The addresses of the dense actors, in versions. Each ingress replica waits for the next version."""

from __future__ import annotations

import asyncio
import contextlib

from cluster.messages import DenseAddress, DenseAddresses
from cluster.supervisor.membership.registry import Registry
from cluster.timeouts import within

_CHECK_SECONDS = 5.0


class AddressBoard:
    """The dense actors' addresses for ingress replicas, in versions."""

    def __init__(self, registry: Registry, token: str) -> None:
        self._registry = registry
        self._addresses = DenseAddresses(version=0, token=token, dense=())
        self._changed = asyncio.Event()
        self._drain_seconds: float | None = None

    async def get(self, known_version: int, wait_seconds: float) -> DenseAddresses:
        """Return the addresses, at once if they are newer than `known_version`.

        Otherwise wait for a change, at most `wait_seconds`.
        """
        if self._addresses.version <= known_version:
            with contextlib.suppress(asyncio.TimeoutError):
                await within(wait_seconds, self._changed.wait())
        return self._addresses

    def drain(self, grace_seconds: float) -> None:
        """Tell all ingress replicas to refuse new requests and to end running ones after the grace period."""
        self._drain_seconds = grace_seconds
        self.update()

    async def follow(self) -> None:
        """Make a new version whenever a dense actor has come or gone. Ends only when it is cancelled."""
        while True:
            self.update()
            await self._registry.change(_CHECK_SECONDS)

    def update(self) -> None:
        """Make a new version if the addresses have changed.

        Until every actor was checked once, the list would be too short, so only a drain makes a version then.
        """
        state = self._registry.state
        if any(place.phase == "unseen" for place in state.places.values()) and self._drain_seconds is None:
            return
        dense = []
        for key in self._registry.keys("dense"):
            record, place = self._registry.records[key], state.places[key]
            if place.is_up and record.listening is not None and record.listening[0] == place.incarnation:
                _, host, port, _, _ = record.listening
                dense.append(
                    DenseAddress(index=key.index, host=host, port=port, is_leaving=record.is_leaving)
                )
        before = self._addresses
        if (tuple(dense), self._drain_seconds) != (before.dense, before.drain_seconds):
            self._addresses = DenseAddresses(
                version=before.version + 1,
                token=before.token,
                dense=tuple(dense),
                drain_seconds=self._drain_seconds,
            )
            self._changed.set()
            self._changed = asyncio.Event()
