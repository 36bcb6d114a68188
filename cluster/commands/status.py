"""`phimoe status`: all actors of a running service, from its /cluster."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

import msgspec
from rich.console import Console
from rich.table import Table

from cluster.commands.client_options import (
    add_trust_flags,
    add_url_flag,
    api_headers,
    service_url,
    verification,
)
from cluster.commands.http_client import HTTP_ERRORS, Reply, error_message, get, open_client, reason
from cluster.messages import ActorView, ClusterView

_COLUMNS = ("actor", "state", "restarts", "pid", "node", "device", "products", "memory", "experts")
_SECONDS = 15.0
"""Longest wait for a connection, and then for each part of the answer."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `phimoe status`."""
    add_url_flag(parser)
    add_trust_flags(parser)
    parser.add_argument("--json", action="store_true", help="print /cluster as it is")


def run(args: argparse.Namespace) -> int:
    """Exit status 0 if every actor is ready, 3 if one is not, 1 if the service cannot be reached or asked."""
    try:
        url = service_url(args.url)
        reply = asyncio.run(_ask(f"{url}/cluster", args))
    except HTTP_ERRORS as error:  # An address that makes no sense is a ValueError as well.
        return _fail(f"{url} does not answer: {reason(error)}")
    except ValueError as error:
        return _fail(str(error))
    if reply.status in (401, 403):
        return _fail(f"{url} wants an API key (PHIMOE_API_KEY, --api-key-file)")
    if reply.status != 200:
        return _fail(f"{url} does not answer: HTTP {reply.status}: {error_message(reply.body)}")
    try:
        view: ClusterView = msgspec.json.decode(reply.body, type=ClusterView)
    except msgspec.MsgspecError as error:
        return _fail(str(error))
    if args.json:
        print(json.dumps(json.loads(reply.body), indent=2))
    else:
        _show(view)
    return 0 if all(actor.state == "ready" for actor in view.actors) else 3


async def _ask(address: str, args: argparse.Namespace) -> Reply:
    headers, verify = api_headers(args.api_key_file), verification(args.ca_file)
    async with open_client(headers, verify, read_seconds=_SECONDS, connect_seconds=_SECONDS) as client:
        return await get(client, address)


def _fail(text: str) -> int:
    print(f"phimoe status: {text}", file=sys.stderr)
    return 1


def _show(view: ClusterView) -> None:
    table = Table(title=f"{view.model}, epoch {view.epoch}", title_justify="left")
    for column in _COLUMNS:
        table.add_column(column, no_wrap=True)
    for actor in view.actors:
        table.add_row(*_row(actor))
    Console().print(table)


def _row(actor: ActorView) -> tuple[str, ...]:
    memory = f"{actor.memory_bytes / 2**20:,.0f} MiB"
    return (
        actor.name,
        actor.state,
        str(actor.restarts),
        str(actor.pid),
        actor.node_ip,
        actor.device,
        actor.products,
        memory,
        ranges(actor.experts),
    )


def ranges(numbers: tuple[int, ...]) -> str:
    """Ascending numbers in few words: 0-3 5 8-9."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
