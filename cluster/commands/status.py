"""The command `phimoe status`: it shows all actors of a running service, from the route /cluster."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from actors.protocol.messages import EngineCounters, Load
from cluster.commands.client_options import (
    add_trust_flags,
    add_url_flag,
    api_headers,
    service_url,
    verification,
)
from cluster.commands.http_client import HTTP_ERRORS, Reply, error_message, get, open_client, reason
from cluster.commands.tables import Cell, Column, make_table, show_table
from cluster.messages import ActorView, ClusterView, OperationView

_COLUMNS = (
    Column("actor", is_number=False),
    Column("state", is_number=False),
    Column("restarts"),
    Column("memory"),
    Column("experts", is_number=False, is_folded=True),
)
_WIDE_COLUMNS = (
    Column("pid"),
    Column("node", is_number=False),
    Column("device", is_number=False),
    Column("products", is_number=False),
    Column("no link to", is_number=False, is_folded=True),
)
_STYLES = {"ready": "green", "starting": "yellow", "lost": "bold red"}
_SECONDS = 15.0
"""Longest wait for a connection, and then for each part of the answer."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `phimoe status`."""
    add_url_flag(parser)
    add_trust_flags(parser)
    parser.add_argument(
        "--wide",
        action="store_true",
        help="show also pid, node, device, products and lost links, and figures of the dense actors",
    )
    parser.add_argument("--json", action="store_true", help="print the answer of /cluster")


def run(args: argparse.Namespace) -> int:
    """Return the exit status: 0 if every actor is ready, 3 if one is not, 1 if the service does not
    answer."""
    try:
        url = service_url(args.url)
        reply = asyncio.run(_ask(f"{url}/cluster", args))
    except HTTP_ERRORS as error:  # An invalid address is a ValueError as well.
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
        show_status(Console(), view, is_wide=args.wide)
    return 0 if all(actor.state == "ready" for actor in view.actors) else 3


async def _ask(address: str, args: argparse.Namespace) -> Reply:
    headers, verify = api_headers(args.api_key_file), verification(args.ca_file)
    async with open_client(headers, verify, read_seconds=_SECONDS, connect_seconds=_SECONDS) as client:
        return await get(client, address)


def _fail(text: str) -> int:
    print(f"phimoe status: {text}", file=sys.stderr)
    return 1


def show_status(console: Console, view: ClusterView, *, is_wide: bool) -> None:
    """Print the model, the present operation and all actors."""
    console.print(Text(f"{view.model}, epoch {view.epoch}", "bold"), overflow="fold")
    if view.operation is not None:
        console.print(operation_words(view.operation), highlight=False)
    # The table is not cropped: a row that is wider than the terminal goes on in its next line.
    console.print(actor_table(view.actors, console.width, is_wide=is_wide), crop=False, no_wrap=True)
    if is_wide:
        _show_figures(console, view.actors)


def actor_table(actors: Sequence[ActorView], width: int, *, is_wide: bool = False) -> Table:
    """One row per actor. The columns that matter fit into 60 characters; `is_wide` adds the others."""
    columns = (*_COLUMNS, *_WIDE_COLUMNS) if is_wide else _COLUMNS
    return make_table(columns, [_row(actor)[: len(columns)] for actor in actors], width)


def operation_words(operation: OperationView) -> str:
    """The name and step of an operation, and its progress."""
    count = f" ({operation.done} of {operation.total})" if operation.total else ""
    return f"{operation.name}: {operation.step}{count}"


def _show_figures(console: Console, actors: Sequence[ActorView]) -> None:
    """Print one line for every field of `Load` and `EngineCounters`, with a column for each dense actor."""
    figures = {actor.name: _figures(actor) for actor in actors if actor.load is not None}
    if not figures:
        return
    rows = [
        (name.replace("_", " "), *(of_actor.get(name, "") for of_actor in figures.values()))
        for name in (*Load.__struct_fields__, *EngineCounters.__struct_fields__)
    ]
    console.print()
    show_table(console, "", (Column("figure", is_number=False), *map(Column, figures)), rows)


def _figures(actor: ActorView) -> dict[str, str]:
    return {
        name: f"{getattr(record, name):,}"
        for record in (actor.load, actor.counters)
        if record is not None
        for name in record.__struct_fields__
    }


def _row(actor: ActorView) -> tuple[Cell, ...]:
    return (
        actor.name,
        Text(actor.state, _STYLES.get(actor.state, "")),
        str(actor.restarts),
        f"{actor.memory_bytes / 2**20:,.0f} MiB",
        ranges(actor.experts),
        str(actor.pid),
        actor.node_ip,
        actor.device,
        actor.products,
        " ".join(actor.lost_links),
    )


def ranges(numbers: tuple[int, ...]) -> str:
    """Ascending numbers in short form, such as 0-3 5 8-9."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
