"""A service whose actors are on several hosts (`tests.support.hosts`).

It can be started, asked where its actors are, and waited for after hosts have ended.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from tests.end_to_end.streams import MAX_TOKENS, NUM_STREAMS, Reading, Streams, read_stream
from tests.support.hosts import Host, Network, wait_for_end

HEAD = '{"phimoe_dense": 1, "phimoe_ingress": 1}'
BOTH = '{"phimoe_dense": 1, "phimoe_expert": 1}'
EXPERT = '{"phimoe_expert": 1}'
FLAGS = [
    "--host",
    "0.0.0.0",
    "--proxy",
    "python",
    "--dtype",
    "float32",
    "--dense-threads",
    "1",
    "--expert-threads",
    "1",
    "--drain-grace-seconds",
    "0",
]
_START_SECONDS = 240.0
_WHOLE_SECONDS = 150.0
_CALL_SECONDS = 10.0
_DRIVER_SECONDS = 90.0
_JOIN_SECONDS = 120.0
_FEW_TOKENS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """A service on three hosts."""

    net: Network
    url: str
    expected: list[list[int]]
    """Tokens of each stream of `Streams` in a run without faults."""

    @property
    def h2(self) -> Host:
        return self.net.hosts["h2"]

    @property
    def h3(self) -> Host:
        return self.net.hosts["h3"]

    def streams(self) -> Streams:
        return Streams(self.url, self.expected)

    def get(self, path: str) -> httpx.Response:
        with httpx.Client(base_url=self.url, timeout=_CALL_SECONDS, trust_env=False) as client:
            return client.get(path)

    def view(self) -> dict[str, Any]:
        """Return /cluster as soon as the supervisor answers; it may have been on the host that was lost."""
        give_up = time.monotonic() + _WHOLE_SECONDS
        while (response := self.get("/cluster")).status_code != 200 and time.monotonic() < give_up:
            time.sleep(0.2)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def ready(self) -> list[dict[str, Any]]:
        """Return the actors that are ready."""
        return [item for item in self.view()["actors"] if item["state"] == "ready"]

    def places(self) -> dict[str, str]:
        """Return name -> host's address of every actor that is ready."""
        return {item["name"]: item["node_ip"] for item in self.ready()}

    def wait_until_on(self, hosts: dict[str, str], seconds: float = _WHOLE_SECONDS) -> float:
        """Wait until these actors are ready, each on its host; return how many seconds that took."""
        wanted = {name: self.net.hosts[host].address for name, host in hosts.items()}
        return self.wait_until(
            lambda actors: wanted.items() <= {item["name"]: item["node_ip"] for item in actors}.items(),
            seconds,
        )

    def wait_until(
        self, is_so: Callable[[list[dict[str, Any]]], bool], seconds: float = _WHOLE_SECONDS
    ) -> float:
        """Wait until the condition holds for the actors that are ready; return how many seconds that took."""
        began = time.monotonic()
        seen: object = None
        while time.monotonic() < began + seconds:
            with contextlib.suppress(AssertionError, httpx.HTTPError):
                seen = ready = self.ready()
                if is_so(ready):
                    return time.monotonic() - began
            time.sleep(0.2)
        raise AssertionError(f"not so after {seconds:g} s: {seen}")


@contextlib.contextmanager
def serving_on(net: Network, host: Host, flags: list[str]) -> Iterator[None]:
    """Run `phimoe serve` with `FLAGS` and `flags` through this host's raylet, until the block ends."""
    process = host.start(
        "serve", sys.executable, "-m", "cluster", "serve", "--address", net.ray_address, *FLAGS, *flags
    )
    try:
        give_up = time.monotonic() + _START_SECONDS
        while "curl " not in host.output("serve"):
            assert process.poll() is None and time.monotonic() < give_up, host.output("serve")[-3000:]
            time.sleep(0.2)
        yield
    finally:
        # If Ray's head is gone, what is left of the service ends with its hosts.
        wait_for_end(process, 60.0)


def undisturbed(net: Network, host: Host) -> Service:
    """Return the service that this host's ingress serves, with the tokens that it gives without faults."""
    url = f"http://{host.address}:8000"
    expected = []
    for seed in range(NUM_STREAMS):
        one = read_stream(url, seed)
        assert one.status == 200 and one.error is None and len(one.token_ids) == MAX_TOKENS, one
        expected.append(one.token_ids)
    return Service(net=net, url=url, expected=expected)


@contextlib.contextmanager
def reading(service: Service) -> Iterator[list[Reading]]:
    """Read one stream of each kind; the block ends when all of them have ended."""
    readings = [Reading() for _ in range(NUM_STREAMS)]
    threads = [
        threading.Thread(target=read_stream, args=(service.url, seed, one))
        for seed, one in enumerate(readings)
    ]
    for thread in threads:
        thread.start()
    try:
        yield readings
    finally:
        for thread in threads:
            thread.join(_JOIN_SECONDS)


def until_streaming(readings: list[Reading]) -> None:
    """Wait until every stream has begun."""
    give_up = time.monotonic() + _CALL_SECONDS
    while not all(len(one.token_ids) > _FEW_TOKENS for one in readings):
        assert time.monotonic() < give_up, readings
        time.sleep(0.01)


def run_on(host: Host, *words: str) -> str:
    """Run a Python program on a host and return what it printed."""
    done = subprocess.run(
        host.command(sys.executable, *words),
        env=host.environment,
        capture_output=True,
        text=True,
        timeout=_DRIVER_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def tenancy(net: Network, action: str, host: Host, label: str) -> None:
    """Take away or give back the host's room for further actors that claim the label."""
    run_on(net.hosts["h1"], "-m", "tests.end_to_end.tenants", net.ray_address, action, host.address, label)


def restart_raylet(service: Service, host: Host, resources: str) -> None:
    """Start a new raylet on the host after what is left of the old one has ended."""
    host.kill_all()
    service.net.start_raylet(host, 1, resources)


def actors_on(service: Service, host: str) -> dict[str, str]:
    """Return name -> host of the dense and expert actors on this host."""
    address = service.net.hosts[host].address
    return {
        name: host
        for name, place in service.places().items()
        if place == address and "supervisor" not in name
    }


def expert_on(service: Service, host: str) -> str:
    """Return the name of the only expert actor on this host."""
    found = [name for name in actors_on(service, host) if "expert" in name]
    assert len(found) == 1, service.places()
    return found[0]


def check(what: str, streams: Streams, pause_seconds: float) -> None:
    """Check that no stream failed or has a wrong token, and that no pause exceeds `pause_seconds`."""
    print(f"{what}: {streams.summary()}")
    assert streams.faults == []
    assert len(streams.readings) >= NUM_STREAMS
    assert streams.longest_pause_seconds < pause_seconds
