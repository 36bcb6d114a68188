"""Ray's head dies with its host and comes back from Redis; what had no replica is placed elsewhere.

    own side  Redis, where the head keeps its state
    h1        Ray's head and `phimoe serve`, no actor
    h2, h3    a dense actor and an expert actor with half of the experts each; the ingress on h2

The new head starts with an empty disk, as a new Pod does. `phimoe serve` ends with the old head and is not
needed afterwards. Streams run meanwhile, through the ingress on h2. No host has room for further actors
(`tenants`).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.on_hosts import (
    BOTH,
    Service,
    actors_on,
    check,
    expert_on,
    restart_raylet,
    serving_on,
    tenancy,
    undisturbed,
)
from tests.support.hosts import Network, network, wait_for_end, why_not

_WHY_NOT = why_not() or (None if shutil.which("redis-server") else "redis-server is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(_WHY_NOT is not None, reason=_WHY_NOT or ""),
]

NO_ACTOR = "{}"
INGRESS = '{"phimoe_dense": 1, "phimoe_expert": 1, "phimoe_ingress": 1}'
REPLACE_SECONDS = 8.0
PAUSE_SECONDS = 5.0
FLAGS = f"--expert-actors 2 --dense-actors 2 --replace-after-seconds {REPLACE_SECONDS:g}".split()
_REDIS_PORT = 6379
_REDIS_SECONDS = 10.0
_AWAY_SECONDS = 10.0


def test_streams_go_on_without_the_head_and_everybody_is_found_again_when_it_is_back(
    service: Service,
) -> None:
    before = {item["name"]: item["pid"] for item in service.ready() if "supervisor" not in item["name"]}
    with service.streams() as streams:
        time.sleep(3.0)
        lose_head(service.net)
        time.sleep(_AWAY_SECONDS)
        assert service.get("/health").status_code == 200
        start_head(service.net)
        time.sleep(5.0)
    check("head away", streams, pause_seconds=PAUSE_SECONDS)
    service.wait_until(lambda ready: before.items() <= pids(ready).items())


def test_who_dies_while_the_head_is_away_is_restarted_when_it_is_back(service: Service) -> None:
    dead = next(item for item in service.ready() if item["kind"] == "expert")
    with service.streams() as streams:
        time.sleep(3.0)
        lose_head(service.net)
        os.kill(dead["pid"], signal.SIGKILL)
        time.sleep(_AWAY_SECONDS)
        start_head(service.net)
        service.wait_until(lambda ready: pids(ready).get(dead["name"]) not in (None, dead["pid"]))
        time.sleep(2.0)
    check("an expert actor died while the head was away", streams, pause_seconds=120.0)


def test_experts_of_a_host_that_stays_away_go_to_the_others_and_come_back_with_it(service: Service) -> None:
    lost = actors_on(service, "h3")
    name, other = expert_on(service, "h3"), expert_on(service, "h2")
    assert expert_counts(service.ready()) == {name: 8, other: 8}
    with service.streams() as streams:
        time.sleep(3.0)
        service.h3.kill_all()
        began = time.monotonic()
        service.wait_until(lambda ready: expert_counts(ready) == {other: 16})
        seconds = time.monotonic() - began
        time.sleep(3.0)
    check(f"experts elsewhere after {seconds:.0f} s", streams, pause_seconds=REPLACE_SECONDS + 30.0)
    with service.streams() as streams:
        restart_raylet(service, service.h3, BOTH)
        service.wait_until_on(lost)
        service.wait_until(lambda ready: expert_counts(ready) == {name: 8, other: 8})
    check("back", streams, pause_seconds=PAUSE_SECONDS)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with network(tmp_path_factory.mktemp("head"), {}) as net, redis(net):
        h1, h2, h3 = (net.add(name) for name in ("h1", "h2", "h3"))
        h1.environment |= {
            "RAY_REDIS_ADDRESS": f"{net.own_address}:{_REDIS_PORT}",
            "RAY_external_storage_namespace": net.name,
        }
        start_head(net)
        net.start_raylet(h2, 1, INGRESS)
        net.start_raylet(h3, 1, BOTH)
        # A driver connects to the first raylet that it finds among the processes, which here is h1's.
        with serving_on(net, h1, FLAGS):
            for host, label in itertools.product((h2, h3), ("phimoe_dense", "phimoe_expert")):
                tenancy(net, "take", host, label)
            yield undisturbed(net, h2)


@contextlib.contextmanager
def redis(net: Network) -> Iterator[None]:
    """Run Redis on the bridge's own side, so that it outlives every host."""
    folder: Path = net.folder / "redis"
    folder.mkdir()
    words = ["redis-server", "--bind", net.own_address, "--port", str(_REDIS_PORT), "--dir", str(folder)]
    words += ["--protected-mode", "no", "--save", ""]
    with (folder / "redis.out").open("wb") as output:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        give_up = time.monotonic() + _REDIS_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection((net.own_address, _REDIS_PORT), 1.0):
                break
            assert process.poll() is None and time.monotonic() < give_up, (folder / "redis.out").read_text()
            time.sleep(0.1)
        yield
    finally:
        wait_for_end(process, _REDIS_SECONDS)


def lose_head(net: Network) -> None:
    """End the head's host as if it lost its power and its disk."""
    h1 = net.hosts["h1"]
    h1.kill_all()
    shutil.rmtree(h1.folder / "tmp", ignore_errors=True)


def start_head(net: Network) -> None:
    net.start_head(net.hosts["h1"], 0, NO_ACTOR)


def pids(actors: list[dict[str, Any]]) -> dict[str, int]:
    """Return name -> pid of each actor."""
    return {item["name"]: item["pid"] for item in actors}


def expert_counts(actors: list[dict[str, Any]]) -> dict[str, int]:
    """Return name -> number of experts that the actor holds, for each expert actor."""
    return {item["name"]: len(item["experts"]) for item in actors if item["kind"] == "expert"}
