"""Hosts die, or are cut off, while streams run; each host is a network namespace with a raylet of its own.

    h1    Ray's head, the ingress, a dense actor
    h2    a dense actor, an expert actor with all experts
    h3    an expert actor with all experts

A stream goes on wherever a dense actor and every expert live somewhere. Room for what was lost is taken away from the hosts
that are left (`tenants`), so that it comes back where it was as soon as its host is there again.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.end_to_end.streams import MAX_TOKENS, NUM_STREAMS, Reading, Streams, read_stream
from tests.hosts import Host, Network, network, wait_for_end, why_not

_WHY_NOT = why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(_WHY_NOT is not None, reason=_WHY_NOT or ""),
]

HEAD = '{"phimoe_dense": 1, "phimoe_ingress": 1}'
BOTH = '{"phimoe_dense": 1, "phimoe_expert": 1}'
EXPERT = '{"phimoe_expert": 1}'
RESUME_SECONDS = 25.0
PAUSE_SECONDS = 5.0
"""Room for a machine of two cores on which three raylets run; on a quiet one clients wait for 1 to 2 s."""
FLAGS = (
    "--host 0.0.0.0 --proxy python --dtype float32 --dense-threads 1 --expert-threads 1 --drain-grace-seconds 0 "
    f"--expert-actors 2 --expert-replicas 2 --dense-actors 2 --resume-deadline-seconds {RESUME_SECONDS:g} "
    f"--park-deadline-seconds {RESUME_SECONDS:g}"
).split()
_START_SECONDS = 240.0
_WHOLE_SECONDS = 150.0
_CALL_SECONDS = 10.0
_DRIVER_SECONDS = 90.0
_JOIN_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """A service on three hosts."""

    net: Network
    url: str
    expected: list[list[int]]
    """Tokens of each stream of `Streams`, undisturbed."""

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
        """Once the supervisor, which may have been on the host that was lost, answers."""
        give_up = time.monotonic() + _WHOLE_SECONDS
        while (response := self.get("/cluster")).status_code != 200 and time.monotonic() < give_up:
            time.sleep(0.2)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def places(self) -> dict[str, str]:
        """Name of each actor that is ready -> its host's address."""
        actors = self.view()["actors"]
        return {item["name"]: item["node_ip"] for item in actors if item["state"] == "ready"}

    def wait_until_on(self, hosts: dict[str, str], seconds: float = _WHOLE_SECONDS) -> float:
        """Until these actors are ready, each on its host; how long that took."""
        wanted = {name: self.net.hosts[host].address for name, host in hosts.items()}
        began = time.monotonic()
        seen: object = None
        while time.monotonic() < began + seconds:
            with contextlib.suppress(AssertionError, httpx.HTTPError):
                seen = places = self.places()
                if wanted.items() <= places.items():
                    return time.monotonic() - began
            time.sleep(0.2)
        raise AssertionError(f"{wanted} expected, {seen} found")


def test_replicas_of_a_kind_are_on_different_hosts(service: Service) -> None:
    places = service.places()
    assert places["phimoe-dense-0"] != places["phimoe-dense-1"]
    assert places["phimoe-expert-0"] != places["phimoe-expert-1"]
    held = [actor["experts"] for actor in service.view()["actors"] if actor["kind"] == "expert"]
    assert held == [list(range(16))] * 2


def test_streams_go_on_when_the_raylet_of_an_expert_host_is_killed(service: Service) -> None:
    name = expert_on(service, "h3")
    with service.streams() as streams:
        time.sleep(3.0)
        assert service.h3.kill("raylet") == 1
        time.sleep(20.0)
    check("raylet killed", streams, pause_seconds=PAUSE_SECONDS)
    assert name not in service.places()
    restart_raylet(service, service.h3, EXPERT)
    service.wait_until_on({name: "h3"})


def test_streams_go_on_when_a_host_is_cut_off_for_ten_seconds(service: Service) -> None:
    name = expert_on(service, "h3")
    with service.streams() as streams:
        time.sleep(3.0)
        service.h3.cut()
        try:
            time.sleep(10.0)
        finally:
            service.h3.mend()
        time.sleep(10.0)
    check("cut for 10 s", streams, pause_seconds=PAUSE_SECONDS)
    if not service.h3.named("raylet"):
        print("Ray had given the host up: its raylet ended when it heard of it")
        restart_raylet(service, service.h3, EXPERT)
    service.wait_until_on({name: "h3"})


def test_a_rank_of_an_older_epoch_is_refused(service: Service) -> None:
    module = ("-m", "tests.end_to_end.late_rank")
    *said, where = run_on(service.net.hosts["h1"], *module, "ask", service.net.ray_address).splitlines()
    assert said == ["phimoe-dense-0: StaleEpochError", "phimoe-expert-0: StaleEpochError"]
    assert run_on(service.h3, *module, "knock", *where.split()).split() == ["StaleEpochError"]


def test_streams_go_on_when_the_host_of_a_dense_actor_dies(service: Service) -> None:
    places = service.places()
    lost = {
        name: "h2"
        for name, address in places.items()
        if address == service.h2.address and "supervisor" not in name
    }
    assert {name.rpartition("-")[0] for name in lost} == {"phimoe-dense", "phimoe-expert"}
    with service.streams() as streams:
        time.sleep(3.0)
        service.h2.kill_all()
        time.sleep(20.0)
    check("host of a dense actor died", streams, pause_seconds=PAUSE_SECONDS)
    restart_raylet(service, service.h2, BOTH)
    service.wait_until_on(lost)


def test_what_a_host_that_is_cut_off_for_good_had_is_placed_where_there_is_room(service: Service) -> None:
    name = expert_on(service, "h3")
    with service.streams() as streams:
        time.sleep(3.0)
        service.h3.cut()
        h1, h2 = service.net.hosts["h1"], service.h2
        run_on(
            h1,
            "-m",
            "tests.end_to_end.tenants",
            service.net.ray_address,
            "leave",
            h2.address,
            "phimoe_expert",
        )
        seconds = service.wait_until_on({name: "h2"})
        time.sleep(2.0)
    check(f"cut for good, placed again after {seconds:.0f} s", streams, pause_seconds=PAUSE_SECONDS)


def test_without_any_holder_every_request_ends_with_the_documented_error(service: Service) -> None:
    """The host of both expert actors dies, and the only other one that may have any is cut off."""
    with reading(service) as readings:
        time.sleep(3.0)
        service.h2.kill_all()
        began = time.monotonic()
    seconds = time.monotonic() - began
    print(f"no holder: the last of {len(readings)} streams ended after {seconds:.1f} s")
    for seed, one in enumerate(readings):
        assert one.error is not None and one.error["code"] == "unavailable", one
        assert one.token_ids == service.expected[seed][: len(one.token_ids)]
    assert seconds < RESUME_SECONDS + 10.0
    late = read_stream(service.url, 0)
    assert (late.status, late.token_ids) == (503, []) and late.error is not None
    assert late.error["code"] == "unavailable"
    assert service.get("/health").status_code == 503
    restart_raylet(service, service.h2, BOTH)
    service.wait_until_on({"phimoe-dense-1": "h2", "phimoe-expert-0": "h2", "phimoe-expert-1": "h2"})
    assert read_stream(service.url, 0).token_ids == service.expected[0]


def test_with_the_host_of_the_ingress_its_connections_end(service: Service) -> None:
    with reading(service) as readings:
        time.sleep(3.0)
        service.net.hosts["h1"].kill_all()
        began = time.monotonic()
    assert time.monotonic() - began < 10.0
    for seed, one in enumerate(readings):
        assert one.is_broken and one.error is None, one
        assert one.token_ids == service.expected[seed][: len(one.token_ids)]
    with pytest.raises(httpx.ConnectError):
        service.get("/health")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with network(tmp_path_factory.mktemp("hosts"), {}) as net:
        h1, h2, h3 = (net.add(name) for name in ("h1", "h2", "h3"))
        net.start_head(h1, 1, HEAD)
        net.start_raylet(h2, 1, BOTH)
        net.start_raylet(h3, 1, EXPERT)
        with serving_on(net, h1):
            for host, label in ((h1, "phimoe_dense"), (h2, "phimoe_expert"), (h3, "phimoe_expert")):
                run_on(h1, "-m", "tests.end_to_end.tenants", net.ray_address, "take", host.address, label)
            yield undisturbed(net, h1)


@contextlib.contextmanager
def serving_on(net: Network, host: Host) -> Iterator[None]:
    """`phimoe serve` with this host's raylet, ready."""
    process = host.start(
        "serve", sys.executable, "-m", "cluster", "serve", "--address", net.ray_address, *FLAGS
    )
    try:
        give_up = time.monotonic() + _START_SECONDS
        while "curl " not in host.output("serve"):
            assert process.poll() is None and time.monotonic() < give_up, host.output("serve")[-3000:]
            time.sleep(0.2)
        yield
    finally:
        # What it leaves behind where Ray's head is gone ends with its hosts.
        wait_for_end(process, 60.0)


def undisturbed(net: Network, host: Host) -> Service:
    """The service behind that host's door, and what it says when nothing is wrong."""
    url = f"http://{host.address}:8000"
    expected = []
    for seed in range(NUM_STREAMS):
        one = read_stream(url, seed)
        assert one.status == 200 and one.error is None and len(one.token_ids) == MAX_TOKENS, one
        expected.append(one.token_ids)
    return Service(net=net, url=url, expected=expected)


@contextlib.contextmanager
def reading(service: Service) -> Iterator[list[Reading]]:
    """One stream of each kind; the block ends when all of them have ended."""
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


def run_on(host: Host, *words: str) -> str:
    """What a Python program says that runs on a host to its end."""
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


def restart_raylet(service: Service, host: Host, resources: str) -> None:
    """What is left of the old one ends first."""
    host.kill_all()
    service.net.start_raylet(host, 1, resources)


def expert_on(service: Service, host: str) -> str:
    """The expert actor of that host, once all actors are where they began."""
    address = service.net.hosts[host].address
    found = [name for name, place in service.places().items() if place == address and "expert" in name]
    assert len(found) == 1, service.places()
    return found[0]


def check(what: str, streams: Streams, pause_seconds: float) -> None:
    """No stream failed, none has a wrong token, and no client waited for longer than so many seconds."""
    print(f"{what}: {streams.summary()}")
    assert streams.faults == []
    assert len(streams.readings) >= NUM_STREAMS
    assert streams.longest_pause_seconds < pause_seconds
