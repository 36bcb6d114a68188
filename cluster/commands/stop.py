"""`phimoe stop`: end a running service from another shell."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time

from cluster.commands.run_state import RunState, running_states
from cluster.config.cluster_config import ClusterConfig
from cluster.config.environment import prepare_ray

_REMOVE_SECONDS = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `phimoe stop`."""
    parser.description = (
        "End the services that this user runs on this host, as Ctrl-C would. With --address: remove the "
        "service from that Ray cluster, which itself goes on."
    )
    parser.add_argument("--port", type=int, help="only the service with this HTTP port")
    parser.add_argument("--address", help="Ray cluster to remove the service from (host:port or auto)")
    parser.add_argument(
        "--timeout", type=float, default=90.0, metavar="SECONDS", help="longest wait (default: 90)"
    )


def run(args: argparse.Namespace) -> int:
    """Exit status: 0 when nothing of it runs any longer, also if nothing did; 1 when it is still there."""
    if args.address is not None:
        return asyncio.run(_remove_from(args.address))
    states = [state for state in running_states() if args.port in (None, state.port)]
    if not states:
        print("no service is running")
        return 0
    for state in states:
        os.kill(state.pid, signal.SIGTERM)
    ended = [_wait_for_end(state, args.timeout) for state in states]
    return 0 if all(ended) else 1


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


async def _remove_from(address: str) -> int:
    prepare_ray(use_haproxy=False, scratch=None)
    from cluster.commands.serve_application import close_doors
    from cluster.ray_actors import supervisor_actor

    try:
        await asyncio.to_thread(supervisor_actor.start_ray, ClusterConfig(address=address))
    except (ConnectionError, RuntimeError, ValueError) as error:
        print(f"phimoe stop: cannot reach Ray at {address}: {error}", file=sys.stderr)
        return 1
    try:
        await asyncio.to_thread(close_doors)
        supervisor = supervisor_actor.find_supervisor()
        if supervisor is not None:
            await supervisor.remove(_REMOVE_SECONDS)
    finally:
        supervisor_actor.stop_ray()
    print("the service is removed" if supervisor is not None else "no service is running there")
    return 0
