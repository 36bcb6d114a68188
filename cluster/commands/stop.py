"""The command `phimoe stop`: it ends a running service from another shell."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time

from cluster.commands.local_service.run_state import (
    RunState,
    SeveralServicesError,
    running_states,
    without_path,
)
from cluster.commands.local_service.terminal import LogError, log_path, open_log, output_to
from cluster.config.cluster_config import ClusterConfig
from cluster.ray_actors.ray_environment import prepare_ray

_REMOVE_SECONDS = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `phimoe stop`."""
    parser.description = (
        "End the service that this user runs on this host, as Ctrl-C does. If several run, name one. With "
        "--address the service is removed from that Ray cluster, which itself goes on."
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--url", help="stop only the service with this URL")
    which.add_argument("--port", type=int, help="stop only the service with this HTTP port")
    which.add_argument(
        "--all", action="store_true", help="stop every service that this user runs on this host"
    )
    which.add_argument("--address", help="Ray cluster to remove the service from (host:port or auto)")
    parser.add_argument(
        "--timeout", type=float, default=90.0, metavar="SECONDS", help="longest wait (default: 90)"
    )


def run(args: argparse.Namespace) -> int:
    """Return the exit status: 0 if no service runs any longer, 1 if one still runs.

    It is 2 if several services run and none is chosen; then none is stopped.
    """
    if args.address is not None:
        return _remove_from(args.address)
    try:
        states = _chosen(running_states(), args)
    except SeveralServicesError as error:
        print(f"phimoe stop: {error}", file=sys.stderr)
        return 2
    if not states:
        where = args.url or (f"port {args.port}" if args.port is not None else "")
        print(f"no service is running at {where}" if where else "no service is running")
        return 0
    for state in states:
        with contextlib.suppress(ProcessLookupError):
            os.kill(state.pid, signal.SIGTERM)
    ended = [_wait_for_end(state, args.timeout) for state in states]
    return 0 if all(ended) else 1


def _chosen(states: list[RunState], args: argparse.Namespace) -> list[RunState]:
    if args.url is not None:
        url = without_path(args.url).replace("//localhost:", "//127.0.0.1:")
        return [state for state in states if state.url == url]
    if args.port is not None:
        return [state for state in states if state.port == args.port]
    if len(states) > 1 and not args.all:
        raise SeveralServicesError(states, "--url or --all")
    return states


def _wait_for_end(state: RunState, timeout_seconds: float) -> bool:
    give_up = time.monotonic() + timeout_seconds
    while state.is_running:
        if time.monotonic() > give_up:
            print(
                f"{state.url} (process {state.pid}) still runs after {timeout_seconds:g} s", file=sys.stderr
            )
            return False
        time.sleep(0.05)
    print(f"{state.url} is stopped")
    return True


def _remove_from(address: str) -> int:
    """Remove the service from the Ray cluster at `address` and return the exit status. Ray's own output goes
    to a log."""
    log = log_path("stop")
    try:
        with open_log(log) as file, output_to(file):
            was_there = asyncio.run(_remove(address))
    except (ConnectionError, LogError) as error:
        print(f"phimoe stop: {error} (log: {log})", file=sys.stderr)
        return 1
    print("the service is removed" if was_there else "no service is running there")
    return 0


async def _remove(address: str) -> bool:
    """Remove the service and return whether there was one. Raises ConnectionError."""
    prepare_ray(use_haproxy=False, scratch=None)
    from cluster.commands.local_service.application import stop_serve
    from cluster.ray_actors.runtime import start_ray, stop_ray
    from cluster.ray_actors.supervisor_actor import find_supervisor

    try:
        await asyncio.to_thread(start_ray, ClusterConfig(address=address))
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConnectionError(f"cannot reach Ray at {address}: {error}") from error
    try:
        await asyncio.to_thread(stop_serve)
        supervisor = find_supervisor()
        if supervisor is not None:
            await supervisor.remove(_REMOVE_SECONDS)
    finally:
        stop_ray()
    return supervisor is not None
