"""The dense actor's listener for ingress replicas, over real sockets."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.dense.ingress_server import IngressServer
from actors.protocol.framing import Frame, encode_frame, read_frame
from actors.protocol.messages import Cancel, Hello, StepOutput, Submit, Welcome
from tests.dense.local_engine import LocalEngine, greedy
from tests.dense.test_exact import prompt

TOKEN = "secret"
MAX_MODEL_LEN = 300


class LiveServer:
    """An ingress server with its engine running behind it."""

    def __init__(self, directory: Path) -> None:
        self.ingress_server = IngressServer(TOKEN, MAX_MODEL_LEN)
        self.local = LocalEngine(directory, emit=self.ingress_server.emit)
        self.address = self.ingress_server.start(self.local.engine, "127.0.0.1")
        self.local.engine.start()
        self.local.engine.use_exchange(self.local.exchange)

    def close(self) -> None:
        self.local.engine.stop()
        self.ingress_server.stop()


@pytest.fixture
def server(small_checkpoints: dict[str, Path]) -> Iterator[LiveServer]:
    server = LiveServer(small_checkpoints["plain"])
    yield server
    server.close()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @staticmethod
    async def connect(server: LiveServer, token: str = TOKEN) -> Client:
        client = Client(*await asyncio.open_connection(*server.address))
        client.send(Hello(token=token))
        return client

    def send(self, frame: Frame) -> None:
        self.writer.write(encode_frame(frame))

    async def receive(self) -> Frame:
        return await asyncio.wait_for(read_frame(self.reader), 20)

    async def tokens(self, sequence_id: str) -> list[int]:
        """All tokens of a sequence until it ends."""
        tokens: list[int] = []
        while True:
            output = await self.receive()
            assert isinstance(output, StepOutput)
            for delta in output.deltas:
                assert delta.sequence_id == sequence_id
                tokens += delta.token_ids
                if delta.finish_reason is not None:
                    return tokens


async def idle(server: LiveServer) -> None:
    """Wait until the engine has nothing left."""
    async with asyncio.timeout(20):
        while server.local.engine.load.running or server.local.engine.load.waiting:
            await asyncio.sleep(0.01)


def submit(sequence_id: str, max_tokens: int) -> Submit:
    return Submit(sequence_id=sequence_id, prompt_ids=prompt(5), params=greedy(max_tokens))


def test_a_sequence_streams_over_the_connection(server: LiveServer) -> None:
    async def scenario() -> list[int]:
        client = await Client.connect(server)
        welcome = await client.receive()
        assert isinstance(welcome, Welcome)
        assert welcome.max_model_len == MAX_MODEL_LEN
        client.send(submit("a", 7))
        tokens = await client.tokens("a")
        client.writer.close()
        return tokens

    assert len(asyncio.run(scenario())) == 7


def test_a_connection_with_a_wrong_token_is_closed(server: LiveServer) -> None:
    async def scenario() -> None:
        client = await Client.connect(server, token="wrong")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.receive()
        client.writer.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(struct.pack("<I", 2**31) + b"x", id="too-long"),
        pytest.param(struct.pack("<I", 3) + b"abc", id="not-msgpack"),
        pytest.param(struct.pack("<I", 1) + b"\x90", id="not-a-message"),
    ],
)
def test_garbage_ends_that_connection_and_no_other(server: LiveServer, garbage: bytes) -> None:
    async def scenario() -> None:
        client, vandal = await Client.connect(server), await Client.connect(server)
        await client.receive()
        await vandal.receive()
        vandal.writer.write(garbage)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            while True:
                await vandal.receive()
        client.send(submit("a", 3))
        assert len(await client.tokens("a")) == 3
        client.writer.close()
        vandal.writer.close()

    asyncio.run(scenario())


def test_a_connection_that_ends_frees_what_it_held(server: LiveServer) -> None:
    async def scenario() -> None:
        client = await Client.connect(server)
        await client.receive()
        client.send(submit("a", 290))
        await client.receive()
        client.writer.transport.abort()
        await idle(server)

    asyncio.run(scenario())
    assert server.local.pool.num_free == server.local.pool.num_blocks


def test_a_cancelled_sequence_says_no_more(server: LiveServer) -> None:
    async def scenario() -> None:
        client = await Client.connect(server)
        await client.receive()
        client.send(submit("a", 290))
        await client.receive()
        client.send(Cancel(sequence_id="a"))
        await idle(server)
        client.send(submit("b", 2))
        seen: list[str] = []
        while "b" not in seen:
            output = await client.receive()
            assert isinstance(output, StepOutput)
            seen += [delta.sequence_id for delta in output.deltas]
        assert seen.index("b") == len(seen) - 1
        client.writer.close()

    asyncio.run(scenario())


def test_what_cannot_fit_is_answered_with_an_error(server: LiveServer) -> None:
    async def scenario() -> str | None:
        client = await Client.connect(server)
        await client.receive()
        client.send(submit("a", MAX_MODEL_LEN))
        while True:
            output = await client.receive()
            assert isinstance(output, StepOutput)
            if output.deltas:
                client.writer.close()
                assert output.deltas[0].finish_reason == "error"
                return output.deltas[0].error

    assert asyncio.run(scenario()) == "prompt and max_tokens make 305 tokens, the limit is 300"


def test_a_quiet_connection_hears_a_heartbeat(server: LiveServer) -> None:
    async def scenario() -> Frame:
        client = await Client.connect(server)
        await client.receive()
        beat = await client.receive()
        client.writer.close()
        return beat

    beat = asyncio.run(scenario())
    assert isinstance(beat, StepOutput) and beat.is_ready and not beat.deltas
