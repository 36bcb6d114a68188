"""Sends one call over HTTP and notes when each of its tokens arrives.

Tokens are counted in one of two ways. The client asks for `stream_options: {include_usage,
continuous_usage_stats}`. A chunk that carries usage says exactly how many tokens have come so far. If a
server sends usage only at the end (or never), each chunk with text counts as one token; the final usage, if
any, corrects the total but not the times. `Outcome.is_exact` is True for the first way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from cluster.commands.bench.sse import EventReader
from cluster.commands.bench.workload import Call
from cluster.commands.http_client import HTTP_ERRORS, error_message, reason


@dataclass(frozen=True, slots=True)
class Mark:
    """By `seconds` after the load's start, `num_tokens` output tokens had arrived."""

    seconds: float
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of one call. Times are in seconds after the load's start."""

    sent_seconds: float
    ended_seconds: float
    max_tokens: int
    marks: tuple[Mark, ...] = ()
    """One mark for each chunk with tokens; empty without streaming."""
    num_prompt_tokens: int | None = None
    """Prompt tokens by the server's count; None if the server does not report it."""
    num_cached_tokens: int | None = None
    """Prompt tokens that the server took from its cache; None if the server does not report it."""
    num_output_tokens: int = 0
    is_exact: bool = False
    """Whether the count of every mark is the server's own."""
    error: str | None = None
    """Why the call failed; None for a call that was answered to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server, and how the client speaks to it."""

    url: str
    """Base URL without `/v1`."""
    model: str
    endpoint: str = "completions"
    is_streamed: bool = True
    is_eos_ignored: bool = True
    temperature: float = 0.0
    extra_body: Mapping[str, Any] | None = None
    """Further fields of each request."""


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None


class _Body(msgspec.Struct):
    """The fields of a response or chunk that are measured; the decoder skips all others."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw()


_decode: Callable[[bytes], _Body] = msgspec.json.Decoder(_Body).decode
_MOST_CLOSED = 4
"""Closed connections that one call may meet before it fails."""


class BenchError(Exception):
    """A server cannot be measured at all; the message names the server and says why."""


async def send(client: aiohttp.ClientSession, target: Target, call: Call, start: float) -> Outcome:
    """Send one call and follow it to its end. `start` is the `perf_counter` at the load's start.

    Only a cancellation raises; any other failure is in `Outcome.error`.
    """
    progress = _Progress(start)
    sent = time.perf_counter() - start
    try:
        content = msgspec.json.encode(body_of(target, call))
        await _post(client, target, content, progress)
    except (*HTTP_ERRORS, msgspec.MsgspecError) as error:
        progress.error = reason(error)
    return Outcome(
        sent_seconds=sent,
        ended_seconds=time.perf_counter() - start,
        max_tokens=call.max_tokens,
        marks=tuple(progress.marks),
        num_prompt_tokens=progress.num_prompt_tokens,
        num_cached_tokens=progress.num_cached_tokens,
        num_output_tokens=progress.num_output_tokens,
        is_exact=progress.is_exact and bool(progress.marks),
        error=progress.error,
    )


def body_of(target: Target, call: Call) -> dict[str, Any]:
    """The JSON body of a call."""
    body: dict[str, Any] = {
        "model": target.model,
        "max_tokens": call.max_tokens,
        "temperature": target.temperature,
    }
    if call.messages is not None:
        body["messages"] = call.messages
    else:
        body["prompt"] = call.text if call.text is not None else call.token_ids
    if target.is_eos_ignored:
        body["ignore_eos"] = True
    if target.is_streamed:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    return body | dict(target.extra_body or {})


class _Progress:
    """The state of a call that is under way."""

    def __init__(self, start: float) -> None:
        self.start = start
        self.marks: list[Mark] = []
        self.num_prompt_tokens: int | None = None
        self.num_cached_tokens: int | None = None
        self.num_output_tokens = 0
        self.is_exact = True
        self.is_answered = False
        """Whether the status of a response has arrived; the call is then not sent again."""
        self.error: str | None = None

    def add(self, body: _Body, seconds: float) -> None:
        """Count one chunk that arrived at `seconds`."""
        usage = body.usage
        if usage is not None and usage.prompt_tokens is not None:
            self.num_prompt_tokens = usage.prompt_tokens
            details = usage.prompt_tokens_details
            self.num_cached_tokens = None if details is None else details.cached_tokens
        if usage is not None and usage.completion_tokens is not None:
            if not body.choices:  # The closing usage chunk has no token; it only corrects the total.
                self.is_exact = self.is_exact and usage.completion_tokens == self.num_output_tokens
                self.num_output_tokens = usage.completion_tokens
                return
            count = usage.completion_tokens
        elif any(_has_text(choice) for choice in body.choices):
            self.is_exact = False
            count = self.num_output_tokens + 1
        else:
            return
        if count > self.num_output_tokens:
            self.num_output_tokens = count
            self.marks.append(Mark(seconds, count))


async def _post(client: aiohttp.ClientSession, target: Target, content: bytes, progress: _Progress) -> None:
    """Send the request, on another connection if the server closes the kept one at that moment."""
    path = "/v1/chat/completions" if target.endpoint == "chat" else "/v1/completions"
    headers = {"Content-Type": "application/json"}
    for is_last in (*(False,) * _MOST_CLOSED, True):
        try:
            async with client.post(
                target.url + path, data=content, headers=headers, allow_redirects=False
            ) as response:
                progress.is_answered = True
                await _follow(response, target.is_streamed, progress)
                return
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            if is_last or progress.is_answered or isinstance(error, aiohttp.ClientConnectorError):
                raise


async def _follow(response: aiohttp.ClientResponse, is_streamed: bool, progress: _Progress) -> None:
    if response.status != 200:
        progress.error = f"HTTP {response.status}: {error_message(await response.read())}"
        return
    if not is_streamed:
        body = _decode(await response.read())
        if body.usage is not None:
            progress.num_prompt_tokens = body.usage.prompt_tokens
            progress.num_output_tokens = body.usage.completion_tokens or 0
        return
    reader, is_done = EventReader(), False
    # Read to the very end, so that the connection can be used again.
    async for chunk in response.content.iter_any():
        seconds = time.perf_counter() - progress.start
        for data in reader.feed(chunk):
            if data == b"[DONE]":
                is_done = True
                continue
            body = _decode(data)
            if bytes(body.error) not in (b"", b"null"):
                progress.error = f"error in the stream: {error_message(data)}"
                return
            progress.add(body, seconds)
    if not is_done:
        progress.error = "the stream ended without [DONE]"


def _has_text(choice: _Choice) -> bool:
    delta = choice.delta
    return bool(choice.text or (delta is not None and (delta.content or delta.reasoning_content)))
