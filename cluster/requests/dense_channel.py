"""The ingress side of the token stream: one multiplexed connection to one dense actor.

    ingress replica              dense actor
    Hello               ->
                        <-       Welcome
    Submit, Cancel      ->
                        <-       StepOutput, one per engine step and several heartbeats a second

A connection is lost if it ends, or if nothing arrives for too long (`cluster.requests.failure_detector`). All
sequences on it are then told, and new connections are tried until the channel is closed. The dense actor
forgets the sequences of a connection that has ended, even if it was only stopped for a while; what it sent on
the old connection is never read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import TypeAlias

from actors.errors import FrameError
from actors.protocol.framing import encode_frame, read_frame
from actors.protocol.messages import (
    Cancel,
    Hello,
    Load,
    PrefixRule,
    SequenceDelta,
    StepOutput,
    Submit,
    Welcome,
)
from cluster.messages import DenseAddress
from cluster.requests.failure_detector import TICK_SECONDS, FailureDetector
from cluster.requests.load_balancer import Candidate
from cluster.requests.prefix_affinity import PrefixIndex
from cluster.timeouts import within

logger = logging.getLogger(__name__)

Sink: TypeAlias = Callable[[SequenceDelta | None], None]
"""Takes what happens to one sequence. None means that nothing more will come and the sequence must be
submitted elsewhere."""

_CONNECT_SECONDS = 5.0
_FIRST_BACKOFF_SECONDS = 0.05
_LAST_BACKOFF_SECONDS = 1.0


class DenseChannel:
    """The connection to one dense actor. Not thread-safe: it lives in one event loop."""

    def __init__(
        self, address: DenseAddress, hello: Hello, silence_seconds: float, on_change: Callable[[], None]
    ) -> None:
        self.address = address
        self.is_ready = False
        """Whether the dense actor would compute a sequence that is submitted now."""
        self.max_model_len = 0
        """Longest prompt plus output in tokens; 0 until the first Welcome."""
        self.load = Load(running=0, waiting=0, free_blocks=0, total_blocks=0)
        """The load that the actor sent last."""
        self.prefix_rule: PrefixRule | None = None
        """The rule by which sequences share prefixes in the actor's cache; None if they do not."""
        self.prefixes = PrefixIndex()
        self._hello = hello
        self._on_change = on_change
        self._detector = FailureDetector(silence_seconds)
        self._writer: asyncio.StreamWriter | None = None
        self._sinks: dict[str, Sink] = {}
        self._num_submitted = 0
        self._num_reported = 0
        self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def num_sequences(self) -> int:
        """Number of sequences under way on this channel."""
        return len(self._sinks)

    def candidate(self, hashes: Sequence[bytes] = ()) -> Candidate:
        """Return the actor's load, and how much of a sequence with these block hashes is in its cache."""
        block_size = self.prefix_rule.block_size if self.prefix_rule is not None else 0
        return Candidate(
            index=self.address.index,
            running=self.load.running,
            waiting=self.load.waiting,
            unreported=self._num_submitted - self._num_reported,
            free_blocks=self.load.free_blocks,
            total_blocks=self.load.total_blocks,
            held_tokens=self.prefixes.num_held(hashes) * block_size,
        )

    def submit(self, submit: Submit, sink: Sink) -> None:
        """Begin a sequence. Without a connection its sink soon gets None."""
        if self._writer is None:
            asyncio.get_running_loop().call_soon(sink, None)
            return
        self._sinks[submit.sequence_id] = sink
        self._num_submitted += 1
        _write(self._writer, submit)

    def cancel(self, sequence_id: str) -> None:
        """Cancel a sequence. Its sink is not called again."""
        if self._sinks.pop(sequence_id, None) is not None and self._writer is not None:
            _write(self._writer, Cancel(sequence_id=sequence_id))

    def send_away(self) -> None:
        """Cancel all sequences. Each sink gets None, so that the sequence is submitted elsewhere."""
        sinks = dict(self._sinks)
        for sequence_id, sink in sinks.items():
            self.cancel(sequence_id)
            sink(None)

    async def close(self) -> None:
        """End the connection. The sinks of all sequences get None."""
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
                        "dense actor %d is lost: %s", self.address.index, error or type(error).__name__
                    )
                    backoff = _FIRST_BACKOFF_SECONDS
            finally:
                self._lose()
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, _LAST_BACKOFF_SECONDS)

    async def _serve_connection(self) -> None:
        connecting = asyncio.open_connection(self.address.host, self.address.port)
        reader, writer = await within(_CONNECT_SECONDS, connecting)
        try:
            _write(writer, self._hello)
            welcome = await within(_CONNECT_SECONDS, read_frame(reader))
            if not isinstance(welcome, Welcome):
                raise FrameError(f"the dense actor began with {type(welcome).__name__}")
            self.max_model_len, self.load = welcome.max_model_len, welcome.load
            self.prefix_rule = welcome.prefix_rule
            self._num_submitted = self._num_reported = 0
            self._detector.begin()
            self._writer = writer
            self._note_ready(welcome.is_ready)
            await self._listen(reader)
        finally:
            # `abort` does not wait until all data is sent, since a process that hangs would never take the
            # data.
            writer.transport.abort()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Read until the connection ends. Raises OSError if the dense actor sends nothing for too long."""
        listening = asyncio.ensure_future(self._read(reader))
        loop = asyncio.get_running_loop()
        last = loop.time()
        try:
            while not listening.done():
                await asyncio.wait({listening}, timeout=TICK_SECONDS)
                now = loop.time()
                if self._detector.passed(now - last):
                    raise OSError(f"silent for more than {self._detector.allowed_seconds:.2f} s")
                last = now
            listening.result()
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while True:
            frame = await read_frame(reader)
            if not isinstance(frame, StepOutput):
                raise FrameError(f"the dense actor sent {type(frame).__name__}")
            self._detector.heard()
            self._take(frame)

    def _take(self, output: StepOutput) -> None:
        self.load, self._num_reported = output.load, output.num_submitted
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
        self.prefixes.forget()
        self._note_ready(False)
        sinks, self._sinks = self._sinks, {}
        for sink in sinks.values():
            sink(None)


def _write(writer: asyncio.StreamWriter, frame: Hello | Submit | Cancel) -> None:
    """Send a frame; do nothing if the connection has ended, since the task that reads it will notice the end.

    The check is needed because uvloop raises RuntimeError for a write to such a connection.
    """
    if not writer.is_closing():
        writer.write(encode_frame(frame))
