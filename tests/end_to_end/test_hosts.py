"""Hosts die, or are cut off, while streams run; each host is a network namespace with a raylet of its own.

    h1    Ray's head, the ingress, a dense actor
    h2    a dense actor, an expert actor with all experts
    h3    an expert actor with all experts

A stream goes on as long as a dense actor and every expert live somewhere. The hosts that are left have no
room for lost actors (`tenants`). A lost actor therefore comes back where it was as soon as its host is back,
or where a tenant leaves.

With the health checks of k8s/base, Ray takes a host for dead that does not answer for about ten seconds. If
the host can be reached again after that, its raylet ends itself and everything that it runs. The host is back
when a new raylet is started there, as Kubernetes does. Streams notice none of this.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.end_to_end.on_hosts import (
    BOTH,
    EXPERT,
    HEAD,
    Service,
    actors_on,
    check,
    expert_on,
    reading,
    restart_raylet,
    run_on,
    serving_on,
    tenancy,
    undisturbed,
    until_streaming,
)
from tests.end_to_end.streams import read_stream
from tests.support.hosts import network, why_not

_WHY_NOT = why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(_WHY_NOT is not None, reason=_WHY_NOT or ""),
]

RESUME_SECONDS = 25.0
PAUSE_SECONDS = 5.0
"""Generous bound for a machine of two cores and three raylets; on a quiet machine clients wait 1 to 2 s."""
FLAGS = (
    f"--expert-actors 2 --expert-replicas 2 --dense-actors 2 --resume-deadline-seconds {RESUME_SECONDS:g} "
    f"--park-deadline-seconds {RESUME_SECONDS:g}"
).split()


def test_replicas_of_a_kind_are_on_different_hosts(service: Service) -> None:
    places = service.places()
    assert places["phimoe-dense-0"] != places["phimoe-dense-1"]
    assert places["phimoe-expert-0"] != places["phimoe-expert-1"]
    experts = [actor["experts"] for actor in service.view()["actors"] if actor["kind"] == "expert"]
    assert experts == [list(range(16))] * 2


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


def test_an_actor_that_hangs_on_another_host_than_the_supervisors_is_replaced(service: Service) -> None:
    actors = service.view()["actors"]
    ours = next(item["node_ip"] for item in actors if item["kind"] == "supervisor")
    hung = next(item for item in actors if item["kind"] == "expert" and item["node_ip"] != ours)
    with service.streams() as streams:
        time.sleep(3.0)
        os.kill(hung["pid"], signal.SIGSTOP)
        began = time.monotonic()
        service.wait_until(
            lambda ready: any(item["name"] == hung["name"] and item["pid"] != hung["pid"] for item in ready)
        )
        seconds = time.monotonic() - began
        time.sleep(2.0)
    check(f"hung on another host, replaced after {seconds:.0f} s", streams, pause_seconds=PAUSE_SECONDS)


def test_a_rank_of_an_older_epoch_is_refused(service: Service) -> None:
    module = ("-m", "tests.end_to_end.late_rank")
    *said, where = run_on(service.net.hosts["h1"], *module, "ask", service.net.ray_address).splitlines()
    assert said == ["phimoe-dense-0: StaleEpochError", "phimoe-expert-0: StaleEpochError"]
    assert run_on(service.h3, *module, "connect", *where.split()).split() == ["StaleEpochError"]


def test_streams_go_on_when_the_host_of_a_dense_actor_dies(service: Service) -> None:
    lost = actors_on(service, "h2")
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
        began = time.monotonic()
        tenancy(service.net, "leave", service.h2, "phimoe_expert")
        service.wait_until_on({name: "h2"})
        seconds = time.monotonic() - began
        time.sleep(2.0)
    check(f"cut for good, placed again after {seconds:.0f} s", streams, pause_seconds=PAUSE_SECONDS)


def test_without_any_holder_every_request_ends_with_the_documented_error(service: Service) -> None:
    """The host of both expert actors dies, and the only other host for expert actors is cut off."""
    lost = actors_on(service, "h2")
    assert {name for name in lost if "expert" in name} == {"phimoe-expert-0", "phimoe-expert-1"}
    with reading(service) as readings:
        until_streaming(readings)
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
    service.wait_until_on(lost)
    assert read_stream(service.url, 0).token_ids == service.expected[0]


def test_with_the_host_of_the_ingress_its_connections_end(service: Service) -> None:
    with reading(service) as readings:
        until_streaming(readings)
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
        with serving_on(net, h1, FLAGS):
            for host, label in ((h1, "phimoe_dense"), (h2, "phimoe_expert"), (h3, "phimoe_expert")):
                tenancy(net, "take", host, label)
            yield undisturbed(net, h1)
