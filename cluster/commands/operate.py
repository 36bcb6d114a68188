"""One admin operation from the command line: ask for it, show what changes while it lasts, say how it ended."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from cluster.commands.client_options import (
    add_ca_flag,
    add_url_flag,
    admin_headers,
    service_url,
    verification,
)
from cluster.commands.http_client import HTTP_ERRORS, Reply, error_message, get, open_client, post, reason
from cluster.messages import ClusterView, OperationView
from cluster.timeouts import within

_POLL_SECONDS = 1.0
_STATUS_SECONDS = 10.0


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
        help="longest wait; the operation itself goes on (default: 7200)",
    )


def operate(args: argparse.Namespace, name: str, body: dict[str, Any]) -> int:
    """POST /admin/NAME and wait. Exit status: 0 done, 1 not reached or failed, 2 refused (key, flags), 130 interrupted."""
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
    async with open_client(headers, verify, read_seconds=args.timeout) as client:
        asked = asyncio.create_task(post(client, f"{url}/admin/{name}", body))
        shown = asyncio.create_task(_show_progress(client, url))
        try:
            await asyncio.wait({asked, shown}, timeout=args.timeout, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done() and not shown.done():
                return _fail(name, f"not done after {args.timeout:g} s; it goes on")
            return _report(name, await asked)
        except aiohttp.InvalidURL as error:
            raise ValueError(f"{url}: {reason(error)}") from error
        except asyncio.TimeoutError:
            return _fail(name, f"{url} does not answer in time")
        except aiohttp.ClientError as error:
            return _fail(name, f"{url} cannot be reached: {reason(error)}")
        finally:
            for task in (asked, shown):
                task.cancel()
            await asyncio.gather(asked, shown, return_exceptions=True)


def _report(name: str, reply: Reply) -> int:
    if reply.status == 200:
        view: ClusterView = msgspec.json.decode(reply.body, type=ClusterView)
        print(f"{name} is done: {summary(view)}")
        return 0
    _fail(name, f"HTTP {reply.status}: {error_message(reply.body)}")
    return 2 if reply.status in (400, 401, 403) else 1


def _fail(name: str, text: str) -> int:
    print(f"phimoe {name}: {text}", file=sys.stderr)
    return 1


async def _show_progress(client: aiohttp.ClientSession, url: str) -> None:
    """One line whenever the state of the actors changes. It ends only by being cancelled, and skips what it cannot see."""
    last = ""
    while True:
        await asyncio.sleep(_POLL_SECONDS)
        try:
            reply = await within(_STATUS_SECONDS, get(client, f"{url}/admin/status"))
            line = summary(msgspec.json.decode(reply.body, type=ClusterView))
        except (*HTTP_ERRORS, msgspec.MsgspecError):
            # The operation's own answer says what is wrong.
            continue
        if line != last:
            print(line, flush=True)
            last = line


def summary(view: ClusterView) -> str:
    """All actors in one line: how many of each kind are ready, and who is not."""
    parts = []
    for kind in ("dense", "expert"):
        actors = [actor for actor in view.actors if actor.kind == kind]
        parts.append(
            f"{sum(actor.state == 'ready' for actor in actors)} of {len(actors)} {kind} actors ready"
        )
    waiting = [f"{actor.name} {actor.state}" for actor in view.actors if actor.state != "ready"]
    doing = [] if view.operation is None else [_progress(view.operation)]
    return ", ".join([*doing, f"epoch {view.epoch}", *parts, *waiting])


def _progress(operation: OperationView) -> str:
    count = f" ({operation.done} of {operation.total})" if operation.total else ""
    return f"{operation.name}: {operation.step}{count}"
