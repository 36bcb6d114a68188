"""The HTTP client of all commands, built on aiohttp.

aiohttp parses in C. A client that streams tokens takes 10 to 40 microseconds of CPU time per token with it
and 35 to 150 with httpx, on cores that `phimoe bench` often shares with the server that it measures.

Proxy variables of the environment are ignored and redirects are not followed: an API key only goes where the
user says.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
import msgspec

CONNECT_SECONDS = 10.0
HTTP_ERRORS = (aiohttp.ClientError, asyncio.TimeoutError)
"""The errors of a call: the server cannot be reached, breaks off, or is silent for too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A complete answer."""

    status: int
    body: bytes


def open_client(
    headers: Mapping[str, str],
    verify: ssl.SSLContext | bool,
    *,
    read_seconds: float,
    connect_seconds: float = CONNECT_SECONDS,
) -> aiohttp.ClientSession:
    """A client with as many connections as there are calls under way. It needs a running loop.

    `verify` is what `client_options.verification` returns; False accepts any certificate. `read_seconds` is
    the longest silence of a server, not the longest duration of a call.
    """
    return aiohttp.ClientSession(
        headers={"Accept-Encoding": "identity", **headers},
        connector=aiohttp.TCPConnector(ssl=verify, limit=0, keepalive_timeout=600),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_seconds, sock_read=read_seconds),
        auto_decompress=False,
    )


async def get(client: aiohttp.ClientSession, url: str) -> Reply:
    """The answer to GET, whatever its status. Raises HTTP_ERRORS."""
    async with client.get(url, allow_redirects=False) as response:
        return Reply(status=response.status, body=await response.read())


async def post(client: aiohttp.ClientSession, url: str, body: object) -> Reply:
    """The answer to POST with a JSON body, whatever its status. Raises HTTP_ERRORS."""
    headers = {"Content-Type": "application/json"}
    content = msgspec.json.encode(body)
    async with client.post(url, data=content, headers=headers, allow_redirects=False) as response:
        return Reply(status=response.status, body=await response.read())


def error_message(body: bytes) -> str:
    """The message of an error in OpenAI's shape, or the start of the body itself."""
    try:
        return str(msgspec.json.decode(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return body.decode("utf-8", "replace").strip()[:200]


def reason(error: BaseException) -> str:
    """Why a server could not be asked, in a few words."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return str(error.certificate_error)
    if isinstance(error, aiohttp.ClientConnectorError):
        return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return "this is not an HTTP address"
    if isinstance(error, asyncio.TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
