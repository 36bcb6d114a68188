"""`phimoe status`: all actors of a running service, from its /cluster."""

from __future__ import annotations

import argparse
import json
import sys

import httpx
import msgspec
from rich.console import Console
from rich.table import Table

from cluster.commands.client_options import (
    DEFAULT_URL,
    add_trust_flags,
    api_headers,
    service_url,
    verification,
)
from cluster.messages import ActorView, ClusterView

_COLUMNS = ("actor", "state", "restarts", "pid", "node", "device", "products", "memory", "experts")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `phimoe status`."""
    parser.add_argument("--url", help=f"the service (default: the one that runs here, else {DEFAULT_URL})")
    add_trust_flags(parser)
    parser.add_argument("--json", action="store_true", help="print /cluster as it is")


def run(args: argparse.Namespace) -> int:
    """Exit status 0 if every actor is ready, 3 if one is not, 1 if the service cannot be reached or asked."""
    url = service_url(args.url)
    try:
        headers, verify = api_headers(args.api_key_file), verification(args.ca_file)
        response = httpx.get(f"{url}/cluster", headers=headers, verify=verify, timeout=15.0, trust_env=False)
        if response.status_code in (401, 403):
            print(f"phimoe status: {url} wants an API key (PHIMOE_API_KEY, --api-key-file)", file=sys.stderr)
            return 1
        response.raise_for_status()
        view: ClusterView = msgspec.json.decode(response.content, type=ClusterView)
    except ValueError as error:  # msgspec's errors are ValueErrors as well
        print(f"phimoe status: {error}", file=sys.stderr)
        return 1
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        print(f"phimoe status: {url} does not answer: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(response.json(), indent=2))
    else:
        _show(view)
    return 0 if all(actor.state == "ready" for actor in view.actors) else 3


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
