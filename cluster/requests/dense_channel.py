"""The ingress side of the token stream: one multiplexed connection to one dense actor.

    Hello -> <- Welcome      then Submit and Cancel ->, <- StepOutput (one per engine step, and several beats a second)

A connection that ends, or that is silent for too long (`cluster.requests.failure_detector`), is lost: every sequence on it is told, and a
new connection is tried until the channel is closed. The dense actor forgets the sequences of a connection that ends, also
when it was only asleep; what it sent on the old one is never read.
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
"""Takes what happens to one sequence; None says that it must be submitted elsewhere and nothing more will come."""

_CONNECT_SECONDS = 5.0
_FIRST_BACKOFF_SECONDS = 0.05
_LAST_BACKOFF_SECONDS = 1.0


class DenseChannel:
    """One dense actor. Not thread-safe: everything happens in one event loop."""

    def __init__(
        self, address: DenseAddress, hello: Hello, silence_seconds: float, on_change: Callable[[], None]
    ) -> None:
        self.address = address
        self.is_ready = False
        """Whether a sequence that is submitted now is computed now."""
        self.max_model_len = 0
        """Prompt plus output, in tokens; 0 until the first Welcome."""
        self.load = Load(running=0, waiting=0, free_blocks=0, total_blocks=0)
        """As the actor said last."""
        self.prefix_rule: PrefixRule | None = None
        """Which sequences share prefixes there; None where none do."""
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
        """Sequences of this ingress that are under way."""
        return len(self._sinks)

    def candidate(self, hashes: Sequence[bytes] = ()) -> Candidate:
        """How busy it is, and how much it has of a sequence whose first blocks have these names."""
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
        """Begin a sequence. Its sink may hear of the loss at once."""
        if self._writer is None:
            asyncio.get_running_loop().call_soon(sink, None)
            return
        self._sinks[submit.sequence_id] = sink
        self._num_submitted += 1
        _write(self._writer, submit)

    def cancel(self, sequence_id: str) -> None:
        """Forget a sequence; its sink hears nothing more."""
        if self._sinks.pop(sequence_id, None) is not None and self._writer is not None:
            _write(self._writer, Cancel(sequence_id=sequence_id))

    def send_away(self) -> None:
        """Cancel all sequences and let each be submitted elsewhere."""
        sinks = dict(self._sinks)
        for sequence_id, sink in sinks.items():
            self.cancel(sequence_id)
            sink(None)

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
            # Not after what is still to be sent: a process that hangs would never take it.
            writer.transport.abort()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Until the connection ends. Raises OSError where the dense actor is silent for too long."""
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
    """Nothing where the connection has ended: whoever reads it is about to hear so. uvloop raises RuntimeError there."""
    if not writer.is_closing():
        writer.write(encode_frame(frame))
