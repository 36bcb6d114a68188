"""Tests requests and channels with a fake dense actor that counts: token i of each sequence is i."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, ParamSpec

import pytest

from actors.errors import FrameError
from actors.protocol.framing import encode_frame, read_frame
from actors.protocol.messages import (
    Cancel,
    Hello,
    Load,
    PrefixRule,
    SamplingParams,
    SequenceDelta,
    StepOutput,
    Submit,
    TokenLogprobs,
    Welcome,
)
from actors.protocol.prefix_hash import prompt_hashes
from cluster.errors import ClientError, DeadlineExceeded, RequestFailed, ServerUnavailable
from cluster.messages import DenseAddress, DenseAddresses
from cluster.openai.fields.output import OutputOptions
from cluster.openai.request import SequenceRequest
from cluster.requests.channel_pool import Channels
from cluster.requests.request import Deadlines, Request

P = ParamSpec("P")
LOAD = Load(running=0, waiting=0, free_blocks=1, total_blocks=1)
RULE = PrefixRule(block_size=16, long_rope_threshold=None)
SILENCE_SECONDS = 0.4
QUICK = Deadlines(total_seconds=10, resume_seconds=5)


class CountingServer:
    """Speaks the dense actor's frames.

    Each submitted sequence gets one token per tick, up to its max_tokens.
    """

    def __init__(self) -> None:
        self.submitted: list[Submit] = []
        self.cancelled: list[str] = []
        self.lose_after: int | None = None
        """Number of tokens after which the connection is cut, once."""
        self.tick_seconds = 0.001
        self.heartbeat_seconds = 0.05
        self.is_hung = False
        """Whether to take frames and send nothing more, as a stopped process does."""
        self.is_ready = True
        self.refusal: str | None = None
        self.token = "secret"
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self, index: int = 0) -> DenseAddress:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return DenseAddress(index=index, host="127.0.0.1", port=self._server.sockets[0].getsockname()[1])

    def say(self, writer: asyncio.StreamWriter, *deltas: SequenceDelta) -> None:
        if not self.is_hung:
            output = StepOutput(
                deltas=[*deltas], load=LOAD, is_ready=self.is_ready, num_submitted=len(self.submitted)
            )
            writer.write(encode_frame(output))

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.close()

    def cut(self) -> None:
        """End every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        tasks: dict[str, asyncio.Task[None]] = {}
        with suppress(asyncio.IncompleteReadError, ConnectionError, FrameError):
            hello = await read_frame(reader)
            assert isinstance(hello, Hello)
            if hello.token == self.token:
                writer.write(
                    encode_frame(Welcome(is_ready=True, max_model_len=100, load=LOAD, prefix_rule=RULE))
                )
                tasks["heartbeat"] = asyncio.create_task(self._heartbeat(writer))
                while True:
                    frame = await read_frame(reader)
                    if isinstance(frame, Submit):
                        self.submitted.append(frame)
                        tasks[frame.sequence_id] = asyncio.create_task(self._count(frame, writer))
                    elif isinstance(frame, Cancel):
                        self.cancelled.append(frame.sequence_id)
                        tasks[frame.sequence_id].cancel()
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        self._writers.discard(writer)
        writer.close()

    async def _heartbeat(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await asyncio.sleep(self.heartbeat_seconds)
            self.say(writer)

    async def _count(self, submit: Submit, writer: asyncio.StreamWriter) -> None:
        for token_id in range(len(submit.output_ids), submit.params.max_tokens):
            await asyncio.sleep(self.tick_seconds)
            while not self.is_ready:
                await asyncio.sleep(0.01)
            if self.lose_after is not None and token_id >= self.lose_after:
                self.lose_after = None
                writer.transport.abort()
                return
            is_last = token_id == submit.params.max_tokens - 1
            delta = SequenceDelta(
                sequence_id=submit.sequence_id,
                token_ids=[token_id],
                prompt_logprobs=[TokenLogprobs(token_id=1, logprob=-1.0, rank=1)]
                if token_id == len(submit.output_ids)
                else None,
                finish_reason="error" if self.refusal else "length" if is_last else None,
                error=self.refusal,
            )
            self.say(writer, delta)


def sequence_request(
    index: int = 0, max_tokens: int = 20, prompt_ids: tuple[int, ...] = (1, 2), cache_salt: str = ""
) -> SequenceRequest:
    return SequenceRequest(
        index=index,
        prompt_index=index,
        prompt_ids=prompt_ids,
        cache_salt=cache_salt,
        echo_text="",
        params=SamplingParams(max_tokens=max_tokens, seed=1),
        output=OutputOptions(),
        eos_token_ids=(),
    )


@asynccontextmanager
async def connected(token: str = "secret") -> AsyncIterator[tuple[CountingServer, Channels]]:
    server, channels = CountingServer(), Channels(SILENCE_SECONDS)
    address = await server.open()
    await channels.update(DenseAddresses(version=1, token=token, dense=(address,)))
    try:
        yield server, channels
    finally:
        await channels.close()
        await server.close()


@asynccontextmanager
async def two_connected() -> AsyncIterator[tuple[list[CountingServer], Channels, DenseAddresses]]:
    servers, channels = [CountingServer(), CountingServer()], Channels(SILENCE_SECONDS)
    named = DenseAddresses(
        version=1,
        token="secret",
        dense=tuple([await server.open(index) for index, server in enumerate(servers)]),
    )
    await channels.update(named)
    try:
        async with asyncio.timeout(5):
            while not all(channel.is_ready for channel in channels):
                await asyncio.sleep(0.01)
        yield servers, channels, named
    finally:
        await channels.close()
        for server in servers:
            await server.close()


async def ready(channels: Channels) -> None:
    async with asyncio.timeout(5):
        while not channels.is_ready:
            await asyncio.sleep(0.01)


async def tokens_of(request: Request) -> dict[int, list[int]]:
    tokens: dict[int, list[int]] = {}
    async for index, delta in request.deltas():
        tokens.setdefault(index, []).extend(delta.token_ids)
    return tokens


async def fails_with(error: type[ClientError], request: Request) -> None:
    with pytest.raises(error):
        await tokens_of(request)


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


@in_loop
async def test_all_sequences_of_a_request_arrive() -> None:
    async with connected() as (_, channels):
        await ready(channels)
        request = Request("r", [sequence_request(0), sequence_request(1, 7)], channels, QUICK)
        assert await tokens_of(request) == {0: list(range(20)), 1: list(range(7))}


@in_loop
async def test_after_a_lost_connection_a_request_goes_on_where_it_was() -> None:
    async with connected() as (server, channels):
        await ready(channels)
        server.lose_after = 8
        request = Request("r", [sequence_request(0), sequence_request(1, 7)], channels, QUICK)
        assert await tokens_of(request) == {0: list(range(20)), 1: list(range(7))}
        assert server.lose_after is None and len(server.submitted) == 3
        assert server.submitted[-1].output_ids == list(range(8))
        assert server.submitted[-1].params == server.submitted[0].params


@in_loop
async def test_prompt_logprobs_are_given_once_although_a_resumed_run_sends_them_again() -> None:
    async with connected() as (server, channels):
        await ready(channels)
        server.lose_after = 8
        request = Request("r", [sequence_request()], channels, QUICK)
        given = [
            delta.prompt_logprobs async for _, delta in request.deltas() if delta.prompt_logprobs is not None
        ]
        assert len(given) == 1 and len(server.submitted) == 2


@in_loop
async def test_a_request_that_is_closed_early_is_cancelled_at_the_dense_actor() -> None:
    async with connected() as (server, channels):
        await ready(channels)
        deltas = Request("r", [sequence_request(max_tokens=10_000)], channels, QUICK).deltas()
        await anext(deltas)
        await deltas.aclose()
        await asyncio.sleep(0.1)
        assert server.cancelled == [server.submitted[0].sequence_id]


@in_loop
async def test_a_finished_sequence_is_not_waited_for() -> None:
    async with connected() as (server, channels):
        await ready(channels)
        request = Request("r", [sequence_request(max_tokens=10_000)], channels, QUICK)
        async for index, _ in request.deltas():
            request.finish(index)
        await asyncio.sleep(0.1)
        assert server.cancelled == [server.submitted[0].sequence_id]


@in_loop
async def test_a_request_ends_at_its_deadline() -> None:
    async with connected() as (server, channels):
        await ready(channels)
        request = Request(
            "r",
            [sequence_request(max_tokens=10**6)],
            channels,
            Deadlines(total_seconds=0.2, resume_seconds=5),
        )
        await fails_with(DeadlineExceeded, request)
        await asyncio.sleep(0.1)
        assert len(server.cancelled) == 1


@in_loop
async def test_a_sequence_that_the_dense_actor_cannot_compute_fails_the_request() -> None:
    async with connected() as (server, channels):
        await ready(channels)
        server.refusal = "no room"
        with pytest.raises(RequestFailed, match="no room"):
            await tokens_of(Request("r", [sequence_request()], channels, QUICK))


@in_loop
async def test_before_the_first_dense_actor_is_ready_requests_are_refused_at_once() -> None:
    channels = Channels(SILENCE_SECONDS)
    began = asyncio.get_running_loop().time()
    await fails_with(ServerUnavailable, Request("r", [sequence_request()], channels, QUICK))
    assert asyncio.get_running_loop().time() - began < 1


@pytest.mark.parametrize(
    ("deadlines", "error"),
    [
        pytest.param(Deadlines(total_seconds=10, resume_seconds=0.3), ServerUnavailable, id="resume"),
        pytest.param(Deadlines(total_seconds=0.4, resume_seconds=9), DeadlineExceeded, id="total"),
    ],
)
@in_loop
async def test_the_first_deadline_ends_the_wait_for_a_dense_actor_that_stays_away(
    deadlines: Deadlines, error: type[ClientError]
) -> None:
    async with connected() as (server, channels):
        await ready(channels)
        request = Request("r", [sequence_request(max_tokens=10**6)], channels, deadlines)
        deltas = request.deltas()
        await anext(deltas)
        await server.close()
        with pytest.raises(error):
            async for _ in deltas:
                pass


@in_loop
async def test_a_wrong_token_never_becomes_ready() -> None:
    async with connected(token="wrong") as (_, channels):
        await asyncio.sleep(0.3)
        assert not channels.is_ready and channels.choose() is None


@in_loop
async def test_sequences_are_spread_over_the_dense_actors() -> None:
    async with two_connected() as (servers, channels, _):
        requests = [
            Request(str(number), [sequence_request(0), sequence_request(1)], channels, QUICK)
            for number in range(4)
        ]
        answers = await asyncio.gather(*(tokens_of(request) for request in requests))
        assert answers == [{0: list(range(20)), 1: list(range(20))}] * 4
        assert [len(server.submitted) for server in servers] == [4, 4]


@in_loop
async def test_a_hung_dense_actor_is_left_and_what_it_says_later_is_not_taken() -> None:
    async with two_connected() as (servers, channels, _):
        request = Request("r", [sequence_request(max_tokens=400)], channels, QUICK)
        tokens: list[int] = []
        hung, other = None, None
        async for _, delta in request.deltas():
            tokens += delta.token_ids
            if len(tokens) == 8:
                hung, other = servers if servers[0].submitted else servers[::-1]
                hung.is_hung = True
                began = asyncio.get_running_loop().time()
            elif hung is not None and other is not None and other.submitted and hung.is_hung:
                assert SILENCE_SECONDS < asyncio.get_running_loop().time() - began < SILENCE_SECONDS + 0.6
                hung.is_hung = False
        assert tokens == list(range(400)) and sum(len(server.submitted) for server in servers) == 2


@in_loop
async def test_a_hung_dense_actor_is_used_again_when_it_comes_back() -> None:
    async with connected() as (server, channels):
        await ready(channels)
        server.is_hung = True
        async with asyncio.timeout(3):
            while channels.is_ready:
                await asyncio.sleep(0.01)
        server.is_hung = False
        await ready(channels)
        assert await tokens_of(Request("r", [sequence_request()], channels, QUICK)) == {0: list(range(20))}


@in_loop
async def test_an_ingress_that_was_busy_itself_blames_nobody() -> None:
    async with connected() as (_, channels):
        await ready(channels)
        for _ in range(3):
            time.sleep(2 * SILENCE_SECONDS)
            await asyncio.sleep(0.02)
            assert channels.is_ready


@in_loop
async def test_sequences_leave_a_dense_actor_that_is_about_to_go() -> None:
    async with two_connected() as (servers, channels, named):
        request = Request("r", [sequence_request(max_tokens=2000)], channels, QUICK)
        deltas = request.deltas()
        tokens = [token for _ in range(8) for token in (await anext(deltas))[1].token_ids]
        index = 0 if servers[0].submitted else 1
        leaving = tuple(
            DenseAddress(
                index=server.index, host=server.host, port=server.port, is_leaving=server.index == index
            )
            for server in named.dense
        )
        await channels.update(DenseAddresses(version=2, token="secret", dense=leaving))
        while len(servers[1 - index].submitted) == 0:
            tokens += (await anext(deltas))[1].token_ids
        assert servers[index].cancelled == [servers[index].submitted[0].sequence_id]
        tokens += (await anext(deltas))[1].token_ids
        assert tokens == list(range(len(tokens)))
        await deltas.aclose()


@in_loop
async def test_sequences_move_from_a_dense_actor_that_cannot_compute() -> None:
    async with two_connected() as (servers, channels, _):
        request = Request("r", [sequence_request(max_tokens=400)], channels, QUICK)
        tokens: list[int] = []
        async for _, delta in request.deltas():
            tokens += delta.token_ids
            if len(tokens) == 8:
                servers[0 if servers[0].submitted else 1].is_ready = False
        assert tokens == list(range(400)) and sum(len(server.submitted) for server in servers) == 2


@in_loop
async def test_an_aborted_request_ends_with_its_error_and_is_cancelled() -> None:
    async with connected() as (server, channels):
        await ready(channels)
        request = Request("r", [sequence_request(max_tokens=10**6)], channels, QUICK)
        deltas = request.deltas()
        await anext(deltas)
        request.abort(ServerUnavailable("shutting down"))
        with pytest.raises(ServerUnavailable, match="shutting down"):
            async for _ in deltas:
                pass
        await asyncio.sleep(0.1)
        assert len(server.cancelled) == 1


@in_loop
async def test_a_known_prefix_goes_where_it_was_computed_and_other_salts_go_round() -> None:
    async with two_connected() as (servers, channels, _):
        prompt_ids = tuple(range(400))
        for number in range(6):
            salt = "other" if number % 2 else ""
            request = Request(
                str(number), [sequence_request(0, 2, (*prompt_ids, number), salt)], channels, QUICK
            )
            assert await tokens_of(request) == {0: [0, 1]}
        salts = [{submitted.cache_salt for submitted in server.submitted} for server in servers]
        assert sorted(salts, key=sorted) == [{""}, {"other"}]


@in_loop
async def test_what_a_lost_dense_actor_held_is_forgotten() -> None:
    async with two_connected() as (servers, channels, _):
        prompt_ids = tuple(range(400))
        hashes = prompt_hashes(RULE, prompt_ids, "", 100)
        chosen = channels.choose(prompt_ids)
        assert chosen is not None and chosen.candidate(hashes).held_tokens == 400
        servers[chosen.address.index].cut()
        async with asyncio.timeout(5):
            while chosen.is_ready:
                await asyncio.sleep(0.001)
        assert chosen.candidate(hashes).held_tokens == 0
