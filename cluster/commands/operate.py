"""Runs one admin operation from the command line: it sends the request, shows the progress and prints the
result."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar

from cluster.commands.client_options import (
    add_ca_flag,
    add_url_flag,
    admin_headers,
    service_url,
    verification,
)
from cluster.commands.http_client import HTTP_ERRORS, Reply, error_message, get, open_client, post, reason
from cluster.commands.status import actor_table, operation_words
from cluster.messages import ClusterView
from cluster.timeouts import within

_POLL_SECONDS = 1.0
_STATUS_SECONDS = 10.0
_BAR_WIDTH = 40


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that every admin command has."""
    add_url_flag(parser)
    parser.add_argument(
        "--admin-key-file",
        metavar="FILE",
        type=Path,
        help="file with an admin key (default: PHIMOE_ADMIN_KEY)",
    )
    add_ca_flag(parser)
    parser.add_argument(
        "--timeout",
        type=float,
        default=7200.0,
        metavar="SECONDS",
        help="longest wait; afterwards the operation goes on (default: 7200)",
    )


def operate(args: argparse.Namespace, name: str, body: dict[str, Any]) -> int:
    """POST /admin/NAME and wait for the end of the operation.

    Return the exit status: 0 if it is done, 1 if it failed or the service cannot be reached, 2 if the service
    refused it (key, flags), 130 if interrupted.
    """
    try:
        return asyncio.run(_operate(args, name, body))
    except ValueError as error:
        print(f"phimoe {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"phimoe {name}: no longer waiting; the operation goes on", file=sys.stderr)
        return 130


async def _operate(args: argparse.Namespace, name: str, body: dict[str, Any]) -> int:
    url = service_url(args.url)
    headers, verify = admin_headers(args.admin_key_file), verification(args.ca_file)
    try:
        async with open_client(headers, verify, read_seconds=args.timeout) as client:
            showing = asyncio.create_task(_show_progress(client, f"{url}/admin/status", name))
            try:
                reply = await within(args.timeout, post(client, f"{url}/admin/{name}", body))
            finally:
                showing.cancel()
                await asyncio.gather(showing, return_exceptions=True)
    except aiohttp.InvalidURL as error:
        raise ValueError(f"{url}: {reason(error)}") from error
    except aiohttp.ServerTimeoutError:
        return _fail(name, f"{url} does not answer in time")
    except asyncio.TimeoutError:
        return _fail(name, f"not done after {args.timeout:g} s; it goes on")
    except aiohttp.ClientError as error:
        return _fail(name, f"{url} cannot be reached: {reason(error)}")
    return _report(name, reply)


def _report(name: str, reply: Reply) -> int:
    if reply.status == 200:
        view: ClusterView = msgspec.json.decode(reply.body, type=ClusterView)
        console = Console()
        # A terminal gets the text broken at spaces, a program gets it on one line.
        console.print(
            f"{name} is done: {summary(view)}",
            highlight=False,
            markup=False,
            soft_wrap=not console.is_terminal,
        )
        return 0
    _fail(name, f"HTTP {reply.status}: {error_message(reply.body)}")
    return 2 if reply.status in (400, 401, 403) else 1


def _fail(name: str, text: str) -> int:
    print(f"phimoe {name}: {text}", file=sys.stderr)
    return 1


async def _show_progress(client: aiohttp.ClientSession, address: str, name: str) -> None:
    """Show the actors until this task is cancelled. Failed polls are skipped."""
    with ProgressView(Console(), name) as view:
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            # If the service does not answer, the reply to the operation says what is wrong.
            with contextlib.suppress(*HTTP_ERRORS, msgspec.MsgspecError):
                reply = await within(_STATUS_SECONDS, get(client, address))
                view.show(msgspec.json.decode(reply.body, type=ClusterView))


class ProgressView:
    """Shows the actors during an operation: a table that is updated in place, or lines if the output is no
    terminal."""

    def __init__(self, console: Console, name: str) -> None:
        self._console, self._name = console, name
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._last_line = ""

    def __enter__(self) -> ProgressView:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, view: ClusterView) -> None:
        """Update the table, or print a line if the state of an actor has changed."""
        line = summary(view)
        if self._console.is_terminal:
            self._live.update(self.frame(view), refresh=True)
        elif line != self._last_line:
            print(line, flush=True)
            self._last_line = line

    def frame(self, view: ClusterView) -> Group:
        """The content of a terminal: the operation, its progress, and one line for each actor."""
        operation = view.operation
        words = f"{self._name}: waiting" if operation is None else operation_words(operation)
        table = actor_table(view.actors, self._console.width)
        if operation is None or not operation.total:
            return Group(words, table)
        bar = ProgressBar(operation.total, operation.done, width=min(_BAR_WIDTH, self._console.width))
        return Group(words, Padding(bar), table)  # A bar alone does not end its line.


def summary(view: ClusterView) -> str:
    """All actors in one line: how many of each kind are ready, and the names of the others."""
    parts = []
    for kind in ("dense", "expert"):
        actors = [actor for actor in view.actors if actor.kind == kind]
        parts.append(
            f"{sum(actor.state == 'ready' for actor in actors)} of {len(actors)} {kind} actors ready"
        )
    waiting = [f"{actor.name} {actor.state}" for actor in view.actors if actor.state != "ready"]
    doing = [] if view.operation is None else [operation_words(view.operation)]
    return ", ".join([*doing, f"epoch {view.epoch}", *parts, *waiting])
