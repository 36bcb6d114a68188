"""`phimoe chat`: a conversation in the terminal with a running server.

From a terminal it prompts; Ctrl-C stops a reply and keeps what came, Ctrl-D or /exit leaves, /reset starts over. From a pipe
each line is one message, the replies alone go to standard output, and the first failure ends it with status 1.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from cluster.commands.bench.sse import EventReader
from cluster.commands.client_options import DEFAULT_URL, add_trust_flags, api_headers, verification


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `phimoe chat`."""
    parser.description = (
        "Talk to a running server. /reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops a reply. "
        "Piped input: each line is one message."
    )
    parser.add_argument("--url", default=DEFAULT_URL, help=f"server, without /v1 (default: {DEFAULT_URL})")
    parser.add_argument("--model", help="model to ask for (default: the first of /v1/models)")
    add_trust_flags(parser)
    parser.add_argument("--system", metavar="TEXT", help="system message that opens the conversation")
    parser.add_argument("--temperature", type=float, default=0.0, help="(default: 0, the likeliest reply)")
    parser.add_argument("--max-tokens", type=int, help="longest reply in tokens (default: the server's)")


def run(args: argparse.Namespace) -> int:
    """Exit status: 0 at the end of input or /exit, 1 when the server failed, 130 when interrupted outside a reply."""
    timeout = httpx.Timeout(10.0, read=600.0)
    try:
        headers, verify = api_headers(args.api_key_file), verification(args.ca_file)
        with httpx.Client(headers=headers, verify=verify, timeout=timeout, trust_env=False) as client:
            options = {"temperature": args.temperature, "max_tokens": args.max_tokens}
            chat = Chat(
                client=client,
                url=args.url.rstrip("/").removesuffix("/v1"),
                model=args.model,
                system=args.system,
                options={name: value for name, value in options.items() if value is not None},
            )
            return _converse(chat, is_terminal=sys.stdin.isatty())
    except (ChatError, ValueError) as error:
        print(f"phimoe chat: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the replies has left
        sys.stderr.close()
        return 1


class ChatError(Exception):
    """The server cannot be reached, refused a request, or broke off; the text says which."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


class Chat:
    """One conversation: what has been said so far, and how to go on."""

    def __init__(
        self,
        *,
        client: httpx.Client,
        url: str,
        model: str | None,
        system: str | None,
        options: dict[str, Any],
    ) -> None:
        """Asks the server for its model where none is named. Raises ChatError."""
        self._client, self._url, self._options = client, url, options
        self._opening = (Message("system", system),) if system is not None else ()
        self.model = model if model is not None else self._first_model()
        self.history: tuple[Message, ...] = self._opening

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.history = self._opening

    def reply(self, text: str) -> Generator[str, None, None]:
        """Say `text`; yields the pieces of the reply as they come.

        When the caller stops early (closes the iterator, or is interrupted), what came so far becomes the reply; a reply of
        which nothing came leaves no trace, and neither does a failed one. Raises ChatError.
        """
        asked = (*self.history, Message("user", text))
        pieces: list[str] = []
        try:
            for piece in self._stream(asked):
                pieces.append(piece)
                yield piece
        except ChatError:
            pieces.clear()
            raise
        finally:
            if pieces:
                self.history = (*asked, Message("assistant", "".join(pieces)))

    def _stream(self, messages: tuple[Message, ...]) -> Iterator[str]:
        body = {
            "model": self.model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "stream": True,
            **self._options,
        }
        reader = EventReader()
        try:
            with self._client.stream("POST", f"{self._url}/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise ChatError(f"HTTP {response.status_code}: {_error_text(response.text)}")
                for chunk in response.iter_bytes():
                    for data in reader.feed(chunk):
                        if data == b"[DONE]":
                            return
                        if piece := _piece(data):
                            yield piece
        except httpx.HTTPError as error:
            raise ChatError(f"{self._url}: {error or type(error).__name__}") from error
        raise ChatError(f"{self._url} broke off in the middle of a reply")

    def _first_model(self) -> str:
        address = f"{self._url}/v1/models"
        try:
            response = self._client.get(address)
            response.raise_for_status()
            return str(response.json()["data"][0]["id"])
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ChatError(f"{address}: {error}") from error
        except (ValueError, LookupError, TypeError) as error:
            raise ChatError(f"{address} does not name a model") from error


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
    pieces = chat.reply(text)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
        print(flush=True)
    except KeyboardInterrupt:
        pieces.close()  # what came is kept
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
    """Arrow keys and history in `input`, where Python was built with them: loading the module is what turns it on."""
    try:
        importlib.import_module("readline")
    except ImportError:
        return


def _piece(data: bytes) -> str:
    """The text that one event adds. Raises ChatError for an error event or one that cannot be read."""
    try:
        body = json.loads(data)
        if body.get("error"):
            raise ChatError(_error_text(data.decode("utf-8", "replace")))
        return "".join(choice["delta"].get("content") or "" for choice in body["choices"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ChatError(f"unreadable event {data[:200]!r}") from error


def _error_text(text: str) -> str:
    """The message of an error in OpenAI's shape, or the text itself."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return text.strip()[:200]
