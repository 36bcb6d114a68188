"""`phimoe status`: all actors of a running service, from its /cluster."""

from __future__ import annotations

import argparse
import json
import sys

import httpx
import msgspec
from rich.console import Console
from rich.table import Table

from cluster.run_state import running_states
from cluster.view import ActorView, ClusterView

_DEFAULT_URL = "http://127.0.0.1:8000"
_COLUMNS = ("actor", "state", "restarts", "pid", "node", "device", "memory", "experts")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `phimoe status`."""
    parser.add_argument("--url", help=f"the service (default: the one that runs here, else {_DEFAULT_URL})")
    parser.add_argument("--json", action="store_true", help="print /cluster as it is")


def run(args: argparse.Namespace) -> int:
    """Exit status 0 if every actor is ready, 3 if one is not, 1 if the service cannot be reached."""
    url = args.url or next((state.url for state in running_states()), _DEFAULT_URL)
    try:
        response = httpx.get(f"{url.rstrip('/')}/cluster", timeout=15.0, trust_env=False)
        response.raise_for_status()
        view = msgspec.json.decode(response.content, type=ClusterView)
    except (httpx.HTTPError, httpx.InvalidURL, msgspec.MsgspecError) as error:
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
    experts = f"{actor.experts[0]}-{actor.experts[-1]}" if actor.experts else ""
    memory = f"{actor.memory_bytes / 2**20:,.0f} MiB"
    return (
        actor.name,
        actor.state,
        str(actor.restarts),
        str(actor.pid),
        actor.node_ip,
        actor.device,
        memory,
        experts,
    )
