"""The dense actor's listener for ingress replicas: one TCP connection per replica carries all of its
sequences.

A connection begins with Hello and Welcome. Then Submit and Cancel come in, and one StepOutput per engine step
goes out. An empty StepOutput serves as a heartbeat. When a connection ends for any reason, its sequences are
forgotten.

This file's thread sends the heartbeats whatever the engine computes. If they stop, the process hangs.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import logging
import threading
from collections import Counter
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any

from msgspec.structs import replace

from actors.dense.engine import Engine
from actors.dense.step_results import EVERYBODY
from actors.errors import FrameError
from actors.protocol.framing import encode_frame, read_frame
from actors.protocol.messages import Cancel, Hello, PrefixRule, SequenceDelta, StepOutput, Submit, Welcome

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 0.15
_HELLO_DEADLINE_SECONDS = 10.0
_MAX_UNSENT_BYTES = 64 * 1024 * 1024
"""Bytes that may wait for an ingress replica that does not read; beyond them its connection is closed."""

_CALL_SECONDS = 10.0
"""How long starting and stopping may take."""


class IngressServer:
    """The listener and its connections, served by a thread of their own."""

    def __init__(self, token: str, max_model_len: int, prefix_rule: PrefixRule | None = None) -> None:
        self._token = token
        self._max_model_len = max_model_len
        self._prefix_rule = prefix_rule
        self._engine: Engine | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ingress server", daemon=True)
        self._server: asyncio.Server | None = None
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._num_submitted: Counter[int] = Counter()
        """Number of sequences that each connection has submitted."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections = itertools.count()

    def start(self, engine: Engine, host: str) -> tuple[str, int]:
        """Listen on a free port of `host` for sequences of `engine`; return the address."""
        self._engine = engine
        self._thread.start()
        address: tuple[str, int] = self._call(self._listen(host)).result(_CALL_SECONDS)
        return address

    def stop(self) -> None:
        """Close all connections and the port."""
        if not self._thread.is_alive():
            return
        self._call(self._close()).result(_CALL_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_SECONDS)
        self._loop.close()

    def emit(self, connection: int, output: StepOutput) -> None:
        """Send to one connection or to EVERYBODY. Any thread may call this; it does not wait."""
        self._loop.call_soon_threadsafe(self._send, connection, output)

    def _call(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _listen(self, host: str) -> tuple[str, int]:
        self._server = await asyncio.start_server(self._accept, host, 0)
        self._keep(self._beat())
        address: tuple[str, int] = self._server.sockets[0].getsockname()[:2]
        return address

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _beat(self) -> None:
        assert self._engine is not None
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            engine = self._engine
            self._send(EVERYBODY, StepOutput(deltas=[], load=engine.load, is_ready=engine.is_ready))

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._keep(self._serve(reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._engine is not None
        connection = next(self._connections)
        try:
            hello = await asyncio.wait_for(read_frame(reader), _HELLO_DEADLINE_SECONDS)
            if not isinstance(hello, Hello) or not hmac.compare_digest(
                hello.token.encode(), self._token.encode()
            ):
                raise FrameError("it does not show the cluster's token")
            writer.write(encode_frame(self._welcome()))
            self._writers[connection] = writer
            while True:
                self._take(connection, await read_frame(reader))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.TimeoutError):
            pass
        except FrameError as error:
            logger.warning("a connection is closed: %s", error)
        finally:
            self._writers.pop(connection, None)
            self._num_submitted.pop(connection, None)
            self._engine.leave(connection)
            writer.close()

    def _welcome(self) -> Welcome:
        assert self._engine is not None
        return Welcome(
            is_ready=self._engine.is_ready,
            max_model_len=self._max_model_len,
            load=self._engine.load,
            prefix_rule=self._prefix_rule,
        )

    def _take(self, connection: int, frame: object) -> None:
        assert self._engine is not None
        match frame:
            case Submit():
                self._num_submitted[connection] += 1
                if refusal := self._refusal(frame):
                    delta = SequenceDelta(
                        sequence_id=frame.sequence_id, token_ids=[], finish_reason="error", error=refusal
                    )
                    self._send(connection, StepOutput(deltas=[delta], load=self._engine.load))
                else:
                    self._engine.submit(connection, frame)
            case Cancel():
                self._engine.cancel(connection, frame)
            case _:
                raise FrameError(f"{type(frame).__name__} is not for a dense actor")

    def _refusal(self, submit: Submit) -> str | None:
        """The reason why the sequence can never be computed, or None. The ingress checks the same before it
        submits."""
        num_tokens = len(submit.prompt_ids) + submit.params.max_tokens
        if not submit.prompt_ids:
            return "the prompt has no tokens"
        if num_tokens > self._max_model_len:
            return f"prompt and max_tokens make {num_tokens} tokens, the limit is {self._max_model_len}"
        return None

    def _send(self, connection: int, output: StepOutput) -> None:
        receivers = list(self._writers) if connection == EVERYBODY else [connection]
        for receiver in receivers:
            writer = self._writers.get(receiver)
            if writer is None or writer.is_closing():
                continue
            writer.write(encode_frame(replace(output, num_submitted=self._num_submitted[receiver])))
            if writer.transport.get_write_buffer_size() > _MAX_UNSENT_BYTES:
                logger.warning(
                    "more than %d bytes wait for an ingress; its connection is closed", _MAX_UNSENT_BYTES
                )
                writer.transport.abort()
