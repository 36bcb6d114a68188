"""A `phimoe serve` in a process of its own for tests, on free ports. All that it started is known by pid."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 240.0
PORTS = (20_000, 30_000)


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """One running service."""

    process: subprocess.Popen[bytes]
    port: int
    grpc_port: int
    home: Path
    output: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return environment(self.home)

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120.0, trust_env=False)

    def cluster(self) -> dict[str, Any]:
        with self.client() as client:
            response = client.get("/cluster")
        assert response.status_code == 200, response.text
        view: dict[str, Any] = response.json()
        return view

    def load(self) -> dict[str, int]:
        with self.client() as client:
            load: dict[str, int] = client.get("/load").json()
        return load

    def wait_until_idle(self, seconds: float = 30.0) -> dict[str, int]:
        """Wait until nothing runs, and return the load.

        The heartbeat that says so is at most a second old.
        """
        give_up = time.monotonic() + seconds
        while True:
            load = self.load()
            if load["running"] == load["waiting"] == load["server_load"] == 0 or time.monotonic() > give_up:
                return load
            time.sleep(0.1)

    def descendants(self) -> list[psutil.Process]:
        """Return all descendants of the service's process."""
        below: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return below


def environment(home: Path) -> dict[str, str]:
    return {
        **os.environ,
        "XDG_CACHE_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "disabled",
        "PYTHONUNBUFFERED": "1",
    }


def free_ports(count: int) -> list[int]:
    """Return different ports on which nothing listens.

    They lie below the system's ephemeral ports, and between the ports of Ray's workers and those of Serve's
    replicas, so nothing that starts meanwhile takes one of them by chance.
    """
    free: list[int] = []
    while len(free) < count:
        port = secrets.choice(range(*PORTS))
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        free += [port] * (port not in free)
    return free


def serve_command(port: int, grpc_port: int, *flags: str) -> list[str]:
    ports = ["--port", str(port), "--grpc-port", str(grpc_port)]
    return [sys.executable, "-m", "cluster", "serve", *flags, *ports]


@contextmanager
def serving(home: Path, *flags: str) -> Iterator[Running]:
    """Run `phimoe serve` with these flags.

    The block begins when it is ready; afterwards it ends, if need be by force.
    """
    port, grpc_port = free_ports(2)
    output = home / f"serve-{port}.out"
    command = serve_command(port, grpc_port, *flags)
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(home),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = Running(process=process, port=port, grpc_port=grpc_port, home=home, output=output)
    family = [psutil.Process(process.pid)]
    try:
        _wait_until_ready(running)
        family += running.descendants()
        yield running
    finally:
        family += running.descendants() if process.poll() is None else []
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(90)
        finally:
            _kill(family)


def _wait_until_ready(running: Running) -> None:
    give_up = time.monotonic() + START_SECONDS
    while running.process.poll() is None and time.monotonic() < give_up:
        if b"curl " in running.output.read_bytes():
            return
        time.sleep(0.1)
    raise AssertionError(
        f"phimoe serve did not become ready:\n{running.output.read_text(errors='replace')[-4000:]}"
    )


def _kill(family: list[psutil.Process]) -> None:
    for process in family:
        if process.is_running():
            process.kill()
