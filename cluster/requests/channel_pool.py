"""The channels of an ingress replica to all dense actors, and the choice of one for each sequence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

from actors.protocol.messages import Hello
from actors.protocol.prefix_hash import prompt_hashes
from cluster.messages import DenseAddresses
from cluster.requests.dense_channel import DenseChannel
from cluster.requests.load_balancer import choose
from cluster.requests.prefix_affinity import MAX_BLOCKS

_UNREADY_SECONDS = 1.0
"""How long sequences stay at a dense actor that lives but cannot compute, while another dense actor could."""


class Channels:
    """One channel to each dense actor that the supervisor names.

    Not thread-safe: it lives in one event loop.
    """

    def __init__(self, silence_seconds: float) -> None:
        self._silence_seconds = silence_seconds
        self._channels: dict[tuple[int, str, int], DenseChannel] = {}
        self._leaving: set[int] = set()
        self._last_index = -1
        self._unready_alarms: dict[DenseChannel, asyncio.TimerHandle] = {}
        self._listeners: set[Callable[[], None]] = set()
        self.was_ready = False
        """Whether any dense actor has ever been ready."""

    def __iter__(self) -> Iterator[DenseChannel]:
        return iter(self._channels.values())

    @property
    def is_ready(self) -> bool:
        """Whether some dense actor would compute a sequence that is submitted now."""
        return any(channel.is_ready for channel in self)

    def choose(self, token_ids: Sequence[int] = (), cache_salt: str = "") -> DenseChannel | None:
        """Return the channel to which a sequence of these tokens should be submitted; None if none is ready.

        This is the least busy dense actor that is ready, or a busier one that has computed a good part of the
        tokens before. An actor that is about to leave is chosen only if no other actor is ready.
        """
        ready = {channel.address.index: channel for channel in self if channel.is_ready}
        staying = {index: channel for index, channel in ready.items() if index not in self._leaving}
        choice = staying or ready
        if not choice:
            return None
        rule = next((channel.prefix_rule for channel in choice.values() if channel.prefix_rule), None)
        hashes = prompt_hashes(rule, token_ids, cache_salt, MAX_BLOCKS) if rule is not None else []
        candidates = [channel.candidate(hashes) for channel in choice.values()]
        self._last_index = choose(candidates, self._last_index)
        chosen = choice[self._last_index]
        chosen.prefixes.note(hashes)
        return chosen

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Have `listener` called whenever a dense actor becomes ready or stops being ready."""
        self._listeners.add(listener)

    def remove_listener(self, listener: Callable[[], None]) -> None:
        """Stop the calls of `listener`."""
        self._listeners.discard(listener)

    async def update(self, addresses: DenseAddresses) -> None:
        """Connect to new dense actors, and close the channels to those that are gone.

        Sequences move away from dense actors that are about to leave.
        """
        named = {(address.index, address.host, address.port): address for address in addresses.dense}
        gone = [self._channels.pop(key) for key in [*self._channels] if key not in named]
        hello = Hello(token=addresses.token)
        for key, address in named.items():
            if key not in self._channels:
                self._channels[key] = DenseChannel(address, hello, self._silence_seconds, self._note_change)
        self._leaving = {address.index for address in addresses.dense if address.is_leaving}
        await asyncio.gather(*(channel.close() for channel in gone))
        self._note_change()

    async def close(self) -> None:
        """Close the channels to all dense actors."""
        channels, self._channels = self._channels, {}
        for alarm in self._unready_alarms.values():
            alarm.cancel()
        await asyncio.gather(*(channel.close() for channel in channels.values()))

    def _note_change(self) -> None:
        self.was_ready = self.was_ready or self.is_ready
        self._move_sequences()
        for listener in tuple(self._listeners):
            listener()

    def _move_sequences(self) -> None:
        """Move sequences away from leaving actors at once, from those that cannot compute after a while."""
        for channel in self:
            has_other = any(
                other.is_ready and other.address.index not in self._leaving
                for other in self
                if other is not channel
            )
            if channel.address.index in self._leaving and has_other:
                channel.send_away()
            is_stuck = not channel.is_ready and channel.num_sequences > 0 and has_other
            if is_stuck and channel not in self._unready_alarms:
                loop = asyncio.get_running_loop()
                self._unready_alarms[channel] = loop.call_later(_UNREADY_SECONDS, self._leave_stuck, channel)
            elif not is_stuck and channel in self._unready_alarms:
                self._unready_alarms.pop(channel).cancel()

    def _leave_stuck(self, channel: DenseChannel) -> None:
        del self._unready_alarms[channel]
        if not channel.is_ready and self.is_ready:
            channel.send_away()
