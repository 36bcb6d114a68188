"""Ray's head dies and is started again on the same address, its state kept in Redis (GCS fault tolerance).

h1    the head alone, as on Kubernetes: no actor, no ingress
h2    the ingress, a dense actor, an expert actor with all experts
h3    a dense actor, an expert actor with all experts
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.running import free_ports
from tests.end_to_end.test_hosts import PAUSE_SECONDS, Service, check, serving_on, undisturbed
from tests.hosts import network, why_not

_WHY_NOT = why_not() or (None if shutil.which("redis-server") else "redis-server is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(_WHY_NOT is not None, reason=_WHY_NOT or ""),
]

HEAD = "{}"
INGRESS = '{"phimoe_dense": 1, "phimoe_expert": 1, "phimoe_ingress": 1}'
BOTH = '{"phimoe_dense": 1, "phimoe_expert": 1}'
_REDIS_SECONDS = 10.0


def test_a_service_outlives_a_restart_of_the_head(service: Service) -> None:
    h1 = service.net.hosts["h1"]
    places, epoch = service.places(), service.view()["epoch"]
    with service.streams() as streams:
        time.sleep(3.0)
        h1.kill_all()
        time.sleep(5.0)
        service.net.start_head(h1, 0, HEAD)
        time.sleep(15.0)
    check("head restarted", streams, pause_seconds=PAUSE_SECONDS)
    actors = {name for name in places if "supervisor" not in name}
    service.wait_until_on({name: _host_of(service, places[name]) for name in actors})
    assert service.view()["epoch"] >= epoch

    before = next(item for item in service.view()["actors"] if item["name"] == "phimoe-expert-0")
    with service.streams() as streams:
        psutil.Process(before["pid"]).kill()
        time.sleep(10.0)
    check("an expert actor killed under the new head", streams, pause_seconds=PAUSE_SECONDS)
    service.wait_until_on({name: _host_of(service, places[name]) for name in actors})
    after = next(item for item in service.view()["actors"] if item["name"] == "phimoe-expert-0")
    assert (after["pid"] != before["pid"], after["restarts"]) == (True, before["restarts"] + 1)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("head")
    with network(folder, {}) as net, _redis(net.own_address, folder) as redis:
        net.variables["RAY_REDIS_ADDRESS"] = redis
        h1, h2, h3 = (net.add(name) for name in ("h1", "h2", "h3"))
        net.start_head(h1, 0, HEAD)
        net.start_raylet(h2, 1, INGRESS)
        net.start_raylet(h3, 1, BOTH)
        with serving_on(net, h2):
            yield undisturbed(net, h2)


@contextlib.contextmanager
def _redis(address: str, folder: Path) -> Iterator[str]:
    """A Redis of its own that hosts reach; its address."""
    (port,) = free_ports(1)
    words = [
        "--bind",
        address,
        "--port",
        str(port),
        "--protected-mode",
        "no",
        "--save",
        "",
        "--dir",
        str(folder),
    ]
    with (folder / "redis.out").open("wb") as output:
        process = subprocess.Popen(["redis-server", *words], stdout=output, stderr=subprocess.STDOUT)
    try:
        give_up = time.monotonic() + _REDIS_SECONDS
        while b"Ready to accept connections" not in (folder / "redis.out").read_bytes():
            assert process.poll() is None and time.monotonic() < give_up
            time.sleep(0.05)
        yield f"{address}:{port}"
    finally:
        process.terminate()
        process.wait(_REDIS_SECONDS)


def _host_of(service: Service, address: str) -> str:
    return next(name for name, host in service.net.hosts.items() if host.address == address)
