"""Tests the connection to a dense actor just before and after its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest
import uvloop

from actors.protocol.framing import encode_frame, read_frame
from actors.protocol.messages import Hello, Load, SamplingParams, SequenceDelta, Submit, Welcome
from cluster.messages import DenseAddress
from cluster.requests.dense_channel import DenseChannel

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]
IDLE = Load(running=0, waiting=0, free_blocks=1, total_blocks=1)
WELCOME = Welcome(is_ready=True, max_model_len=100, load=IDLE, prefix_rule=None)


def submit_of(sequence_id: str) -> Submit:
    return Submit(
        sequence_id=sequence_id, prompt_ids=[1], params=SamplingParams(max_tokens=1, seed=0), output_ids=[]
    )


class Actor:
    """A dense actor that takes submitted sequences and sends nothing after its Welcome."""

    def __init__(self) -> None:
        self._calls: list[asyncio.Task[None]] = []

    async def start(self) -> tuple[str, int]:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    async def stop(self) -> None:
        self._server.close()
        await asyncio.gather(*self._calls)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._calls.append(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await read_frame(reader)
            writer.write(encode_frame(WELCOME))
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize("make_loop", LOOPS, ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("num_iterations", range(6))
def test_a_sequence_that_meets_the_end_of_its_connection_is_told_so(
    make_loop: Callable[[], asyncio.AbstractEventLoop], num_iterations: int
) -> None:
    """The sequence is submitted a number of iterations of the event loop after the end."""

    async def scenario() -> None:
        actor = Actor()
        host, port = await actor.start()
        ready = asyncio.Event()
        channel = DenseChannel(DenseAddress(index=0, host=host, port=port), Hello(token="t"), 5.0, ready.set)
        told: asyncio.Queue[SequenceDelta | None] = asyncio.Queue()
        try:
            await asyncio.wait_for(ready.wait(), 5)
            channel.submit(submit_of("before"), told.put_nowait)
            assert channel._writer is not None
            channel._writer.transport.abort()
            for _ in range(num_iterations):
                await asyncio.sleep(0)
            channel.submit(submit_of("after"), told.put_nowait)
            channel.cancel("unknown")
            assert [await asyncio.wait_for(told.get(), 5) for _ in range(2)] == [None, None]
            ready.clear()
            await asyncio.wait_for(ready.wait(), 5)
            assert channel.is_ready, "it did not connect again"
        finally:
            await channel.close()
            await actor.stop()

    loop = make_loop()
    try:
        loop.run_until_complete(scenario())
    finally:
        loop.close()
