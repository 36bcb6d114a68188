"""The ingress side of the token stream: one multiplexed connection to each dense actor.

    Hello -> <- Welcome      then Submit and Cancel ->, <- StepOutput (one per engine step, or a heartbeat each second)

A connection that ends, or that is silent for longer than the heartbeat allows, is lost: every sequence on it is told,
and a new connection is tried until the channel is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TypeAlias

from actors.errors import FrameError
from actors.messages import Cancel, Hello, Load, SequenceDelta, StepOutput, Submit, Welcome
from actors.wire import encode_frame, read_frame
from cluster.view import DenseDoor, Doors
from cluster.waiting import within

logger = logging.getLogger(__name__)

Sink: TypeAlias = Callable[[SequenceDelta | None], None]
"""Takes what happens to one sequence; None says that the connection is lost and nothing more will come."""

HEARTBEAT_DEADLINE_SECONDS = 5.0
_CONNECT_SECONDS = 5.0
_FIRST_BACKOFF_SECONDS = 0.05
_LAST_BACKOFF_SECONDS = 1.0


class DenseChannel:
    """One dense actor. Not thread-safe: everything happens in one event loop."""

    def __init__(self, door: DenseDoor, token: str, ingress_id: str, on_change: Callable[[], None]) -> None:
        self.door = door
        self.is_ready = False
        """Whether a sequence that is submitted now is computed now."""
        self.max_model_len = 0
        """Prompt plus output, in tokens; 0 until the first Welcome."""
        self.load = Load(running=0, waiting=0, free_blocks=0, total_blocks=0)
        """As the actor said last."""
        self._hello = encode_frame(Hello(token=token, ingress_id=ingress_id))
        self._on_change = on_change
        self._writer: asyncio.StreamWriter | None = None
        self._sinks: dict[str, Sink] = {}
        self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def num_sequences(self) -> int:
        """Sequences of this ingress that are under way."""
        return len(self._sinks)

    def submit(self, order: Submit, sink: Sink) -> None:
        """Begin a sequence. Its sink may hear of the loss at once."""
        if self._writer is None:
            asyncio.get_running_loop().call_soon(sink, None)
            return
        self._sinks[order.sequence_id] = sink
        self._writer.write(encode_frame(order))

    def cancel(self, sequence_id: str) -> None:
        """Forget a sequence; its sink hears nothing more."""
        if self._sinks.pop(sequence_id, None) is not None and self._writer is not None:
            self._writer.write(encode_frame(Cancel(sequence_id=sequence_id)))

    async def close(self) -> None:
        """End the connection; all sequences hear that they are lost."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        backoff = _FIRST_BACKOFF_SECONDS
        while True:
            try:
                await self._serve_connection()
                backoff = _FIRST_BACKOFF_SECONDS
            except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError, FrameError) as error:
                if self._writer is not None:
                    logger.warning(
                        "dense actor %d is lost: %s", self.door.index, error or type(error).__name__
                    )
                    backoff = _FIRST_BACKOFF_SECONDS
            finally:
                self._lose()
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, _LAST_BACKOFF_SECONDS)

    async def _serve_connection(self) -> None:
        connecting = asyncio.open_connection(self.door.host, self.door.port)
        reader, writer = await within(_CONNECT_SECONDS, connecting)
        try:
            writer.write(self._hello)
            welcome = await within(HEARTBEAT_DEADLINE_SECONDS, read_frame(reader))
            if not isinstance(welcome, Welcome):
                raise FrameError(f"the dense actor began with {type(welcome).__name__}")
            self.max_model_len, self.load = welcome.max_model_len, welcome.load
            self._writer = writer
            self._note_ready(welcome.is_ready)
            while True:
                frame = await within(HEARTBEAT_DEADLINE_SECONDS, read_frame(reader))
                if not isinstance(frame, StepOutput):
                    raise FrameError(f"the dense actor sent {type(frame).__name__}")
                self._take(frame)
        finally:
            writer.close()

    def _take(self, output: StepOutput) -> None:
        self.load = output.load
        for delta in output.deltas:
            sink = self._sinks.get(delta.sequence_id)
            if sink is None:
                continue
            if delta.finish_reason is not None:
                del self._sinks[delta.sequence_id]
            sink(delta)
        self._note_ready(output.is_ready)

    def _note_ready(self, is_ready: bool) -> None:
        if is_ready != self.is_ready:
            self.is_ready = is_ready
            self._on_change()

    def _lose(self) -> None:
        self._writer = None
        sinks, self._sinks = self._sinks, {}
        for sink in sinks.values():
            sink(None)
        self._note_ready(False)


class Channels:
    """The dense actors that can be reached at present."""

    def __init__(self, ingress_id: str) -> None:
        self._ingress_id = ingress_id
        self._channels: dict[DenseDoor, DenseChannel] = {}
        self._changed = asyncio.Event()
        self.was_ready = False
        """Whether any dense actor was ever ready."""

    def __iter__(self) -> Iterator[DenseChannel]:
        return iter(self._channels.values())

    @property
    def is_ready(self) -> bool:
        """Whether a sequence that is submitted now is computed now."""
        return any(channel.is_ready for channel in self._channels.values())

    async def update(self, doors: Doors) -> None:
        """Connect to new dense actors and leave those that are gone."""
        gone = [self._channels.pop(door) for door in [*self._channels] if door not in doors.dense]
        for door in doors.dense:
            if door not in self._channels:
                self._channels[door] = DenseChannel(door, doors.token, self._ingress_id, self._note_change)
        await asyncio.gather(*(channel.close() for channel in gone))

    async def acquire(self, wait_seconds: float) -> DenseChannel:
        """The ready dense actor with the fewest sequences, once there is one. Raises TimeoutError."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + wait_seconds
        while True:
            ready = [channel for channel in self._channels.values() if channel.is_ready]
            if ready:
                return min(ready, key=lambda channel: channel.load.running + channel.load.waiting)
            await within(max(0.0, give_up - loop.time()), self._changed.wait())

    async def close(self) -> None:
        """Leave all dense actors."""
        channels, self._channels = self._channels, {}
        await asyncio.gather(*(channel.close() for channel in channels.values()))

    def _note_change(self) -> None:
        self.was_ready = self.was_ready or self.is_ready
        self._changed.set()
        self._changed = asyncio.Event()
