"""The command `phimoe serve`: it starts the service, shows the progress, runs until a signal and stops
everything."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.commands.http_client import HTTP_ERRORS, get, open_client
from cluster.commands.local_service.preflight import StartError, check_start, wants_haproxy, wants_keys
from cluster.commands.local_service.process_session import SessionLostError, run_in_own_session
from cluster.commands.local_service.run_state import write_state
from cluster.commands.local_service.startup_view import StartupView
from cluster.commands.local_service.terminal import (
    LogError,
    Terminal,
    last_lines,
    log_path,
    open_log,
    output_to,
)
from cluster.commands.local_service.watch import watch_actors
from cluster.config.cluster_config import ClusterConfig
from cluster.config.sources import add_flags, from_flags
from cluster.ray_actors.ray_environment import is_haproxy_on, prepare_ray
from cluster.timeouts import within

if TYPE_CHECKING:
    from cluster.ray_actors.supervisor_actor import SupervisorClient

_POLL_SECONDS = 0.1
_CALL_SECONDS = 30.0
_WATCH_SECONDS = 10.0
_HEALTH_SECONDS = 120.0
_FIND_SECONDS = 5.0
_SHUTDOWN_SECONDS = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `phimoe serve`, one for every key of ClusterConfig."""
    add_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Return the exit status: 0 after Ctrl-C or SIGTERM, 1 if the service could not start, 2 for a wrong
    config."""
    try:
        config = from_flags(args)
    except ValueError as error:
        print(f"phimoe serve: {error}", file=sys.stderr)
        return 2
    scratch = Path(tempfile.mkdtemp(prefix="phimoe-"))
    log = log_path(f"serve-{config.port}")
    try:
        return run_in_own_session(lambda: _run(config, scratch, log), scratch)
    except SessionLostError as error:
        print(f"phimoe serve: {error}. The end of {log}:\n{last_lines(log, 10)}", file=sys.stderr)
        return error.status
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _run(config: ClusterConfig, scratch: Path, log: Path) -> int:
    hint = ""
    try:
        check_start(config)
        use_haproxy = wants_haproxy(config)
        with open_log(log) as file, output_to(file) as terminal:
            hint = f" (log: {log})"
            prepare_ray(
                use_haproxy=use_haproxy,
                scratch=scratch,
                header_limits=(config.header_timeout_seconds, config.max_header_bytes),
            )
            if config.has_tls and is_haproxy_on():
                raise StartError(
                    "RAY_SERVE_ENABLE_HA_PROXY is 1, but Ray Serve starts HAProxy without TLS: unset it"
                )
            asyncio.run(_serve(config, terminal, log))
    except (StartError, LogError) as error:
        print(f"phimoe serve: {error}{hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        # The child removes the folder too, since the parent may have been killed.
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


def base_url(config: ClusterConfig) -> str:
    """The URL at which a client on this host reaches the service."""
    host = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host
    scheme = "https" if config.has_tls else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{config.port}"


def curl_line(config: ClusterConfig) -> str:
    """A curl command that a user can copy and run as it is."""
    body = (
        f'{{"model": "{config.model_id}", "messages": [{{"role": "user", "content": "Solve 2x + 3 = 7"}}]}}'
    )
    flags = "--cacert CERTIFICATE " if config.has_tls else ""
    header = '-H "Authorization: Bearer $PHIMOE_API_KEY" ' if wants_keys(config) else ""
    url = f"{base_url(config)}/v1/chat/completions"
    return f"curl {flags}{url} {header}-H 'Content-Type: application/json' -d '{body}'"


async def _serve(config: ClusterConfig, terminal: Terminal, log: Path) -> None:
    began = time.monotonic()
    title = f"starting {config.model_id} with {config.num_expert_actors} expert actors"
    with StartupView(terminal.console(), title) as view:
        async with _ray(config):
            stop = _Signals()
            # The file has the parent's process id, since the parent ends last.
            note = write_state(os.getppid(), base_url(config), config.port, config.model_id)
            try:
                supervisor = await _until_up_or(stop, config, view)
                view.finish()
                if supervisor is not None:
                    _announce(config, view, log, time.monotonic() - began)
                    # The view would wrap the line, and users copy it.
                    print(curl_line(config), file=terminal.out, flush=True)
                    await _watch_until(stop.first, supervisor, view)
                    await _drain(config, view, stop)
                view.say("stopping")
            finally:
                try:
                    await _take_down(view)
                finally:
                    note.unlink(missing_ok=True)


async def _until_up_or(stop: _Signals, config: ClusterConfig, view: StartupView) -> SupervisorClient | None:
    """The supervisor, once the service is up; None if a signal arrived before. Raises StartError."""
    bring_up = asyncio.create_task(_bring_up(config, view))
    stopped = asyncio.create_task(stop.first.wait())
    await asyncio.wait({bring_up, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not bring_up.done():
        bring_up.cancel()
        await asyncio.gather(bring_up, return_exceptions=True)
        return None
    return bring_up.result()


async def _watch_until(stop: asyncio.Event, supervisor: SupervisorClient, view: StartupView) -> None:
    watching = asyncio.create_task(watch_actors(lambda: supervisor.view(_WATCH_SECONDS), view.say))
    try:
        await stop.wait()
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _bring_up(config: ClusterConfig, view: StartupView) -> SupervisorClient:
    """Start actors and Serve side by side. Return when a request would be answered. Raises StartError."""
    from cluster.commands.local_service.application import start_serve
    from cluster.ray_actors.runtime import node_labels
    from cluster.ray_actors.supervisor_actor import ensure_supervisor

    supervisor = await ensure_supervisor(config)
    labels = await asyncio.to_thread(node_labels)
    serve = asyncio.create_task(asyncio.to_thread(start_serve, config, labels))
    try:
        await _until_actors_ready(supervisor, config, view)
        await serve
        await _until_healthy(config)
        return supervisor
    except (RuntimeError, OSError, ValueError) as error:
        raise StartError(str(error)) from error
    finally:
        await asyncio.gather(serve, return_exceptions=True)


async def _until_actors_ready(supervisor: SupervisorClient, config: ClusterConfig, view: StartupView) -> None:
    give_up = time.monotonic() + config.load_deadline_seconds
    while True:
        startup = await supervisor.startup(_CALL_SECONDS)
        view.show(startup)
        if startup.failure is not None:
            raise StartError(startup.failure)
        if startup.is_ready:
            return
        if time.monotonic() > give_up:
            raise StartError(f"the actors are not loaded after {config.load_deadline_seconds:g} seconds")
        await asyncio.sleep(_POLL_SECONDS)


async def _until_healthy(config: ClusterConfig) -> None:
    give_up = time.monotonic() + _HEALTH_SECONDS
    # No certificate is checked: it often names another host than this address. No key is sent.
    async with open_client({}, False, read_seconds=5.0, connect_seconds=5.0) as client:
        while True:
            with contextlib.suppress(*HTTP_ERRORS):
                if (await get(client, f"{base_url(config)}/health")).status == 200:
                    return
            if time.monotonic() > give_up:
                raise StartError(f"{base_url(config)}/health is not 200 after {_HEALTH_SECONDS:g} seconds")
            await asyncio.sleep(_POLL_SECONDS)


def _announce(config: ClusterConfig, view: StartupView, log: Path, seconds: float) -> None:
    url = base_url(config)
    grpc_port = config.grpc_tls_port if config.has_tls else config.grpc_port
    view.say(f"ready after {seconds:.1f} s")
    view.say(f"  HTTP   {url}/v1")
    view.say(f"  gRPC   {config.host}:{grpc_port}")
    view.say(f"  state  {url}/cluster")
    view.say(f"  log    {log}")


@contextlib.asynccontextmanager
async def _ray(config: ClusterConfig) -> AsyncIterator[None]:
    """Run Ray, or stay connected to it, while the block lasts."""
    from cluster.ray_actors.runtime import start_ray, stop_ray

    try:
        await asyncio.to_thread(start_ray, config)
    except (RuntimeError, OSError, ValueError) as error:
        raise StartError(f"cannot reach or start Ray: {error}") from error
    try:
        yield
    finally:
        await asyncio.to_thread(stop_ray)


async def _drain(config: ClusterConfig, view: StartupView, stop: _Signals) -> None:
    """Let running requests end, for the grace period or until the next signal.

    If the supervisor does not answer, all processes were told to end, and there is nothing to wait for.
    """
    from cluster.ray_actors.supervisor_actor import find_supervisor
    from cluster.supervisor.operations.messages import Drain
    from cluster.supervisor.remote_actor import ActorLostError

    grace = config.drain_grace_seconds
    with contextlib.suppress(ActorLostError, asyncio.TimeoutError):
        supervisor = await within(_FIND_SECONDS, asyncio.to_thread(find_supervisor))
        if supervisor is None or grace == 0:
            return
        view.say(f"draining: requests have {grace:g} s, or until the next signal")
        draining = asyncio.create_task(supervisor.operate(Drain(grace_seconds=grace), grace + _CALL_SECONDS))
        again = asyncio.create_task(stop.again.wait())
        try:
            await asyncio.wait({draining, again}, return_when=asyncio.FIRST_COMPLETED)
            if not draining.done():
                await supervisor.operate(Drain(grace_seconds=0.0), _CALL_SECONDS)
            await draining
        finally:
            for task in (draining, again):
                task.cancel()
            await asyncio.gather(draining, again, return_exceptions=True)


async def _take_down(view: StartupView) -> None:
    """Stop Serve first, so that it accepts no request that no actor could answer; then remove the actors.

    A signal to a whole process group has stopped Ray's processes as well; the rest then ends with Ray itself.
    """
    from cluster.commands.local_service.application import stop_serve
    from cluster.ray_actors.supervisor_actor import find_supervisor

    try:
        await within(_SHUTDOWN_SECONDS, asyncio.to_thread(stop_serve))
        supervisor = find_supervisor()
        if supervisor is not None:
            await supervisor.remove(_SHUTDOWN_SECONDS)
    except Exception as error:
        view.say(f"phimoe serve: not everything could be asked to end: {error or type(error).__name__}")


class _Signals:
    """Events for the first and the second Ctrl-C or SIGTERM.

    Create the object after Ray has started, since Ray installs signal handlers of its own.
    """

    def __init__(self) -> None:
        self.first, self.again = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._note)

    def _note(self) -> None:
        (self.again if self.first.is_set() else self.first).set()
