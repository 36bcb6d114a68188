"""One admin operation from the command line: ask for it, show what changes while it lasts, say how it ended."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

import httpx
import msgspec

from cluster.commands.client_options import add_ca_flag, admin_headers, service_url, verification
from cluster.messages import ClusterView, OperationView

_POLL_SECONDS = 1.0
_CONNECT_SECONDS = 10.0


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that every admin command has."""
    parser.add_argument("--url", help="the service (default: the one that runs on this host)")
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
        client = httpx.AsyncClient(
            base_url=service_url(args.url),
            headers=admin_headers(args.admin_key_file),
            verify=verification(args.ca_file),
            timeout=httpx.Timeout(_CONNECT_SECONDS, read=args.timeout),
            trust_env=False,
        )
        return asyncio.run(_operate(client, name, body, args.timeout))
    except (ValueError, httpx.InvalidURL) as error:
        print(f"phimoe {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"phimoe {name}: no longer waiting; the operation goes on", file=sys.stderr)
        return 130


async def _operate(client: httpx.AsyncClient, name: str, body: dict[str, Any], seconds: float) -> int:
    async with client:
        asked = asyncio.create_task(client.post(f"/admin/{name}", json=body))
        shown = asyncio.create_task(_show_progress(client))
        try:
            await asyncio.wait({asked, shown}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done() and not shown.done():
                print(f"phimoe {name}: not done after {seconds:g} s; it goes on", file=sys.stderr)
                return 1
            return _report(name, await asked)
        except httpx.TimeoutException:
            print(f"phimoe {name}: {client.base_url} does not answer in time", file=sys.stderr)
            return 1
        except httpx.HTTPError as error:
            print(
                f"phimoe {name}: {client.base_url} cannot be reached: {error or type(error).__name__}",
                file=sys.stderr,
            )
            return 1
        finally:
            for task in (asked, shown):
                task.cancel()
            await asyncio.gather(asked, shown, return_exceptions=True)


def _report(name: str, response: httpx.Response) -> int:
    if response.status_code == 200:
        view: ClusterView = msgspec.json.decode(response.content, type=ClusterView)
        print(f"{name} is done: {summary(view)}")
        return 0
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        message = response.text.strip()[:200]
    print(f"phimoe {name}: HTTP {response.status_code}: {message}", file=sys.stderr)
    return 2 if response.status_code in (400, 401, 403) else 1


async def _show_progress(client: httpx.AsyncClient) -> None:
    """One line whenever the state of the actors changes. Ends only by being cancelled: what it cannot see it leaves out."""
    last = ""
    while True:
        await asyncio.sleep(_POLL_SECONDS)
        try:
            response = await client.get("/admin/status", timeout=_CONNECT_SECONDS)
            line = summary(msgspec.json.decode(response.content, type=ClusterView))
        except (httpx.HTTPError, msgspec.MsgspecError):
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
