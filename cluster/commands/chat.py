"""`phimoe chat`: a conversation in the terminal with a running server.

In a terminal the command prompts for messages: Ctrl-C stops a reply and keeps the text so far, Ctrl-D or
/exit leaves, /reset starts over. From a pipe each line is one message; only the replies go to standard
output, and the first failure ends the command with status 1.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from cluster.commands.bench.sse import EventReader
from cluster.commands.client_options import (
    add_trust_flags,
    add_url_flag,
    api_headers,
    service_url,
    verification,
)
from cluster.commands.http_client import HTTP_ERRORS, error_message, open_client, reason
from cluster.commands.served_model import ServerError, ask_served_model

_READ_SECONDS = 600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `phimoe chat`."""
    parser.description = (
        "Talk to a running server. /reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops a "
        "reply. With piped input each line is one message."
    )
    add_url_flag(parser)
    parser.add_argument("--model", help="model to ask for (default: the first of /v1/models)")
    add_trust_flags(parser)
    parser.add_argument("--system", metavar="TEXT", help="system message that opens the conversation")
    parser.add_argument("--temperature", type=float, default=0.0, help="(default: 0, the likeliest reply)")
    parser.add_argument("--max-tokens", type=int, help="longest reply in tokens (default: the server's)")


def run(args: argparse.Namespace) -> int:
    """Return the exit status: 0 at the end of input or /exit, 1 if the server failed, 130 if interrupted
    outside a reply."""
    options = {"temperature": args.temperature, "max_tokens": args.max_tokens}
    try:
        server = Server(
            url=service_url(args.url),
            headers=api_headers(args.api_key_file),
            verify=verification(args.ca_file),
        )
        chat = Chat(
            server=server,
            model=args.model if args.model is not None else asyncio.run(server.first_model()),
            system=args.system,
            options={name: value for name, value in options.items() if value is not None},
        )
        return _converse(chat, is_terminal=sys.stdin.isatty())
    except (ChatError, ServerError, ValueError) as error:
        print(f"phimoe chat: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # The process that read the replies has ended.
        sys.stderr.close()
        return 1


class ChatError(Exception):
    """The server cannot be reached, refused a request, or broke off; the message says which."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The server of the conversation, and how the client speaks to it."""

    url: str
    """Base URL without `/v1`."""
    headers: Mapping[str, str]
    verify: ssl.SSLContext | bool

    async def first_model(self) -> str:
        """The name of the first model that is served. Raises ServerError."""
        async with self.client() as client:
            return (await ask_served_model(client, self.url)).name

    def client(self) -> aiohttp.ClientSession:
        """A client for one call. The server could close a connection that is kept while the user types."""
        return open_client(self.headers, self.verify, read_seconds=_READ_SECONDS)


class Chat:
    """One conversation: its messages so far, and the server that continues it."""

    def __init__(self, *, server: Server, model: str, system: str | None, options: dict[str, Any]) -> None:
        self._server, self._options = server, options
        self._opening = (Message("system", system),) if system is not None else ()
        self.model = model
        self.history: tuple[Message, ...] = self._opening

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.history = self._opening

    async def reply(self, text: str, show: Callable[[str], None]) -> None:
        """Send `text` and call `show` with each piece of the reply when it arrives. Raises ChatError.

        On cancellation the text so far becomes the reply. A failed or empty reply leaves no trace in the
        history.
        """
        asked = (*self.history, Message("user", text))
        pieces: list[str] = []
        try:
            async for piece in self._stream(asked):
                pieces.append(piece)
                show(piece)
        except ChatError:
            pieces.clear()
            raise
        finally:
            if pieces:
                self.history = (*asked, Message("assistant", "".join(pieces)))

    async def _stream(self, messages: tuple[Message, ...]) -> AsyncIterator[str]:
        url = self._server.url
        body = {
            "model": self.model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "stream": True,
            **self._options,
        }
        reader = EventReader()
        try:
            async with (
                self._server.client() as client,
                client.post(f"{url}/v1/chat/completions", json=body, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    raise ChatError(f"HTTP {response.status}: {error_message(await response.read())}")
                async for chunk in response.content.iter_any():
                    for data in reader.feed(chunk):
                        if data == b"[DONE]":
                            return
                        if piece := _piece(data):
                            yield piece
        except aiohttp.ClientPayloadError:
            pass
        except HTTP_ERRORS as error:
            raise ChatError(f"{url}: {reason(error)}") from error
        raise ChatError(f"{url} broke off in the middle of a reply")


def _converse(chat: Chat, *, is_terminal: bool) -> int:
    if is_terminal:
        _load_line_editor()
        print(f"{chat.model}. /reset starts over, /exit leaves, Ctrl-C stops a reply.")
    while True:
        text = _read(is_terminal)
        if text is None or text == "/exit":
            return 0
        if text == "/reset":
            chat.reset()
        elif text:
            try:
                _say(chat, text)
            except ChatError as error:
                if not is_terminal:
                    raise
                print(f"\n{error}", file=sys.stderr)


def _say(chat: Chat, text: str) -> None:
    try:
        asyncio.run(chat.reply(text, lambda piece: print(piece, end="", flush=True)))
        print(flush=True)
    except KeyboardInterrupt:
        print(" [stopped]", flush=True)


def _read(is_terminal: bool) -> str | None:
    """The next message without the white space around it; None at the end of input."""
    if not is_terminal:
        line = sys.stdin.readline()
        return line.strip() if line else None
    while True:
        try:
            return input("> ").strip()
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /exit leaves)")


def _load_line_editor() -> None:
    """Load the module that gives `input` arrow keys and a history, if Python was built with it."""
    try:
        importlib.import_module("readline")
    except ImportError:
        return


def _piece(data: bytes) -> str:
    """The text that one event adds. Raises ChatError for an error event or one that cannot be read."""
    try:
        body = json.loads(data)
        if body.get("error"):
            raise ChatError(error_message(data))
        return "".join(choice["delta"].get("content") or "" for choice in body["choices"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ChatError(f"unreadable event {data[:200]!r}") from error
